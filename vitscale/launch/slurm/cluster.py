"""What Slurm's own commands say and do: sbatch, squeue, scontrol, sacct, scancel."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitscale.errors import MISSING, VitscaleError

LIVE = {"PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "STOPPED", "SIGNALING", "STAGE_OUT"}
LIVE |= {"REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
"""States of jobs that will still do something."""
SECONDS = 60.0
"""For an answer of a controller that is busy."""
MAX_ARRAY = 1001
"""Slurm's own default of MaxArraySize."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What Slurm knows of a job, or of one task of an array."""

    job: str
    """`123`, or `123_4`."""
    state: str
    """In Slurm's words: PENDING, RUNNING, TIMEOUT, ..."""
    reason: str = ""

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    @property
    def words(self) -> str:
        """`Slurm job 123_4 PENDING (Priority)`."""
        why = f" ({self.reason})" if self.reason not in ("", "None") else ""
        return f"Slurm job {self.job} {self.state}{why}"


def submit(script: Path, *, after: str | None) -> str:
    """Hands a script to sbatch; returns the job's number.

    Raises:
        VitscaleError: there is no sbatch here, or it refuses (exit 5).
    """
    options = ["--parsable", *([f"--dependency={after}", "--kill-on-invalid-dep=yes"] if after else [])]
    ended = _asked(["sbatch", *options, str(script)])
    if ended.returncode:
        raise VitscaleError(
            f"sbatch: {_last_line(ended.stderr)}",
            hint="mend [launcher.slurm] in the study, or in ~/.config/vitscale/config.toml",
            exit_code=MISSING,
        )
    return ended.stdout.strip().partition(";")[0]


def queue(names: Iterable[str]) -> dict[str, dict[int, Entry]]:
    """What is queued or running of this user's jobs with these names: name -> task of the array, or 0 -> entry.

    Raises:
        VitscaleError: squeue gives no answer (exit 5).
    """
    ended = _asked(["squeue", "--me", "--all", "--array", "--noheader", "--format=%i|%T|%j|%r"])
    if ended.returncode:
        raise no_answer("squeue", ended)
    wanted = set(names)
    found: dict[str, dict[int, Entry]] = {}
    for line in ended.stdout.splitlines():
        job, state, name, reason = line.split("|", 3)
        if name in wanted:
            for task in _tasks(job):
                found.setdefault(name, {})[task] = Entry(_of_task(job, task), state, reason)
    return found


def ended_as(job: str) -> dict[int, Entry]:
    """The last that Slurm knows of a job's tasks: of its controller, which soon forgets, or else of its accounting."""
    shown = _asked(["scontrol", "show", "job", "--oneliner", job])
    if not shown.returncode:
        return dict(_shown(shown.stdout))
    kept = _asked(["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=JobID,State"])
    found = {}
    for line in kept.stdout.splitlines() if not kept.returncode else ():
        name, _, state = line.partition("|")
        for task in _tasks(name):
            found[task] = Entry(_of_task(name, task), state.split()[0] if state.split() else "UNKNOWN")
    return found


def release(job: str) -> None:
    """Lets a job begin that waits for another one; where it cannot be, it goes on waiting."""
    _asked(["scontrol", "update", f"JobId={job}", "Dependency="])


def cancel(jobs: Sequence[str]) -> None:
    """Asks jobs to save and end."""
    if jobs:
        _asked(["scancel", *jobs])


def max_array() -> int:
    """The cluster's MaxArraySize: one more than the highest number of a task.

    Raises:
        VitscaleError: there is no Slurm here, or it gives no answer (exit 5).
    """
    ended = _asked(["scontrol", "show", "config"])
    if ended.returncode:
        raise no_answer("scontrol", ended)
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ended.stdout, re.MULTILINE)
    return int(found[1]) if found else MAX_ARRAY


def _asked(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    except FileNotFoundError:
        raise VitscaleError(
            f"there is no {command[0]} here",
            hint="start it where jobs are submitted from; without --launcher slurm runs start on this machine",
            exit_code=MISSING,
        ) from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {SECONDS:g} s")


def no_answer(program: str, ended: subprocess.CompletedProcess[str]) -> VitscaleError:
    return VitscaleError(
        f"{program}: {_last_line(ended.stderr)}",
        hint="jobs that were submitted go on; the same command finds them when Slurm answers again",
        exit_code=MISSING,
    )


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "no message").removeprefix("sbatch: error: ")


def _shown(text: str) -> Iterator[tuple[int, Entry]]:
    for line in text.splitlines():
        facts = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "JobState" in facts:
            job = facts["JobId"]
            if "ArrayJobId" in facts:
                job = f"{facts['ArrayJobId']}_{_bracketed(facts['ArrayTaskId'])}"
            for task in _tasks(job):
                yield task, Entry(_of_task(job, task), facts["JobState"], facts.get("Reason", ""))


def _bracketed(tasks: str) -> str:
    return tasks if tasks.isdecimal() else f"[{tasks}]"


def _tasks(job: str) -> list[int]:
    """The tasks that `123_4`, `123_[5-8,11%2]` or `123` stands for; 0 of a job that is no array."""
    _, _, listed = job.partition("_")
    if not listed:
        return [0]
    found: list[int] = []
    for part in listed.strip("[]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        last, _, step = last.partition(":")
        found += range(int(first), int(last or first) + 1, int(step or 1))
    return found


def _of_task(job: str, task: int) -> str:
    number, underscore, _ = job.partition("_")
    return f"{number}_{task}" if underscore else number
