"""A sweep on this machine, or over ssh: it starts what is ready, records what has ended, and looks again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from vitscale.errors import HELD, INTERRUPTED, MISSING
from vitscale.launch import folders
from vitscale.launch.board import Board, board
from vitscale.launch.local import Worker, trouble, wait_any
from vitscale.launch.progress import title
from vitscale.launch.slots import Seat, Slots
from vitscale.launch.sweep import TRIES, Ended, Sweep, not_saved, ready
from vitscale.study.job import Job
from vitscale.study.plan import Plan

REPLAN = 30
"""Seconds after which a sweep looks again for what could be started: others may have let go of a run."""


@dataclass(kw_only=True)
class LocalSweep(Sweep):
    """Workers in the machine's slots."""

    workers: dict[Worker, list[Job]] = field(default_factory=dict, init=False)
    seats: dict[Worker, Seat] = field(default_factory=dict, init=False)
    slots: Slots = field(init=False)
    said_stops: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.slots = Slots(jobs=self.machine.jobs, gpus=self.machine.gpus, per_gpu=self.machine.per_gpu)

    def run(self) -> Ended:
        """Works until nothing is left that could be started."""
        with self._signals():
            self._try_again(self._plan())
            try:
                while True:
                    now, closed = self._plan(), len(self.closed)
                    self._record(now)
                    self._start(now)
                    if self.workers:
                        self._wait(now)
                    elif self._others_at_work(now) and not self.stopping:
                        self.tick(lambda now=now: self._board(now))
                        time.sleep(1.0)
                    elif len(self.closed) == closed:
                        break
            finally:
                self._stop_workers()
            return self._ended()

    def _start(self, now: Plan) -> None:
        for jobs in ready(now, self.places.runs, self.only):
            if self.stopping or self.slots.full:
                return
            running = {job.id for group in self.workers.values() for job in group}
            mine = [job for job in jobs if job.id not in running and self.tries[job.id] < TRIES]
            fresh = [job for job in mine if not self._is_held(job)]
            if not fresh:
                continue
            seat = self.slots.take(self.machine.devices_for(fresh[0]))
            if seat is None:  # nothing smaller slips in before it: it would wait for ever
                return
            if not self._seated(fresh, seat):
                self.slots.give_back(seat)

    def _seated(self, jobs: list[Job], seat: Seat) -> bool:
        """Starts a worker on those jobs that may be touched; False where none may."""
        work = [(job, folder) for job in jobs if (folder := self._prepared(job)) is not None]
        if not work:
            return False
        devices, hosts = self.machine.devices_for(work[0][0]), self.machine.hosts_for(work[0][0])
        places = [folder for _, folder in work]
        worker = Worker(places, self.machine.threads, devices, hosts, environment=seat.environment)
        self.tries.update(job.id for job, _ in work)
        self.workers[worker], self.seats[worker] = [job for job, _ in work], seat
        return True

    def _wait(self, now: Plan) -> None:
        """Until a worker has ended, and a little longer than anybody could bear not to know how it goes."""
        for _ in range(REPLAN):
            self.tick(lambda: self._board(now))
            ended = wait_any(list(self.workers), 1.0)
            self._say_stopping()
            if ended:
                break
        for worker in ended:
            worker.record_death()
            jobs = self.workers.pop(worker)
            self.slots.give_back(self.seats.pop(worker))
            if worker.ended() == HELD:
                self.tries.subtract(job.id for job in jobs)
            done = [job for job in jobs if self._collect(job) and not self._again(job)]
            # What others have done and nobody has told yet is left until it is: the number goes down by one each time.
            left = self._left(now) + self._untold() if done else 0
            for after, job in enumerate(done, 1 - len(done)):  # one after another, as they have ended
                self._report(job, left - after)
            if worker.ended() == MISSING and not self.stopping:
                self._full_disk(jobs)
            if worker.ended() == INTERRUPTED and not self.stopping:
                self._say_preempted(jobs)

    def _untold(self) -> int:
        """Jobs of workers at work that have ended: the transfers of a run share one."""
        runs = self.places.runs
        return sum(folders.outcome_of(job, runs) is not None for jobs in self.workers.values() for job in jobs)

    def _say_preempted(self, jobs: Sequence[Job]) -> None:
        """Of a worker that a signal stopped which the sweep did not get: a scheduler has its reasons."""
        job = next((job for job in jobs if folders.outcome_of(job, self.places.runs) is None), None)
        if job is not None:
            how = "it goes on from its last checkpoint" if job.saves else "it begins again"
            again = how if self.tries[job.id] < TRIES else "not started again"
            self.say(f"stopped  {title(job)}: by a signal to its process; {again}")

    def _again(self, job: Job) -> bool:
        """Whether a failure is one that is worth another try in this sweep; what it recorded stays recorded."""
        if self.stopping or (words := folders.try_again(self.places.runs / job.id)) is None:
            return False
        self.tries[job.id] = 0
        self.say(f"failed   {title(job)}: {words}")
        return True

    def _full_disk(self, jobs: list[Job]) -> None:
        """A worker that could not save has not failed its run, but going on makes no sense.

        What else has kept it from its work is this run's matter.
        """
        job = next((job for job in jobs if folders.result(self.places.runs / job.id) is None), None)
        if job is None:
            return
        folder = self.places.runs / job.id
        if not folder.is_dir():  # somebody has removed it
            self.say(f"stopped  {title(job)}: {folder} is gone; it begins again")
            return
        if (problem := trouble(folder)) is not None:
            self._refuse(job, problem, MISSING)
            return
        self.stopping = True
        self._stop_all()
        raise not_saved(folder)

    def _board(self, now: Plan) -> Board:
        started = list(self.workers.values())
        note = "stopping" if self.stopping else ""
        return board(now, self.places.runs, self.only, started=started, at_once=self.machine.jobs, note=note)

    def _say_stopping(self) -> None:
        """What a signal has done; its handler must not print."""
        if self.stopping and self.workers and self.said_stops < self.stops:
            self.said_stops = self.stops
            runs = self.places.runs
            working = ([job for job in jobs if folders.result(runs / job.id) is None] for jobs in self.workers.values())
            words = stopping_words([jobs[0] for jobs in working if jobs])
            self.say(
                "stopping now"
                if self.stops > 1
                else f"stopping: {words or 'all have ended'}; Ctrl-C again does not wait"
            )

    def _signalled(self, *, now: bool) -> None:
        self._stop_all(now=now)

    def _stop_all(self, *, now: bool = False) -> None:
        """`now`: without a checkpoint."""
        for worker in list(self.workers):
            worker.stop(now=now)

    def _stop_workers(self) -> None:
        if self.workers:
            self.say(f"waiting for {len(self.workers)} running to save and end")
        self._stop_all()
        for worker in self.workers:
            worker.process.wait()


def stopping_words(jobs: Sequence[Job]) -> str:
    """What becomes of running jobs that are asked to stop: a few-shot transfer has no checkpoints."""
    saving = sum(job.saves for job in jobs)
    transfers = len(jobs) - saving
    told = [f"{saving} run saves first" if saving == 1 else f"{saving} runs save first"] if saving else []
    told += [f"{transfers} {'begins' if transfers == 1 else 'begin'} again later"] if transfers else []
    return ", ".join(told)
