"""One process of a Slurm step: `python -m vitscale.launch.slurm.task RUNS ID...` works on runs, one after another.

Where the step has several processes, each has a device of the same run, and the first says how it ended.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vitscale.errors import DONE, MISSING, VitscaleError
from vitscale.launch import folders
from vitscale.launch.local import Worker
from vitscale.launch.placement import Place, place
from vitscale.launch.single import take_part, wait, wait_for_holder

say = partial(print, flush=True)


def main(arguments: Sequence[str]) -> int:
    runs, *ids = arguments
    try:
        left = [folder for folder in (Path(runs) / id_ for id_ in ids) if folders.result(folder) is None]
        for folder in left:
            _check_start(folder)
        if not left:
            return DONE
        where, threads = place(), folders.document(left[0])["machine"]["threads"]
        if where is not None and where.rank > 0:
            return take_part(left[0], threads, where)
        return _work_on(left, threads, where)
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


def _work_on(work: Sequence[Path], threads: int, where: Place | None) -> int:
    for folder in work:
        wait_for_holder(folder, say)
    worker = Worker(work, threads, environment=where.environment if where else {})
    wait(worker)
    worker.record_death()
    code = worker.process.returncode
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
