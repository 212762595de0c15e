"""Where each job of a study stands: by its own folder, and by what it cannot begin without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from vitscale import checkpoints
from vitscale.launch import folders, trunks
from vitscale.study.job import Job

OPEN = ("to do", "stopped", "running")
"""States of what is still to be done. All others wait for nothing, or for a person."""
WAITS = "waits for "


def states(jobs: Iterable[Job], runs: Path) -> dict[str, str]:
    """By id: those of `folders.State`, or `waits for failed ID` of what cannot begin because of that."""
    of = {job.id: job for job in jobs}
    return with_causes(of, {id_: folders.state_of(job, runs) for id_, job in of.items()}, runs)


def with_causes(jobs: Mapping[str, Job], own: Mapping[str, str], runs: Path) -> dict[str, str]:
    """As `states`, from those that each job has by its folder alone."""
    cause = {id_: stopper(job, jobs, own, runs) for id_, job in jobs.items() if own[id_] in ("to do", "stopped")}
    return {
        id_: state if (by := cause.get(id_)) is None else f"{WAITS}{own[by.id]} {by.id}" for id_, state in own.items()
    }


def stopper(job: Job, jobs: Mapping[str, Job], own: Mapping[str, str], runs: Path) -> Job | None:
    """Of a job that has not ended what it cannot begin without, and cannot have: a failed trunk or pre-training.

    One that is refused as well. `own`: the states of all jobs by their folders alone.
    """
    origin = jobs.get(job.branch.trunk if job.branch else job.parent or "")
    if origin is None:
        return None
    state = own[origin.id]
    if state == "done" or not _needs(job, runs, refused=state == "refused"):
        return None
    return stopper(origin, jobs, own, runs) if state in OPEN else origin


def _needs(job: Job, runs: Path, *, refused: bool) -> bool:
    """Whether what it begins with has yet to come: a branch may start where its trunk got to before it failed."""
    if job.branch is None:
        return True
    return not checkpoints.steps(runs / job.id) if refused else trunks.waits(job, runs)


def scores(jobs: Iterable[Job], runs: Path, *, shared: bool) -> dict[str, float | None]:
    """Of the tuning runs among these that have ended, as `folders.scores`; `shared`: where trunks are.

    One whose trunk has diverged has no score either: it would have diverged at the same step.
    """
    of = {job.id: job for job in jobs}
    tuning = [job for job in of.values() if job.role == "tuning"]
    found = folders.scores(runs, (job.id for job in tuning))
    if shared:
        own = {job.id: folders.state_of(job, runs) for job in of.values() if job.role == "trunk"}
        open_jobs = (job for job in tuning if job.id not in found)
        by = {job.id: stopper(job, of, own, runs) for job in open_jobs}
        of_trunks = ((id_, folders.outcome_of(trunk, runs)) for id_, trunk in by.items() if trunk is not None)
        found |= {id_: None for id_, outcome in of_trunks if outcome is not None and folders.diverged(outcome)}
    return found


def can_choose(jobs: Iterable[Job], states: Mapping[str, str]) -> bool:
    """Whether a tuning run is still to be done, so that what waits for [select] may come."""
    return any(states[job.id] in OPEN for job in jobs if job.role == "tuning")


def stuck(states: Mapping[str, str], jobs: Iterable[Job]) -> int:
    """How many of these jobs wait for what has failed, or is refused."""
    return sum(states.get(job.id, "").startswith(WAITS) for job in jobs)
