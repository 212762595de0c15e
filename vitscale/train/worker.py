"""A process's entry: `python -m vitscale.train.worker RUN_FOLDER ...` works on run folders, one after another.

Everything it is told stands in `run.json`; everything it says goes to `events.jsonl`, checkpoints and `result.json`.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from vitscale.errors import BUG, DONE, INTERRUPTED, RUN_FAILED, VitscaleError
from vitscale.train.engine import device_name, process_group
from vitscale.train.finetune import transfer
from vitscale.train.loop import Interrupted, Stop
from vitscale.train.pretrain import pretrain
from vitscale.train.rundir import RunDir, now


def main(folders: list[str]) -> int:
    """Works on each folder in turn; returns the worst exit code."""
    stop = Stop()
    stop.listen()
    worst = DONE
    with process_group():
        for folder in folders:
            try:
                code = work(RunDir(Path(folder)), stop)
            except VitscaleError as error:  # nothing was begun, so there is nothing to record
                print(error, flush=True)
                code = error.exit_code
            if code == INTERRUPTED:
                return code
            worst = max(worst, code)
    return worst


def work(rundir: RunDir, stop: Stop) -> int:
    """One attempt at one run; its outcome is written also where it is a failure."""
    torch.set_num_threads(rundir.machine.get("threads") or torch.get_num_threads())
    with rundir.lease():
        if rundir.result() is not None:
            return DONE  # another worker was quicker
        attempt = 1 + sum(event["event"] == "start" for event in rundir.events())
        started = now()
        rundir.log("start", {"attempt": attempt, "device": device_name()})
        facts = {"attempt": attempt, "started": started, "device": device_name(), "n_devices": 1}
        try:
            job = pretrain if rundir.document["kind"] == "pretrain" else transfer
            result = job(rundir, stop)
        except Interrupted:
            rundir.log("interrupted", {})
            return INTERRUPTED
        except VitscaleError as error:
            return _failed(rundir, facts, str(error.problems[0].message), str(error), RUN_FAILED)
        except Exception as error:
            return _failed(rundir, facts, f"{type(error).__name__}: {error}", traceback.format_exc(), BUG)
        rundir.log("done", {})
        rundir.finish({**result, **facts, "ended": now()})
        return DONE


def _failed(rundir: RunDir, facts: dict[str, Any], reason: str, text: str, code: int) -> int:
    print(text, flush=True)
    rundir.log("failed", {"reason": reason})
    rundir.finish({"status": "failed", "reason": reason, "score": None, "rows": [], **facts, "ended": now()})
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
