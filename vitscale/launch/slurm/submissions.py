"""What was handed to Slurm: a folder each, `<runs>/slurm/<name>/`, with the script, its jobs' output, and its record.

The name is the job's in Slurm, too. So a job is found by whoever looks, also where the sweep that submitted it died
before it could note the number, and where a person has submitted the script again.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vitscale.errors import VitscaleError
from vitscale.files import write_whole
from vitscale.launch.slurm import cluster
from vitscale.launch.slurm.cluster import LACKED, Entry, Submitted

FOLDER = "slurm"
SCRIPT = "job.sh"
RECORD = "submission.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One script: an array, or a single job, whose task 0 it then is."""

    name: str
    study: str
    array: bool
    tasks: Mapping[int, tuple[str, ...]]
    """Of each task the ids of the runs that it works on, in turn."""
    job: str = ""
    """Slurm's number; empty until sbatch has told it."""

    def job_of(self, task: int) -> str:
        return f"{self.job}_{task}" if self.array else self.job

    def pending(self, task: int) -> Place:
        """As long as nobody has asked Slurm."""
        return Place(self, task, Entry(self.job_of(task), "PENDING"))


def new_folder(runs: Path, study: str, label: str) -> Path:
    """A folder for the next submission; its name is that of no other, on no other cluster either."""
    place = runs / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    number = 1 + max((_number(path / RECORD) for path in place.iterdir()), default=0)
    words = re.sub(r"[^A-Za-z0-9.+]+", "-", f"{study}-{label}").strip("-")
    folder = place / f"{number:04}-{words[:60]}-{secrets.token_hex(4)}"
    folder.mkdir()
    return folder


def _number(record: Path) -> int:
    """By which submissions are ordered."""
    found = re.match(r"\d+", record.parent.name)
    return int(found[0]) if found else 0


def output(runs: Path, name: str, task: int) -> Path:
    """What a job's script and srun have printed."""
    return runs / FOLDER / name / f"{task}.txt"


def write(runs: Path, submission: Submission) -> None:
    told = json.dumps(asdict(submission), indent=1).encode()
    write_whole(runs / FOLDER / submission.name / RECORD, told)


def submit(runs: Path, submission: Submission, *, after: str | None) -> Submission:
    """With the number that Slurm has given it.

    Raises:
        VitscaleError: Slurm refuses it, or there is none (exit 5).
    """
    folder = runs / FOLDER / submission.name
    try:
        job = cluster.submit(folder / SCRIPT, after=after)
    except VitscaleError:
        accepted = cluster.queue([submission.name])  # by a controller whose answer came too late
        if not accepted:
            shutil.rmtree(folder)  # a sweep asks again and again
            raise
        job = next(iter(accepted[submission.name].values())).job.partition("_")[0]
    submission = replace(submission, job=job)
    write(runs, submission)
    return submission


def read_all(runs: Path) -> list[Submission]:
    """The oldest first; what is damaged, or was not written to its end, is left out: nothing was submitted with it."""
    found = []
    for path in sorted((runs / FOLDER).glob(f"*/{RECORD}"), key=_number):
        with suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(path.read_text())
            tasks = {int(task): tuple(ids) for task, ids in told.pop("tasks").items()}
            found.append(Submission(**told, tasks=tasks))
    return found


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run stands with Slurm."""

    submission: Submission
    task: int
    entry: Entry | None
    """None: Slurm knows nothing of it any more."""

    @property
    def is_live(self) -> bool:
        return self.entry is not None and self.entry.is_live

    @property
    def is_running(self) -> bool:
        return self.entry is not None and self.entry.state == "RUNNING"

    @property
    def job(self) -> str:
        return self.entry.job if self.entry else self.submission.job_of(self.task)

    @property
    def lacked_another(self) -> bool:
        """Whether Slurm has given it up because what it waited for had failed."""
        return self.entry is not None and self.entry.reason == LACKED

    @property
    def was_cancelled(self) -> bool:
        return self.entry is not None and self.entry.state == "CANCELLED"

    @property
    def words(self) -> str:
        return self.entry.words if self.entry else f"Slurm job {self.job} is gone"


def describe(place: Place | None) -> dict[str, str | None] | None:
    """As JSON tells it."""
    if place is None:
        return None
    entry = place.entry
    return {"job": place.job, "state": entry.state if entry else None, "reason": entry.reason if entry else None}


def queued_words(places: Mapping[str, Place]) -> str:
    """How many runs wait in the queue; empty where none does."""
    queued = sum(place.entry is not None and place.entry.state == "PENDING" for place in places.values())
    return f"{queued} queued in Slurm" if queued else ""


def standing(runs: Path, ids: Iterable[str]) -> dict[str, Place]:
    """Of each of these runs that was submitted where it stands: by its live job, or else by its newest.

    Raises:
        VitscaleError: there is no Slurm here, or it gives no answer (exit 5).
    """
    wanted = set(ids)
    newest: dict[str, list[tuple[Submission, int]]] = {}
    for submission in read_all(runs):
        for task, of_task in submission.tasks.items():
            for id_ in wanted.intersection(of_task):
                newest.setdefault(id_, []).insert(0, (submission, task))
    concerned = {submission.name: submission for each in newest.values() for submission, _ in each}
    if not concerned:
        return {}
    live = cluster.queue(concerned)
    places = {id_: _live(each, live) for id_, each in newest.items()}
    ended = _ended([newest[id_][0] for id_, place in places.items() if place is None])
    return {id_: place or _left(*newest[id_][0], ended) for id_, place in places.items()}


def _live(submitted: Sequence[tuple[Submission, int]], queue: Mapping[str, Mapping[int, Entry]]) -> Place | None:
    for submission, task in submitted:
        if (entry := queue.get(submission.name, {}).get(task)) is not None:
            return Place(submission, task, entry)
    return None


def _ended(asked: Iterable[tuple[Submission, int]]) -> Mapping[str, Mapping[int, Entry]]:
    """What Slurm knows of tasks that have left the queue."""
    tasks: dict[str, set[int]] = {}
    jobs = {}
    for submission, task in asked:
        if submission.job:
            jobs[submission.name] = submission.job
            tasks.setdefault(submission.name, set()).add(task)
    return cluster.ended_as([Submitted(job, name, tasks[name]) for name, job in jobs.items()])


def _left(submission: Submission, task: int, ended: Mapping[str, Mapping[int, Entry]]) -> Place:
    return Place(submission, task, ended.get(submission.name, {}).get(task))
