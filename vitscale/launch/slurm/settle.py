"""After the processes of a job: `python -m vitscale.launch.slurm.settle RUNS CODE ID...` decides what comes next.

Its exit code is the decision: 0, all runs are done; 85, start again at once; 130, to be continued later; 4, a run has
failed for good; 5, something is missing that no other try brings.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vitscale import checkpoints
from vitscale.errors import DONE, HELD, INTERRUPTED, MISSING, RUN_FAILED, VitscaleError
from vitscale.failures import Failure
from vitscale.files import write_whole
from vitscale.launch import folders
from vitscale.launch.local import cause, killed_by
from vitscale.launch.slurm import submissions
from vitscale.processes import STOP_SIGNALS

AGAIN = 85
STANDSTILLS = 3
"""How often in a row a run may be stopped without a new checkpoint."""


def main(arguments: Sequence[str]) -> int:
    runs, code, *ids = arguments
    job, task = os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    try:
        return settle([Path(runs) / id_ for id_ in ids], int(code), job, task)
    except VitscaleError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code


def settle(work: Sequence[Path], code: int, job: str, task: int = 0) -> int:
    """The decision on runs that a job has worked on in turn, until its processes ended with `code`."""
    first = next((folder for folder in work if folders.result(folder) is None), None)
    if first is not None:
        if code == HELD:  # by what a lost node has left; it may also end the run
            return INTERRUPTED
        if code == MISSING:
            return code
        if not was_stopped(code):
            _record_death(first, code, task)
        else:
            _count_standstill(first, job)
            if folders.result(first) is None:  # the time is up, for others of its runs that failed, too
                return INTERRUPTED
    again = [folder for folder in work if _again(folder)]
    if again:
        return AGAIN
    outcomes = [folders.result(folder) for folder in work]
    if None in outcomes:
        return AGAIN
    return DONE if all(outcome and outcome["status"] == "done" for outcome in outcomes) else RUN_FAILED


def _record_death(folder: Path, code: int, task: int) -> None:
    """Of processes that said nothing: srun's words are in the job's output, the worker's in the run's log."""
    output = submissions.output(folder.parent, os.environ.get("SLURM_JOB_NAME", ""), task)
    if not folders.has_begun(folder):
        reason, hint = f"srun ended with exit code {code} before the run began", f"{output} has its last words"
        folders.record_failure(folder, Failure.SETUP, reason, hint, RUN_FAILED)
        return
    kind = Failure.KILLED if killed_by(code) else Failure.CODE
    hint = f"{folder / 'log.txt'} and {output} have the last words; vitscale sweep STUDY --retry-failed tries again"
    folders.record_failure(folder, kind, cause(code, folder), hint, RUN_FAILED)


def was_stopped(code: int) -> bool:
    """Whether processes ended so because a signal asked them to; one may have come before they listened."""
    return code == INTERRUPTED or killed_by(code) in STOP_SIGNALS


@dataclass(frozen=True, slots=True)
class Standstills:
    """How often in a row one job was stopped without a new checkpoint, in the run's folder."""

    job: str
    count: int = 0
    checkpoints: list[str] = field(default_factory=list)
    """At the last stop."""

    @classmethod
    def read(cls, folder: Path, job: str) -> Standstills:
        with suppress(OSError, ValueError, TypeError):
            found = cls(**json.loads((folder / "standstills.json").read_text()))
            if found.job == job:
                return found
        return cls(job)

    def write(self, folder: Path) -> None:
        write_whole(folder / "standstills.json", json.dumps(asdict(self)).encode())


def _count_standstill(folder: Path, job: str) -> None:
    """A run that is stopped again and again before it can save would go round in the queue for ever."""
    before = Standstills.read(folder, job)
    saved = sorted(checkpoints.names(folder))
    moved = saved != before.checkpoints
    now = Standstills(job, 0 if moved else before.count + 1, saved)
    now.write(folder)
    if now.count >= STANDSTILLS:
        reason = f"stopped {STANDSTILLS} times in a row before it came to a new checkpoint"
        hint = "give its jobs more time, or a longer notice (launcher.slurm.time, launcher.slurm.signal)"
        folders.record_failure(folder, Failure.TIME, reason, hint, RUN_FAILED)


def _again(folder: Path) -> bool:
    if (words := folders.try_again(folder)) is not None:
        print(f"run {folder.name} failed: {words}", flush=True)
    return words is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
