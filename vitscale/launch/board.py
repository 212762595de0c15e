"""What there is to see of a study while it runs: each run under way, how many are done, how long it will take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.launch import eventlog, folders
from vitscale.launch.estimate import expected
from vitscale.launch.progress import duration, newest, progress, stuck_words, title
from vitscale.launch.standing import OPEN, can_choose, states, stuck
from vitscale.study.job import Job
from vitscale.study.plan import Plan

STATES = ("done", "running", "failed", "to do")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A run under way."""

    job: Job
    step: Mapping[str, Any] | None
    """Its last line of numbers; None before its first step, and of a transfer that takes none."""
    doing: str
    """What it does without numbers."""
    silent: float | None
    """Seconds since its last sign of life."""
    words: str
    """All of it in one line."""


@dataclass(frozen=True, kw_only=True)
class Board:
    lines: tuple[Line, ...]
    counts: Mapping[str, int]
    """By the names of `STATES`; what was stopped, or waits for a selection that can still be made, is to do."""
    seconds_left: float | None
    """At the rate of the runs so far, or as bench has timed them; None before there is one, and while nobody works."""
    note: str = ""
    """What else is going on."""
    stuck: int = 0
    """Jobs that wait for what has failed, or is refused."""
    refused: int = 0

    @property
    def over(self) -> bool:
        return not self.counts["running"] and not self.counts["to do"]

    def summary(self) -> str:
        told = [f"{self.counts[state]} {state}" for state in STATES]
        told += [f"{self.refused} refused"] if self.refused else []
        told += [stuck_words(self.stuck)] if self.stuck else []
        if self.seconds_left and not self.over:
            told.append(f"about {duration(self.seconds_left)} left")
        return ", ".join(filter(None, [*told, self.note]))


class Ending:
    """Whether a watched study is over for good: what has just failed may be about to be tried again."""

    AGAIN = 15.0
    """Seconds in which a sweep tries again, those included that the other processes of a run have to end in."""

    def __init__(self, first: Board) -> None:
        self._failed = first.counts["failed"]
        self._since: float | None = None

    def __call__(self, now: Board) -> bool:
        if not now.over:
            self._since = None
            return False
        if now.counts["failed"] <= self._failed:
            return True
        self._since = self._since or time.monotonic()
        return time.monotonic() - self._since >= self.AGAIN


def board(
    now: Plan,
    runs: Path,
    wanted: Callable[[Job], bool],
    *,
    started: Sequence[Sequence[Job]] = (),
    at_once: int | None = None,
    note: str = "",
) -> Board:
    """How the study stands. `started`: of workers that may not hold their first run yet, the jobs of each.

    `at_once`: of the sweep that asks, which is at work then, how many run at once.
    """
    jobs = [job for job in now.jobs if wanted(job)]
    standing = states(now.jobs, runs)
    for group in started:
        left = [job for job in group if standing.get(job.id) in OPEN]
        if left and not any(standing[job.id] == "running" for job in left):
            standing[left[0].id] = "running"
    running = [job for job in jobs if standing[job.id] == "running"]
    counts = Counter(standing[job.id] for job in jobs)
    waiting = [job for job in now.waiting if wanted(job)]
    held_back = stuck(standing, jobs)
    if not can_choose(now.jobs, standing):
        held_back, waiting = held_back + len(waiting), []
    counts["to do"] += counts["stopped"] + len(waiting)
    left = [*(job for job in jobs if standing[job.id] in OPEN), *waiting]
    rest = expected(jobs, left, runs, processes=at_once or max(len(running), 1))
    return Board(
        lines=tuple(_line(job, runs / job.id) for job in running),
        counts={state: counts[state] for state in STATES},
        seconds_left=rest.seconds if rest.measured and (running or at_once) else None,
        note=note,
        stuck=held_back,
        refused=counts["refused"],
    )


def _line(job: Job, folder: Path) -> Line:
    held = folders.is_held(folder)
    step = newest(folder, job)
    if held and step is not None:
        words = f"{title(job)} {progress(folder, job)}"
        return Line(job=job, step=step, doing="", silent=eventlog.silent_seconds(folder), words=words)
    doing = "starting" if job.saves or not held else "working"
    return Line(job=job, step=None, doing=doing, silent=None, words=f"{title(job)} {doing}")
