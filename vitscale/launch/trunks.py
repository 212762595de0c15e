"""Which trunks must still be trained, how far, and which of their branches can begin: by what lies in run folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vitscale.launch import folders
from vitscale.study.job import Job


def as_needed(jobs: Iterable[Job], runs: Path, wanted: Callable[[Job], bool]) -> Iterator[Job]:
    """The jobs; of trunks those that have ended, or that wanted branches wait for, as far as these need them.

    A trunk that was not begun and that only one run could use is left out: that run trains alone.
    """
    jobs = list(jobs)
    waiting: dict[str, list[Job]] = {}
    for job in jobs:
        if job.branch is not None and wanted(job) and waits(job, runs):
            waiting.setdefault(job.branch.trunk, []).append(job)
    trunks = {job.id: job for job in jobs if job.role == "trunk"}
    kept = {id_ for id_, job in trunks.items() if _is_kept(runs / id_, len(waiting.get(id_, [])))}
    for job in jobs:
        if job.role == "trunk":
            if job.id in kept:
                yield _as_far_as(job, waiting.get(job.id, []), reached(runs / job.id))
        else:
            yield job if job.branch is None or job.branch.trunk in kept else replace(job, branch=None)


def alone(jobs: Iterable[Job]) -> Iterator[Job]:
    """The jobs without trunks."""
    return (replace(job, branch=None) for job in jobs if job.role != "trunk")


def waits(job: Job, runs: Path) -> bool:
    """Whether a branch has not begun, and its trunk has yet to come to where it leaves it."""
    assert job.branch is not None
    return not _has_begun(runs / job.id) and reached(runs / job.branch.trunk) < job.branch.step


def reached(folder: Path) -> int:
    """The step of a trunk's newest checkpoint."""
    return max(folders.checkpoint_steps(folder), default=0)


def shares_left(jobs: Iterable[Job], runs: Path) -> dict[str, float]:
    """Of those pre-trainings that have begun the share of their own steps that the newest checkpoint leaves."""
    found = {}
    for job in jobs:
        step = reached(runs / job.id) if job.kind == "pretrain" else 0
        first = job.branch.step if job.branch else 0
        if step > first:
            found[job.id] = max(job.steps - step, 0) / (job.steps - first)
    return found


def _has_begun(folder: Path) -> bool:
    return folders.result(folder) is not None or bool(folders.checkpoint_steps(folder))


def _is_kept(folder: Path, branches: int) -> bool:
    if not branches:
        return folders.result(folder) is not None
    return branches > 1 or (folder / "run.json").is_file()


def _as_far_as(trunk: Job, branches: Sequence[Job], reached: int) -> Job:
    ends = tuple(sorted((job.branch.step, job.id) for job in branches if job.branch))
    recipe = replace(trunk.run.recipe, steps=ends[-1][0] if ends else reached)
    return replace(trunk, run=replace(trunk.run, recipe=recipe), branches=ends)
