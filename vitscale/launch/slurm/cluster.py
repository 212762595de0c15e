"""What Slurm's own commands say and do: sbatch, squeue, scontrol, sacct, scancel."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vitscale.errors import MISSING, VitscaleError

LIVE = {"PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "STOPPED", "SIGNALING", "STAGE_OUT"}
LIVE |= {"REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
"""States of jobs that will still do something."""
SECONDS = 60.0
"""For an answer of a controller that is busy."""
SECONDS_OF_ACCOUNTS = 20.0
"""For one of sacct, without which the rest goes on; it would wait for a slurmdbd that hangs for 45."""
MAX_ARRAY = 1001
"""Slurm's own default of MaxArraySize."""
OPTION = "#SBATCH "
OPTIONS = ("SLURM_", "SQUEUE_", "SACCT_", "SCONTROL_", "SCANCEL_", "SBATCH_WAIT")
"""Beginnings of variables that are options of Slurm's commands."""
OF_THE_SITE = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
LACKED = "DependencyNeverSatisfied"
"""Why a job was cancelled that waited for one which has failed."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job, or an array, and which of its tasks are asked for."""

    job: str
    name: str
    """Of no other job; its number may be another's, where a controller has lost its state or has come to the last."""
    tasks: Set[int]


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
    ended = _asked(["sbatch", *_written(script), *options, str(script)])
    if ended.returncode:
        raise VitscaleError(
            f"sbatch: {_last_line(ended.stderr)}",
            hint="mend [launcher.slurm] in the study, or in ~/.config/vitscale/config.toml",
            exit_code=MISSING,
        )
    return ended.stdout.strip().partition(";")[0]


def _written(script: Path) -> list[str]:
    """The options that stand in a script: there the variables of a user or a site (`SBATCH_PARTITION`) would win."""
    lines = (line for line in script.read_text().splitlines() if line.startswith(OPTION))
    return [word for line in lines for word in shlex.split(line.removeprefix(OPTION))]


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


def ended_as(asked: Sequence[Submitted]) -> dict[str, dict[int, Entry]]:
    """The last that Slurm knows of jobs that are not in the queue: name -> task -> entry.

    The controller soon forgets, task by task; of what it has forgotten the accounts tell, where the cluster keeps any.
    """
    found = {job.name: dict(_shown(job)) for job in asked}
    forgotten = [job for job in asked if job.tasks - found[job.name].keys()]
    if forgotten:
        with suppress(VitscaleError):  # there is no sacct here
            for name, task, entry in _accounted(forgotten):
                found[name].setdefault(task, entry)
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


def _environment() -> dict[str, str]:
    """Without what would change an answer: a user's `SQUEUE_STATES`, or the memory of a job that this runs in."""
    kept = {name: value for name, value in os.environ.items() if name in OF_THE_SITE or not name.startswith(OPTIONS)}
    return {**kept, "SLURM_BITSTR_LEN": "0"}  # numbers of tasks, however many: no `1,3,5,...`


def _asked(command: Sequence[str], seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    environment = _environment()
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds, env=environment, errors="replace"
        )
    except FileNotFoundError:
        raise VitscaleError(
            f"there is no {command[0]} here",
            hint="start it where jobs are submitted from; without --launcher slurm runs start on this machine",
            exit_code=MISSING,
        ) from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {seconds:g} s")


def no_answer(program: str, ended: subprocess.CompletedProcess[str]) -> VitscaleError:
    return VitscaleError(
        f"{program}: {_last_line(ended.stderr)}",
        hint="jobs that were submitted go on; the same command finds them when Slurm answers again",
        exit_code=MISSING,
    )


def _last_line(text: str) -> str:
    return next(reversed(text.strip().splitlines()), "no message").removeprefix("sbatch: error: ")


def _shown(job: Submitted) -> Iterator[tuple[int, Entry]]:
    """As the controller knows it."""
    shown = _asked(["scontrol", "show", "job", "--oneliner", job.job])
    for line in shown.stdout.splitlines() if not shown.returncode else ():
        facts = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "JobState" in facts and facts.get("JobName") == job.name:
            number = job.job
            if "ArrayJobId" in facts:
                number = f"{facts['ArrayJobId']}_{_bracketed(facts['ArrayTaskId'])}"
            for task in _tasks(number):
                yield task, Entry(_of_task(number, task), facts["JobState"], facts.get("Reason", ""))


def _accounted(jobs: Sequence[Submitted]) -> Iterator[tuple[str, int, Entry]]:
    """As the accounts know them; all at once, since every question is work for the one slurmdbd of a site.

    A job that they believe to be alive, but which the controller does not know, is lost: nothing is told of it.
    """
    numbers = ",".join(job.job for job in jobs)
    options = ["--noheader", "--parsable2", "--allocations", "--format=JobID,JobName,State,Reason"]
    kept = _asked(["sacct", *options, f"--jobs={numbers}"], SECONDS_OF_ACCOUNTS)
    names = {job.name for job in jobs}
    for line in kept.stdout.splitlines() if not kept.returncode else ():
        job, name, told, waited_for = line.split("|")
        state = told.partition(" ")[0]  # of `CANCELLED by 1000`
        if name in names and state not in LIVE:
            # By nobody, while it waited for another one. The reasons of all others are what they waited for, too.
            given_up = told == "CANCELLED" and waited_for == "Dependency"
            for task in _tasks(job):
                yield name, task, Entry(_of_task(job, task), state, LACKED if given_up else "")


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
