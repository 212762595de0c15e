"""Everything in a study that is not done yet: what all sweeps have in common, wherever they let it run."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from vitscale.errors import INVALID_STUDY, MISSING, VitscaleError
from vitscale.files import disk_errors
from vitscale.launch import folders, trunks
from vitscale.launch.board import Board
from vitscale.launch.collect import collect, collect_orphan
from vitscale.launch.machine import Machine, Places
from vitscale.launch.progress import summary, title
from vitscale.lease import Watch
from vitscale.processes import STOP_SIGNALS
from vitscale.results.store import Held, write_plan
from vitscale.study.job import Job
from vitscale.study.load import Study
from vitscale.study.plan import Plan, plan

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a sweep ended."""

    done: int
    failed: int
    unfinished: int
    """Neither done nor failed, those that still wait for [select] included."""
    interrupted: bool


TRIES = 3
"""How often one sweep starts a job that ends without an outcome: pre-empted, or brought down by a sibling."""


def everything(job: Job) -> bool:
    """The filter that takes all jobs."""
    del job
    return True


def current_plan(study: Study, runs: Path, wanted: Callable[[Job], bool] = everything, *, share: bool = True) -> Plan:
    """The plan with every selection that the finished runs allow, and the trunks that wanted runs still need.

    Without `share` every run trains alone.
    """
    now = plan(study, {})
    tuning = [job.id for job in now.jobs if job.role == "tuning"]
    if tuning:
        now = plan(study, folders.scores(runs, tuning))
    if not share:
        return Plan(jobs=tuple(trunks.alone(now.jobs)), waiting=tuple(trunks.alone(now.waiting)))
    return replace(now, jobs=tuple(trunks.as_needed(now.jobs, runs, wanted)))


@dataclass(kw_only=True)
class Sweep(ABC):
    """One call of `vitscale sweep`: what it knows of the study, whatever runs it."""

    study: Study
    places: Places
    machine: Machine
    say: Say
    tick: Callable[[Callable[[], Board]], None] = lambda _: None
    """Called about every second, with what shows how things stand."""
    only: Callable[[Job], bool] = everything
    share: bool = True
    fail_fast: bool = False
    accept_code_change: bool = False
    stopping: bool = field(default=False, init=False)
    stops: int = field(default=0, init=False)
    """0: no signal came; 1: stop after saving; 2: now."""
    tries: Counter[str] = field(default_factory=Counter, init=False)
    """How often a run was started, by its id."""
    refused: list[VitscaleError] = field(default_factory=list, init=False)
    watch: Watch = field(default_factory=Watch, init=False)
    waiting_for: str = field(default="", init=False)

    @abstractmethod
    def run(self) -> Ended:
        """Works until nothing is left that could be started."""

    @abstractmethod
    def _stop_all(self) -> None:
        """Asks everything that it has started for a checkpoint and an end."""

    @abstractmethod
    def _signalled(self, *, now: bool) -> None:
        """In a signal's handler. `now`: it came twice."""

    def _plan(self) -> Plan:
        now = current_plan(self.study, self.places.runs, self.only, share=self.share)
        with disk_errors(self.places.runs):
            trunks.ask(now.jobs, self.places.runs)
        return now

    def _record(self, now: Plan) -> None:
        """Which runs the study holds now, for those who read its results meanwhile."""
        with disk_errors(self.places.results):
            held = Held(frozenset(job.id for job in now.jobs if job.kind != "import"), waiting=len(now.waiting))
            write_plan(self.places.results / self.study.name, held)

    def _prepared(self, job: Job) -> Path | None:
        """The job's folder; None, and a word about it, where it must not be touched."""
        try:
            return folders.prepare(
                job,
                self.places.runs,
                base=self.study.base,
                machine=self.machine.told(),
                accept_code_change=self.accept_code_change,
            )
        except VitscaleError as error:
            if error.exit_code != INVALID_STUDY:
                raise
            self.tries[job.id] = TRIES
            self.refused.append(error)
            self.say(f"refused  {title(job)}: {error.problems[0].message}")
            return None

    def _is_held(self, job: Job) -> bool:
        return self.watch.is_held(self.places.runs / job.id)

    def _others_at_work(self, now: Plan) -> bool:
        """Whether another sweep is busy with a run of this study."""
        held = [job for job in now.jobs if self.only(job) and self._is_held(job)]
        words = "waiting for other processes to let go of: " + ", ".join(job.id for job in held)
        if held and words != self.waiting_for:
            self.say(words)
            self.waiting_for = words
        return bool(held)

    def _collect(self, job: Job) -> bool:
        """Writes the job's rows; False where it has not ended."""
        return collect(job, self.places.runs, self.places.results, self.study.name)

    def _left(self, now: Plan) -> int:
        """Jobs that have not ended."""
        left = sum(self.only(job) and folders.outcome_of(job, self.places.runs) is None for job in now.jobs)
        return left + sum(self.only(job) for job in now.waiting)

    def _report(self, job: Job, left: int) -> None:
        """Says how a job ended, and how many are left."""
        outcome = folders.result(self.places.runs / job.id)
        assert outcome is not None  # collected
        if outcome["status"] == "failed":
            self.say(f"failed   {title(job)}: {outcome['reason']}  ({left} left)")
            if self.fail_fast:
                self.stopping = True
                self._stop_all()
            return
        self.say(f"done     {title(job)}: {summary(outcome)}  ({left} left)")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            # A scheduler may say it twice; who is impatient, by Ctrl-C.
            twice, self.stopping = self.stopping and number == signal.SIGINT, True
            self.stops = 2 if twice else max(self.stops, 1)
            self._signalled(now=twice)

        before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ended(self) -> Ended:
        """Rows are written again for all: a tuning run may have become a cell, and another study may have run it."""
        last = self._plan()
        self._record(last)
        before: dict[str, Job] = {}
        for job in last.jobs:
            before[job.id] = job
            if not self._collect(job):
                failed = self._failed_before(job, before)
                if failed is not None:
                    collect_orphan(job, *failed, self.places.results, self.study.name)
        wanted = [job for job in last.jobs if self.only(job)]
        states = Counter(folders.state_of(job, self.places.runs) for job in wanted)
        unfinished = len(wanted) - states["done"] - states["failed"]
        return Ended(
            done=states["done"],
            failed=states["failed"],
            unfinished=unfinished + sum(self.only(job) for job in last.waiting),
            interrupted=self.stopping and unfinished > 0 and not self.fail_fast,
        )

    def _failed_before(self, job: Job, jobs: Mapping[str, Job]) -> tuple[Job, dict[str, Any]] | None:
        """What a job cannot begin without and what became of that, if it failed: its pre-training, or its trunk."""
        if job.branch is not None and not trunks.waits(job, self.places.runs):
            return None
        origin = jobs.get(job.branch.trunk if job.branch else job.parent or "")
        if origin is None:
            return None
        outcome = folders.outcome_of(origin, self.places.runs)
        if outcome is None:
            return self._failed_before(origin, jobs)
        return (origin, outcome) if outcome["status"] == "failed" else None


def not_saved(folder: Path) -> VitscaleError:
    """Of a worker that ended because the disk refused what it wrote."""
    return VitscaleError(
        f"{folder}: the disk took no checkpoint, or no line of a log",
        hint="free some disk space and start the same command again: it goes on from the last checkpoint",
        exit_code=MISSING,
    )


def ready(now: Plan, runs: Path, only: Callable[[Job], bool], coming: Container[str] = frozenset()) -> list[list[Job]]:
    """Jobs that could start, in processes: each pre-training alone, the transfers of one start together.

    With what is `coming`, by their ids, so can those that wait for it.

    Pre-training that others wait for comes first (trunks, tuning), then transfers, then the largest pre-training.
    """
    open_jobs = [job for job in now.jobs if only(job) and folders.outcome_of(job, runs) is None]
    done = {job.id for job in now.jobs if (folders.result(runs / job.id) or {}).get("status") == "done"}
    together: dict[str, list[Job]] = {}
    alone: list[Job] = []
    for job in open_jobs:
        if job.kind != "transfer":
            if job.branch is None or job.branch.trunk in coming or not trunks.waits(job, runs):
                alone.append(job)
        elif job.parent is None:
            together.setdefault(f"baselines of {job.run.model.name}", []).append(job)
        elif job.parent in done or job.parent in coming:
            together.setdefault(job.parent, []).append(job)
    alone.sort(key=lambda job: (job.role != "trunk", job.role != "tuning", job.kind != "import", -job.flops))
    awaited = [[job] for job in alone if job.role in ("trunk", "tuning")]
    rest = [[job] for job in alone if job.role not in ("trunk", "tuning")]
    return [*awaited, *together.values(), *rest]


def retry_failed(jobs: Sequence[Job], runs: Path) -> int:
    """Puts failed outcomes aside, so that their runs are tried again; returns how many."""
    failed = [job for job in jobs if folders.state_of(job, runs) == "failed"]
    for job in failed:
        folders.set_aside(runs / job.id)
    return len(failed)
