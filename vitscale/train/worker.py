"""A process's entry: `python -m vitscale.train.worker RUN_FOLDER ...` works on run folders, one after another.

Everything it is told stands in `run.json`; everything it says goes to `events.jsonl`, checkpoints and `result.json`.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch

from vitscale.errors import BEREFT, BUG, DONE, INTERRUPTED, RUN_FAILED, VitscaleError
from vitscale.failures import Failure
from vitscale.files import FULL, disk_errors
from vitscale.lease import Lost, gone
from vitscale.processes import cores, left_at_a_signal, signal_at_parent_death
from vitscale.train import group
from vitscale.train.checkpoint import NotSaved
from vitscale.train.device import device_name, is_out_of_memory, processor
from vitscale.train.rundir import RunDir, now
from vitscale.train.stop import Interrupted, Stop
from vitscale.train.watchdog import STALL, Watchdog

WORK = {
    "pretrain": "vitscale.train.pretrain.pretrain",
    "import": "vitscale.train.published.import_published",
    "transfer": "vitscale.train.finetune.transfer",
    "bench": "vitscale.train.bench.bench",
}


def main(folders: list[str]) -> int:
    """Works on each folder in turn; returns the worst exit code."""
    stop = Stop()
    stop.listen()
    several = group.is_one_of_several()
    if several:
        signal_at_parent_death(signal.SIGKILL)  # the launcher's own death sends its spawner a SIGTERM first
    try:
        with contextlib.ExitStack() as stack:
            with left_at_a_signal(lambda: stop.requested) if several else contextlib.nullcontext():
                lost = stack.enter_context(group.process_group())
            code = _work_on_all(folders, stop, lost)
            if code in (DONE, INTERRUPTED):  # where one fails it leaves at once, which ends the others
                group.wait_for_all()
    except group.NotMet as error:
        print(error, flush=True)
        problem = error.problems[0]
        rundir = RunDir(Path(folders[0]))
        rundir.fail(problem.message, failure=Failure.SETUP, hint=problem.hint, code=error.exit_code)
        return error.exit_code
    return code


def _work_on_all(folders: list[str], stop: Stop, lost: group.Lost) -> int:
    worst = DONE
    for folder in map(Path, folders):
        if stop.asked():
            return INTERRUPTED
        try:
            with disk_errors(folder):
                _log_to(folder)
                code = work(RunDir(folder, number=group.rank()), stop, lost)
        except VitscaleError as error:  # nothing was begun, or nothing can be recorded
            with contextlib.suppress(OSError):  # the log lies on the same full disk
                print(error, flush=True)
            code = error.exit_code
        if code == INTERRUPTED:
            return code
        worst = max(worst, code)
    return worst


def work(rundir: RunDir, stop: Stop, lost: group.Lost = lambda: None) -> int:
    """One attempt at one run; its outcome is written also where it is a failure."""
    with rundir.lease():
        rundir.claim = group.agreed(rundir.claim)
        if group.any_of(group.is_first() and rundir.result() is not None):
            return DONE  # another worker was quicker
        threads = group.agreed(_threads(rundir) if group.is_first() else None)
        torch.set_num_threads(threads or torch.get_num_threads())
        attempt = 1 + sum(event["event"] == "start" for event in rundir.events())
        started = now()
        where = {"device": device_name(), "host": ", ".join(sorted(group.union({platform.node()})))}
        source = rundir.document.get("provenance", {})
        code = {key: source.get(key) for key in ("git_commit", "code_hash")}
        rundir.log("start", {"attempt": attempt, **where, **code})
        facts = {
            "attempt": attempt,
            "started": started,
            **where,
            "n_devices": group.world_size(),
            "provenance": source,  # run.json will have that of the next attempt
            "trained_by": rundir.document.get("trained_by", []),
        }
        watchdog = Watchdog(
            folder=rundir.folder,
            stop=stop,
            stall=rundir.machine.get("stall", STALL),
            writes=rundir.writes,
            lost=lost,
            fail=lambda failure, reason, hint, provisional: _failed(
                rundir, facts, failure, reason, hint, RUN_FAILED, provisional=provisional
            ),
        )
        try:
            with watchdog.watching():
                result = _work_of(rundir.document["kind"])(rundir, stop)
        except Interrupted:
            rundir.log("interrupted", {})
            return INTERRUPTED
        except (NotSaved, Lost) as error:
            print(error, flush=True)
            return error.exit_code
        except VitscaleError as error:
            print(error, flush=True)
            problem = error.problems[0]
            return _failed(rundir, facts, _kind(error), problem.message, problem.hint, error.exit_code)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise  # as NotSaved: the run has not failed
            if not rundir.folder.is_dir():
                print(lost_folder := gone(rundir.folder), flush=True)
                return lost_folder.exit_code
            traceback.print_exc()
            if group.is_of_a_lost_peer(error):
                return _bereft(rundir, facts, error)
            if is_out_of_memory(error):
                return _out_of_memory(rundir, facts, error)
            reason = f"{type(error).__name__}: {error}"
            return _failed(rundir, facts, Failure.CODE, reason, "log.txt has the traceback", BUG)
        rundir.log("done", {})
        if rundir.writes:
            rundir.finish({**result, **facts, "ended": now()})
            if rundir.document["kind"] == "transfer":
                from vitscale.train.trainings import discard

                discard(rundir.folder)
        return DONE


def _threads(rundir: RunDir) -> int | None:
    """CPU threads of this attempt; None: as torch has it. As asked for; else, so that it ends with the same bits, those
    that the run began with on as many such devices, or the trunk that it starts from; else the machine's share.

    More than there are cores would make it crawl.
    """
    machine = rundir.machine
    if machine.get("threads_given") or torch.cuda.is_available():  # where a GPU computes they move no bit
        return machine.get("threads")
    here, begun = True, None
    for event in [*(rundir.branch[0].events() if rundir.branch else []), *rundir.events()]:
        if event["event"] == "start":
            here = str(event.get("device")).startswith(processor())
        elif event["event"] == "engine" and here and event.get("task", {}).get("devices") == group.world_size():
            begun = event.get("threads")
    return begun if begun and begun <= cores() else machine.get("threads")


def _work_of(kind: str) -> Callable[[RunDir, Stop], dict[str, Any]]:
    """The function of this kind of run; imported now, as a pre-training need not wait for what transfers import."""
    module, _, name = WORK[kind].rpartition(".")
    return getattr(import_module(module), name)


def _kind(error: VitscaleError) -> Failure:
    """As it says itself; else by where it was raised."""
    if error.failure is not None:
        return error.failure
    modules = {frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__)}
    return Failure.BAD_DATA if any(name.startswith("vitscale.data.") for name in modules) else Failure.SETUP


def _failed(
    rundir: RunDir, facts: dict[str, Any], failure: Failure, reason: str, hint: str, code: int, **how: bool
) -> int:
    rundir.log("failed", {"failure": failure, "reason": reason})
    rundir.fail(reason, failure=failure, hint=hint, code=code, facts=facts, **how)
    return code


def _out_of_memory(rundir: RunDir, facts: dict[str, Any], error: Exception) -> int:
    from vitscale.train.capacity import may_shrink

    retry = may_shrink(rundir)
    rundir.log("out_of_memory", {})
    hint = "the same command, or --retry-failed, tries fewer images at once"
    if rundir.machine.get("micro_batch"):
        hint = "give a smaller --micro-batch, or auto; --activation-checkpointing and --zero 3 need less, too"
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return _failed(rundir, facts, Failure.OUT_OF_MEMORY, f"out of memory: {reason}", hint, RUN_FAILED, retry=retry)


def _bereft(rundir: RunDir, facts: dict[str, Any], error: Exception) -> int:
    """Whoever started the process that went first knows more than its peers, and says so instead."""
    reason = f"another process of the run has ended, or its host does not answer: {error}"
    hint = "the same command goes on from the last checkpoint"
    _failed(rundir, facts, Failure.KILLED, reason, hint, RUN_FAILED, provisional=True)
    return BEREFT


def _log_to(folder: Path) -> None:
    """Sends what this process prints to the run's own log, from here on; each process has a file of its own."""
    name = "log.txt" if group.is_first() else f"log-{group.rank()}.txt"
    log = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def leave(code: int) -> NoReturn:
    """Ends the process, not the interpreter: threads of gloo and of readers that meet its end abort a finished run."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
