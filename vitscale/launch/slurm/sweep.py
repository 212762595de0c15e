"""A sweep that hands its runs to Slurm, watches them, and records what has ended.

It may end and be started again at any moment: what it has submitted goes on, and the next one finds it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vitscale import checkpoints
from vitscale.errors import RUN_FAILED, VitscaleError
from vitscale.failures import Failure
from vitscale.files import disk_errors, locked
from vitscale.launch import folders, trunks
from vitscale.launch.board import Board, board
from vitscale.launch.progress import title
from vitscale.launch.slurm import cluster, submissions
from vitscale.launch.slurm.arrays import Array, Unit, arrays
from vitscale.launch.slurm.script import Shape, Task, script
from vitscale.launch.slurm.submissions import Place, Submission
from vitscale.launch.sweep import TRIES, Ended, Sweep, ready
from vitscale.study.job import Job
from vitscale.study.launcher import Slurm
from vitscale.study.plan import Plan

LOOK = 10.0
"""Seconds between two questions to Slurm."""
OUT_OF_MEMORY = "OUT_OF_MEMORY"
OF_THE_RUN = {"FAILED", "COMPLETED", OUT_OF_MEMORY}
"""Ends of jobs that come from what ran in them; others are the cluster's, or somebody's."""


@dataclass(kw_only=True)
class SlurmSweep(Sweep):
    """Jobs in the queue of a cluster."""

    settings: Slurm
    nodes: int = 1
    """Of each pre-training; transfers take one."""
    at_once: int | None = None
    """Tasks of one array that run at the same time; None: as many as the cluster lets."""
    max_array: int
    """Tasks of one array at all."""
    detach: bool = False
    """Whether it leaves when all that can be is submitted."""
    standing: dict[str, Place] = field(default_factory=dict, init=False)
    """Of runs that are not done, by their ids."""
    watched: dict[str, frozenset[str]] = field(default_factory=dict, init=False)
    """Of runs that this sweep has seen in the queue: their checkpoints when it last submitted them."""

    looked: bool = field(default=False, init=False)
    said: str = field(default="", init=False)

    def run(self) -> Ended:
        with self._signals():
            while True:
                now, closed = self._plan(), len(self.closed)
                self._record(now)
                try:
                    with self._one_at_a_time():
                        first = not self.looked
                        self._look(now)
                        if first:
                            self._try_again(now)
                        if not self.stopping:
                            self._submit(now)
                except VitscaleError as error:
                    if not self.watched:
                        raise
                    self._say_once(f"{error.problems[0].message}; asking again")
                if len(self.closed) > closed and not self.stopping:
                    continue
                if self.stopping or self.detach or not (self.watched or self._others_at_work(now)):
                    break
                self._wait(now)
            self._say_what_goes_on()
            return self._ended()

    def _submitted(self, ids: Iterable[str]) -> set[str]:
        return {id_ for id_, place in submissions.standing(self.places.runs, ids).items() if place.is_live}

    def _say_once(self, words: str) -> None:
        """Of what may come again at every look."""
        if words != self.said:
            self.say(words)
        self.said = words

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """No two sweeps submit the same run: each looks before it does."""
        place = self.places.runs / submissions.FOLDER
        with disk_errors(place):
            place.mkdir(parents=True, exist_ok=True)
            with locked(place / ".submitting", wait=True):
                yield

    def _look(self, now: Plan) -> None:
        """Finds what is in the queue, and takes note of what has left it."""
        runs = self.places.runs
        wanted = {job.id: job for job in now.jobs if self.only(job)}
        open_ = {id_ for id_, job in wanted.items() if id_ in self.watched or folders.outcome_of(job, runs) is None}
        self.standing = submissions.standing(runs, open_)
        live = {id_ for id_, place in self.standing.items() if place.is_live}
        for id_ in live - self.watched.keys():
            self.watched[id_] = checkpoints.names(runs / id_)
        # What other sweeps have submitted may have ended before it began.
        gone = (self.watched.keys() | self.standing.keys()) - live
        ended = [job for id_, job in wanted.items() if id_ in gone]
        for job in ended:
            self._record_what_the_job_could_not(job)
        # What has ended and nobody has told yet is left until it is: the number goes down by one each time.
        untold = {id_ for id_ in self.watched if id_ in wanted and folders.outcome_of(wanted[id_], runs) is not None}
        left = self._left(now) + len(untold) if ended else 0
        for job in ended:
            if job.id in self.watched:
                left -= job.id in untold
                self._left_the_queue(job, left)
            elif not self.looked:
                self._say_how_it_was_left(job)
        self.looked = True
        for id_ in gone:  # of a trunk that nothing needs any more, too
            self.watched.pop(id_, None)
        for job in wanted.values():
            self._release(job)

    def _left_the_queue(self, job: Job, left: int) -> None:
        """Says what became of a run; one that has not ended can be submitted again."""
        runs, place = self.places.runs, self.standing.get(job.id)
        if not self.stopping and (words := folders.try_again(runs / job.id)) is not None:
            self.tries[job.id] = 0
            self.say(f"failed   {title(job)}: {words}")
            return
        if folders.outcome_of(job, runs) is not None:
            if self._collect(job):
                self._report(job, left)
            return
        if place is not None and place.lacked_another:  # which has said why
            self.tries[job.id] -= 1
            return
        ended = folders.result(runs / job.id)
        if ended is not None and ended["status"] == "done":  # a trunk, of which more runs have come to need more
            self.tries[job.id] = 0
            self.say(f"done     {title(job)}: to step {ended['reached']}; submitted again, to go on to {job.steps}")
            return
        if self.watched[job.id] != checkpoints.names(runs / job.id):
            self.tries[job.id] = 0
        if place is not None and place.was_cancelled:
            self.tries[job.id] = TRIES
        why = place.words if place is not None else "its submission is gone"
        again = "submitted again" if self.tries[job.id] < TRIES else "not submitted again by this command"
        self.say(f"stopped  {title(job)}: {why}; {again}")

    def _say_how_it_was_left(self, job: Job) -> None:
        """Of a run that no sweep watched: what Slurm still knows of its job."""
        place = self.standing.get(job.id)
        ended = folders.result(self.places.runs / job.id)
        if ended is not None and ended["status"] == "done":  # a trunk, of which more is needed since
            return
        if place is not None and place.entry is not None and not place.lacked_another and not self._is_held(job):
            self.say(f"stopped  {title(job)}: {place.words}")

    def _record_what_the_job_could_not(self, job: Job) -> None:
        """Of a script that failed before its runs began, or was itself killed for its memory.

        Once: what is tried again after that has no outcome until it is submitted again.
        """
        runs, place = self.places.runs, self.standing.get(job.id)
        if place is None or place.entry is None or place.entry.state not in OF_THE_RUN:
            return
        known = runs / submissions.FOLDER / place.submission.name / f"{job.id}.recorded"
        began = folders.has_begun(runs / job.id)
        if folders.outcome_of(job, runs) is not None or known.exists():
            return
        if place.entry.state != OUT_OF_MEMORY if began else self._was_not_its_turn(job, place):
            return
        kind, when = (
            (Failure.KILLED, "before its script could say why") if began else (Failure.SETUP, "before the run began")
        )
        hint = f"{submissions.output(runs, place.submission.name, place.task)} has its last words"
        folders.record_failure(runs / job.id, kind, f"{place.words} {when}", hint, RUN_FAILED)
        known.touch()
        self.watched.setdefault(job.id, frozenset())

    def _was_not_its_turn(self, job: Job, place: Place) -> bool:
        """Whether the script came to a run that stands before this one in its task, and no further."""
        ids = place.submission.tasks[place.task]
        return any(folders.has_begun(self.places.runs / id_) for id_ in ids[: ids.index(job.id)])

    def _release(self, job: Job) -> None:
        """Lets a branch begin as soon as its trunk has come to it, rather than to its own end."""
        place = self.standing.get(job.id)
        if job.branch is None or place is None or place.entry is None or place.entry.reason != "Dependency":
            return
        if not trunks.waits(job, self.places.runs):
            cluster.release(place.entry.job)

    def _submit(self, now: Plan) -> None:
        """Whatever can begin, and then what waits for that, until nothing is left to submit."""
        while units := [self._unit(jobs) for jobs in self._could_start(now)]:
            for array in arrays(units, self.max_array):
                self._hand_over(array)

    def _could_start(self, now: Plan) -> list[list[Job]]:
        coming = {id_ for id_, place in self.standing.items() if place.is_live}
        found = ready(now, self.places.runs, self.only, coming)
        return [mine for jobs in found if (mine := [job for job in jobs if job.id not in coming and self._may(job)])]

    def _may(self, job: Job) -> bool:
        if self.tries[job.id] >= TRIES or self._is_held(job):
            return False
        runs, branch = self.places.runs, job.branch
        # A trunk that was submitted for shorter runs is submitted again when it has ended.
        return branch is None or not trunks.waits(job, runs) or folders.goes_to(runs / branch.trunk) >= branch.step

    def _unit(self, jobs: list[Job]) -> Unit:
        first = jobs[0]
        alone = first.kind == "pretrain"
        of = "" if alone else "transfers of " if first.kind == "transfer" else "import of "
        shape = Shape(
            label=f"{of}{first.label}",
            nodes=self.nodes if alone else 1,
            devices=self.machine.devices if alone else 1,
        )
        return Unit(jobs=tuple(jobs), shape=shape, after=self._after(first))

    def _after(self, job: Job) -> Place | None:
        """What must end before it."""
        if job.branch is not None and trunks.waits(job, self.places.runs):
            return self.standing.get(job.branch.trunk)  # none, where another one has just begun to validate it
        parent = self.standing.get(job.parent or "")
        return parent if parent is not None and parent.is_live else None

    def _hand_over(self, array: Array) -> None:
        """Makes the folders of its runs, and submits those that may be touched."""
        tasks = {}
        for number, unit in array.units.items():
            if jobs := [job for job in unit.jobs if self._prepared(job) is not None]:
                tasks[number] = Task(ids=tuple(job.id for job in jobs), title=title(jobs[0]))
        if not tasks:
            return
        runs = self.places.runs.absolute()
        folder = submissions.new_folder(runs, self.study.name, array.shape.label)
        text = script(
            folder,
            self.study.name,
            array.shape,
            tasks,
            array=array.is_array,
            at_once=self.at_once,
            settings=self.settings,
        )
        (folder / submissions.SCRIPT).write_text(text)
        submission = Submission(
            name=folder.name,
            study=self.study.name,
            array=array.is_array,
            tasks={number: task.ids for number, task in tasks.items()},
        )
        submissions.write(runs, submission)
        submission = submissions.submit(runs, submission, after=array.after)
        for number, task in tasks.items():
            for id_ in task.ids:
                self.tries[id_] += 1
                self.standing[id_] = submission.pending(number)
                self.watched[id_] = checkpoints.names(runs / id_)
        words = f"{array.shape.label}, {len(tasks)} tasks" if len(tasks) > 1 else array.shape.label
        self.say(f"submitted {words} as Slurm job {submission.job}: {folder / submissions.SCRIPT}")

    def _wait(self, now: Plan) -> None:
        end = time.monotonic() + LOOK
        while time.monotonic() < end and not self.stopping:
            self.tick(lambda: self._board(now))
            time.sleep(1.0)

    def _board(self, now: Plan) -> Board:
        note = submissions.queued_words(self.standing)
        running = sum(place.entry is not None and place.entry.state == "RUNNING" for place in self.standing.values())
        return board(now, self.places.runs, self.only, at_once=max(running, 1), note=note)

    def _say_what_goes_on(self) -> None:
        jobs = sorted({self.standing[id_].submission.job for id_ in self.watched if id_ in self.standing})
        if jobs and (self.stops or self.detach):
            runs = "1 run goes" if len(self.watched) == 1 else f"{len(self.watched)} runs go"
            self.say(f"{runs} on in Slurm; the same command watches again; scancel {' '.join(jobs)} ends them")

    def _signalled(self, *, now: bool) -> None:
        """What is submitted goes on."""

    def _stop_all(self) -> None:
        cluster.cancel([place.job for id_, place in self.standing.items() if id_ in self.watched and place.is_live])
