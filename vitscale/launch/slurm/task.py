"""One process of a Slurm step: `python -m vitscale.launch.slurm.task RUNS ID...` works on runs, one after another.

Where the step has several processes, each has a device of the same run, and the first says how it ended.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vitscale import checkpoints
from vitscale.errors import DONE, MISSING, RUN_FAILED, VitscaleError
from vitscale.failures import Failure
from vitscale.files import write_whole
from vitscale.launch import folders
from vitscale.launch.local import Worker
from vitscale.launch.placement import Place, place
from vitscale.launch.single import take_part, wait, wait_for_holder
from vitscale.results import provenance

say = partial(print, flush=True)


def main(arguments: Sequence[str]) -> int:
    runs, *ids = arguments
    try:
        left = [folder for folder in (Path(runs) / id_ for id_ in ids) if folders.result(folder) is None]
        if not left:
            return DONE
        where, threads = place(), folders.document(left[0])["machine"]["threads"]
        mine = [folder for folder in left if not _is_of_other_code(folder)]
        if where is not None and where.rank > 0:
            return take_part(left[0], threads, where) if mine else RUN_FAILED
        for folder in left:
            _check_start(folder)
            _stamp(folder) if folder in mine else _refuse(folder)
        return _work_on(mine, threads, where) if mine else RUN_FAILED
    except VitscaleError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code


def _check_start(folder: Path) -> None:
    """Refuses a transfer that would start from a run which is not there yet.

    Raises:
        VitscaleError: exit 5.
    """
    parent = folders.document(folder)["parent"]
    if parent is not None and (folders.result(folder.parent / parent) or {}).get("status") != "done":
        raise VitscaleError(
            f"run {folder.name} starts from {parent}, which is not done",
            hint=f"let {parent} end first; vitscale sweep submits both in their order",
            exit_code=MISSING,
        )


def _is_of_other_code(folder: Path) -> bool:
    """Whether it was begun by other code than is there now: some may have come while the job waited."""
    told = folders.document(folder)
    if not checkpoints.holds_work(folder) or told.get("accept_code_change"):
        return False
    return bool(told["provenance"]["code_hash"] != provenance.code_hash())


def _refuse(folder: Path) -> None:
    """As a sweep does."""
    reason = f"begun by other code (commit {folders.document(folder)['provenance']['git_commit']}) than is there now"
    hint = "check that commit out, or give --accept-code-change; with --retry-failed it goes on in both cases"
    folders.record_failure(folder, Failure.SETUP, reason, hint, RUN_FAILED)


def _stamp(folder: Path) -> None:
    """The code that trains is recorded, not that which submitted."""
    told = folders.document(folder)
    if told["provenance"]["code_hash"] != provenance.code_hash():
        now = folders.stamped({**told, "provenance": provenance.collect()}, folder)
        write_whole(folder / "run.json", json.dumps(now, indent=2).encode())


def _work_on(work: Sequence[Path], threads: int, where: Place | None) -> int:
    for folder in work:
        wait_for_holder(folder, say)
    worker = Worker(work, threads, environment=where.environment if where else {})
    wait(worker)
    worker.record_death(where.who if where else "")
    code = worker.process.returncode
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
