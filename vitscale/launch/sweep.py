"""Everything in a study that is not done yet: what all sweeps have in common, wherever they let it run."""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import FrameType

from vitscale import checkpoints
from vitscale.errors import MISSING, Problem, VitscaleError
from vitscale.files import disk_errors
from vitscale.launch import folders, trunks, undecided
from vitscale.launch.board import Board
from vitscale.launch.collect import collect, collect_orphan
from vitscale.launch.machine import Machine, Places
from vitscale.launch.progress import summary, title
from vitscale.launch.record import Record
from vitscale.launch.standing import OPEN, can_choose, scores, states, stopper, stuck, with_causes
from vitscale.launch.unusable import Unusable, Unwritable
from vitscale.lease import Watch, gone
from vitscale.processes import STOP_SIGNALS
from vitscale.study.job import Job
from vitscale.study.load import Study
from vitscale.study.plan import Plan, plan

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a sweep ended. Each job that it was to run is in one of the first four."""

    done: int
    failed: int
    refused: int
    """Their folders must not be touched, and they are not done."""
    unfinished: int
    """Neither done, failed nor refused, those that still wait for [select] included."""
    stuck: int
    """Of these, what waits for a run that has failed or is refused."""
    interrupted: bool
    beside: int
    """Runs that the study on record does not hold: results leave them out."""


TRIES = 3
"""How often one sweep starts a job that ends without an outcome: pre-empted, or brought down by a sibling."""


def everything(job: Job) -> bool:
    """The filter that takes all jobs."""
    del job
    return True


def current_plan(
    study: Study,
    runs: Path,
    wanted: Callable[[Job], bool] = everything,
    *,
    share: bool = True,
    ended: Container[str] = frozenset(),
) -> Plan:
    """The plan with every selection that the finished runs allow, and the trunks that wanted runs still need.

    Without `share` every run trains alone. `ended`: trunks that nobody here can train further.
    """
    now = plan(study, {})
    if study.select is not None:
        now = plan(study, scores(now.jobs, runs, shared=share))

    def resolved(jobs: Iterable[Job], wanted: Callable[[Job], bool]) -> tuple[Job, ...]:
        jobs = trunks.rejoined(jobs, runs)
        return tuple(trunks.as_needed(jobs, runs, wanted, ended) if share else trunks.alone(jobs, runs))

    jobs = resolved(now.jobs, wanted)
    return replace(now, jobs=jobs, waiting=tuple(undecided.waiting(now, jobs, runs, wanted, resolved, share=share)))


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
    overrides: tuple[str, ...] = ()
    """Settings of the command line that replace the study's own."""
    reload: Callable[[], Study] | None = None
    """Reads the study's file again, with the same overrides: somebody may have edited it."""
    stopping: bool = field(default=False, init=False)
    stops: int = field(default=0, init=False)
    """0: no signal came; 1: stop after saving; 2: now."""
    tries: Counter[str] = field(default_factory=Counter, init=False)
    """How often a run was started, by its id."""
    refused: dict[str, Problem] = field(default_factory=dict, init=False)
    """Runs whose folders must not be touched, by their ids, and why."""
    refused_code: int = field(default=0, init=False)
    """The exit code that this deserves."""
    closed: set[str] = field(default_factory=set, init=False)
    """Trunks whose folders take no files: their runs start from what lies there, or alone."""
    deaf: set[str] = field(default_factory=set, init=False)
    """Trunks in training that cannot be asked to save for more runs."""
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
        now = current_plan(self.study, self.places.runs, self.only, share=self.share, ended=self.closed)
        for id_, error in trunks.ask(now.jobs, self.places.runs, self.study).items():
            if id_ not in self.deaf:
                self.deaf.add(id_)
                self.say(f"{error.problems[0].message}: what leaves trunk {id_} starts from the checkpoint before")
        return now

    @cached_property
    def record(self) -> Record:
        """Which runs the study holds, for those who read its results meanwhile."""
        return Record(
            place=self.places.results / self.study.name,
            study=self.study,
            plan_of=lambda study: current_plan(study, self.places.runs),
            settings=self.overrides,
            reload=self.reload,
        )

    def _record(self, now: Plan) -> None:
        """All that the study holds, whichever of it this sweep runs, and however.

        Raises:
            VitscaleError: there can be no folder of runs (exit 5), so that this sweep takes nobody's record over.
        """
        with disk_errors(self.places.runs.parent):
            self.places.runs.mkdir(parents=True, exist_ok=True)
        whole = now if self.only is everything and self.share else current_plan(self.study, self.places.runs)
        if (other := self.record.displaces()) is not None:
            self.say(
                f"note: {self.record.place} held the results of {os.path.relpath(other)}, another study of this name: "
                "results, fit and report leave them out from now on"
            )
            self.say("hint: rename one of the two, or give it another folder with --results")
        with disk_errors(self.places.results):
            self.record.update(whole)

    def _prepared(self, job: Job) -> Path | None:
        """The job's folder; None, and a word about it, where it must not be touched."""
        try:
            return folders.prepare(
                job,
                self.places.runs,
                base=self.study.base,
                machine=self.machine.told(),
                accept_code_change=self.accept_code_change,
                study=self.study.file,
            )
        except Unusable as error:
            if job.role == "trunk" and isinstance(error, Unwritable):
                self.closed.add(job.id)
            self._refuse(job, error.problems[0], error.exit_code)
            return None

    def _refuse(self, job: Job, problem: Problem, code: int) -> None:
        self.tries[job.id] = TRIES
        self.refused_code = max(self.refused_code, code)
        if job.id not in self.refused:
            self.refused[job.id] = problem
            self.say(f"refused  {title(job)}: {problem.message}")

    def _try_again(self, now: Plan) -> None:
        """Once, at the beginning: what failed and nobody was left to try again.

        Where others are at work they see to what they have started, which may be known to have failed before it ends.
        """
        runs = self.places.runs
        found = ((job, folders.outcome_of(job, runs) or {}) for job in now.jobs if self.only(job))
        failed = [job for job, told in found if told.get("status") == "failed" and not told.get("provisional")]
        if not failed or any(self._is_held(job) for job in now.jobs):
            return
        submitted = self._submitted(job.id for job in failed)
        for job in (job for job in failed if job.id not in submitted):
            with suppress(VitscaleError):  # it stays failed, and says so in the end
                if (words := folders.try_again(runs / job.id)) is not None:
                    self.say(f"failed   {title(job)}: {words}")

    def _submitted(self, ids: Iterable[str]) -> set[str]:
        """Those of these runs that are still in somebody's queue."""
        del ids
        return set()

    def _is_held(self, job: Job) -> bool:
        return self.watch.is_held(self.places.runs / job.id)

    def _others_at_work(self, now: Plan) -> bool:
        """Whether another sweep is busy with a run of this study."""
        runs, wanted = self.places.runs, [job for job in now.jobs if self.only(job)]
        branches = (job for job in wanted if job.branch and folders.outcome_of(job, runs) is None)
        left = {job.branch.trunk for job in branches if job.branch and trunks.waits(job, runs)}
        awaited = (job for job in wanted if job.id in left or not trunks.is_others(job, "running"))
        held = [job for job in awaited if self._is_held(job)]
        words = "waiting for other processes to let go of: " + ", ".join(job.id for job in held)
        if held and words != self.waiting_for:
            self.say(words)
            self.waiting_for = words
        return bool(held)

    def _collect(self, job: Job) -> bool:
        """Writes the job's rows; False where it has not ended, or where its folder is no record of it."""
        ended = folders.outcome(self.places.runs / job.id)
        if ended is not None and ended["status"] == "refused":
            self._refuse(job, Problem(ended["reason"], ended["hint"]), ended["exit_code"])
            return False
        try:
            return collect(job, self.places.runs, self.places.results, self.study.name)
        except Unusable as error:
            self._refuse(job, error.problems[0], error.exit_code)
            return False

    def _left(self, now: Plan) -> int:
        """Jobs that can still be done."""
        standing = states(now.jobs, self.places.runs)
        open_jobs = [job for job in now.jobs if self.only(job) and standing[job.id] in OPEN]
        left = sum(not trunks.is_others(job, standing[job.id]) for job in open_jobs)
        return left + sum(self.only(job) for job in now.waiting)

    def _report(self, job: Job, left: int) -> None:
        """Says how a job ended, and how many are left."""
        folder = self.places.runs / job.id
        outcome = folders.as_needed(job, folder, folders.result(folder))
        if outcome is None:  # it was there a moment ago: another sweep has just begun, and tries it again
            return
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
        last, runs = self._plan(), self.places.runs
        self._record(last)
        if self.share:
            trunks.settle(last, self.study, runs)
        jobs = {job.id: job for job in last.jobs}
        own: dict[str, str] = {job.id: folders.state_of(job, runs) for job in last.jobs}
        for job in last.jobs:
            if not self._collect(job):
                by = job if own[job.id] == "refused" else stopper(job, jobs, own, runs)
                outcome = None if by is None else folders.outcome_of(by, runs)
                if by is not None and outcome is not None and outcome["status"] in ("failed", "refused"):
                    collect_orphan(job, by, outcome, self.places.results, self.study.name)
        wanted = [job for job in last.jobs if self.only(job) and not trunks.is_others(job, own[job.id])]
        waiting = sum(self.only(job) for job in last.waiting)
        # A folder may be whole and not for this sweep: half done by other code, or one that takes no files.
        own |= {id_: "refused" for id_ in self.refused if own.get(id_) in OPEN}
        standing = with_causes(jobs, own, runs)
        counts = Counter(standing[job.id] for job in wanted)
        open_ = sum(counts[state] for state in OPEN)
        held_back = stuck(standing, wanted) + (0 if can_choose(last.jobs, standing) else waiting)
        return Ended(
            done=counts["done"],
            failed=counts["failed"],
            refused=counts["refused"],
            unfinished=open_ + stuck(standing, wanted) + waiting,
            stuck=held_back,
            interrupted=self.stopping and open_ + waiting > 0 and not self.fail_fast,
            beside=self.record.beside(last),
        )


def not_saved(folder: Path) -> VitscaleError:
    """Of a worker that ended because the disk refused what it wrote, or its folder is no longer there."""
    if not folder.is_dir():
        return gone(folder)
    if not os.access(folder, os.W_OK):
        return VitscaleError(
            f"{folder}: it takes no files any more",
            hint="make it one that can be written to and start the same command again",
            exit_code=MISSING,
        )
    return VitscaleError(
        f"{folder}: the disk took no checkpoint, or no line of a log",
        hint=f"free some disk space and start the same command again: it {checkpoints.way_on(folder)}",
        exit_code=MISSING,
    )


def ready(now: Plan, runs: Path, only: Callable[[Job], bool], coming: Container[str] = frozenset()) -> list[list[Job]]:
    """Jobs that could start, in processes: each pre-training alone, the transfers of one start together.

    With what is `coming`, by their ids, so can those that wait for it.

    Pre-training that others wait for comes first (trunks, tuning), then transfers, then the largest pre-training.
    """
    standing = states(now.jobs, runs)
    open_jobs = [job for job in now.jobs if only(job) and standing[job.id] in OPEN]
    done = {id_ for id_, state in standing.items() if state == "done"}
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


def retry_failed(jobs: Sequence[Job], runs: Path, say: Say = lambda _: None) -> int:
    """Puts failed outcomes aside, so that their runs are tried again; returns how many. It says where it cannot."""
    failed = [job for job in jobs if folders.state_of(job, runs) == "failed"]
    count = 0
    for job in failed:
        try:
            folders.set_aside(runs / job.id, asked=True)
            count += 1
        except Unwritable as error:
            say(f"refused  {title(job)}: {error.problems[0].message}")
    return count
