"""Which trunks must still be trained, how far, and which of their branches can begin: by what lies in run folders."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitscale import branches, checkpoints
from vitscale.launch import folders
from vitscale.launch.unusable import Unwritable, written_to
from vitscale.study import sharing
from vitscale.study.cost import training_flops
from vitscale.study.identity import trunk_id
from vitscale.study.job import Branch, Job
from vitscale.study.load import Study
from vitscale.study.plan import Plan
from vitscale.study.tuning import prospect_of


def as_needed(
    jobs: Iterable[Job], runs: Path, wanted: Callable[[Job], bool], ended: Container[str] = frozenset()
) -> Iterator[Job]:
    """The jobs; trunks as far as wanted branches wait for them, or as far as those have left them or can now.

    A branch leaves its trunk where it did, and where it has not begun yet at the checkpoint that lies there for it; one
    that trained alone, or for which there is none, has no trunk. Nor has one that alone could use a trunk that was not
    begun, unless it has prospects. What nothing is left of, and nobody waits for, is not trained again; nor is a trunk
    that `ended`, by its id, whatever waits for it: that starts from what lies there.
    """
    jobs = list(jobs)
    saved = {job.id: checkpoints.steps(runs / job.id) for job in jobs if job.role == "trunk"}
    waiting: dict[str, list[Job]] = {id_: [] for id_ in saved}
    left_at = dict.fromkeys(saved, 0)
    starts: dict[str, int | None] = {}
    for job in jobs:
        if job.branch is not None:
            trunk = job.branch.trunk
            start = _start(job, runs, saved[trunk], grows=trunk not in ended)
            starts[job.id] = start
            if not wanted(job):
                continue
            left_at[trunk] = max(left_at[trunk], start or 0)
            if start is None:
                waiting[trunk].append(job)
    expected = {job.id for job in jobs if job.role == "trunk" and job.prospects}
    trained = {id_ for id_ in saved if _is_trained(runs / id_, len(waiting[id_]), id_ in expected)}
    own: dict[str, Job | None] = {}
    for job in (job for job in jobs if job.role == "trunk"):
        if waiting[job.id]:
            own[job.id] = _as_far_as(job, waiting[job.id]) if job.id in trained else None
        else:
            own[job.id] = _as_left(job, left_at[job.id], runs, saved[job.id], grows=job.id not in ended)
    # What a trunk took that is no more there is in nobody's bill else; who has yet to begin takes what lies there.
    begun = (job for job in jobs if job.branch and wanted(job) and _has_begun(runs / job.id))
    last = _left_last(begun, starts).items()
    billed = {id_ for trunk, (step, id_) in last if (of := own[trunk]) is None or of.steps < step}
    for job in jobs:
        if job.branch is not None:
            yield _leaving(job, 0 if job.id in billed else starts[job.id], trained)
        elif job.role != "trunk":
            yield job
        elif (needed := own[job.id]) is not None:
            yield needed


def ask(jobs: Iterable[Job], runs: Path, study: Study) -> dict[str, Unwritable]:
    """Tells trunks of the runs among these that will leave them, and of which they were not told.

    Those that train, or wait in a queue, save where that is; those that have ended keep what is there (`surplus`).
    Returns, by their ids, those that cannot be told and are still to come there: their branches start from the
    checkpoint before.
    """
    leaving: dict[str, list[tuple[int, str]]] = {}
    for job in jobs:
        if job.branch is not None and not _has_begun(runs / job.id):
            leaving.setdefault(job.branch.trunk, []).append((job.branch.step, job.id))
        elif job.prospects_within:
            leaving.setdefault(job.id, []).extend(job.prospects_within)
    deaf = {}
    for trunk, ends in leaving.items():
        folder = runs / trunk
        if not (folder / "run.json").is_file() or folders.check(folder) is not None:
            continue  # who begins it will be told, or a person has to look
        known = {*map(tuple, folders.document(folder).get("branches", [])), *branches.asked(folder)}
        try:
            with written_to(folder):
                for step, id_ in ends:
                    if (step, id_) not in known:
                        branches.ask(folder, step, id_, by=study.file)
        except Unwritable as error:
            if max(ends)[0] > reached(folder):
                deaf[trunk] = error
    return deaf


def settle(now: Plan, study: Study, runs: Path) -> None:
    """Trunks need not keep checkpoints any more for what [select] has not chosen, or asks for no more."""
    kept = {(trunk, name) for trunk, each in now.prospects.items() for _, name in each}
    for request in runs.glob(f"*/{branches.FOLDER}/*-{prospect_of('*', study)}"):
        if (request.parent.parent.name, request.name.partition("-")[2]) not in kept:
            with suppress(OSError):  # another user's folder
                request.unlink()


def rejoined(jobs: Iterable[Job], runs: Path) -> Iterator[Job]:
    """The jobs; with those that once left a trunk that no other here has as its branches, and that trunk.

    Another study, or this one before it was edited, had it train what it shared with others.
    """
    for job in jobs:
        if job.kind == "pretrain" and job.branch is None and sharing.can_branch(job) and left_at(job, runs):
            id_ = trunk_id(job.origin)
            yield sharing.trunk(id_, [job])
            yield replace(job, branch=Branch(id_, sharing.leaves_at(job)))
        else:
            yield job


def alone(jobs: Iterable[Job], runs: Path) -> Iterator[Job]:
    """The jobs without trunks, but for what has left one and the trunks that it has left."""
    jobs = list(jobs)
    left = {job.id: left_at(job, runs) or 0 for job in jobs if job.branch and job.role != "trunk"}
    furthest = _left_last((job for job in jobs if job.id in left), left)
    needed = {job.id: _up_to(job, furthest[job.id][0]) for job in jobs if job.id in furthest}
    ended = {id_ for id_, trunk in needed.items() if folders.outcome_of(trunk, runs)}
    billed = {id_ for trunk, (_, id_) in furthest.items() if trunk not in ended}
    for job in jobs:
        if job.role == "trunk":
            if job.id in ended:
                yield needed[job.id]
        elif job.branch is None:
            yield job
        else:
            step = 0 if job.id in billed else left[job.id]
            yield replace(job, branch=Branch(job.branch.trunk, step) if step else None)


def waits(job: Job, runs: Path) -> bool:
    """Whether a branch has not begun, and its trunk has yet to come to where it leaves it."""
    assert job.branch is not None
    to_come = reached(runs / job.branch.trunk) < job.branch.step and _comes_to(job.branch, runs)
    if _has_begun(runs / job.id):
        return False
    folder = runs / job.branch.trunk
    # Whoever validates lets go of the best one before, should this be better: a branch takes both.
    return to_come or (checkpoints.is_due(folder, job.branch.step) and folders.is_held(folder))


def is_others(job: Job, state: str) -> bool:
    """Whether somebody trains a trunk of which no run here needs more."""
    return job.role == "trunk" and not job.branches and state == "running"


def reached(folder: Path) -> int:
    """The step of the checkpoint that a trunk wrote last."""
    return checkpoints.last(folder) or 0


def shares_left(jobs: Iterable[Job], runs: Path) -> dict[str, float]:
    """Of those trainings that have begun the share of their own steps that the newest checkpoint leaves."""
    found = {}
    for job in jobs:
        if job.to_select:
            found[job.id] = job.share_left
            continue
        step = reached(runs / job.id) if job.last_step else 0
        first = job.branch.step if job.branch else 0
        if step > first:
            found[job.id] = max(job.last_step - step, 0) / (job.last_step - first)
    return found


def _comes_to(branch: Branch, runs: Path) -> bool:
    """Whether the trunk is still to come to where this leaves it. What it saved there may be gone since."""
    ended = folders.outcome(runs / branch.trunk) or {}
    return ended.get("status") != "done" or ended["reached"] < branch.step


def _has_begun(folder: Path) -> bool:
    return folders.result(folder) is not None or bool(checkpoints.steps(folder))


def left_at(job: Job, runs: Path) -> int | None:
    """The step at which a run left the trunk that it could have: 0 of one that trained alone, None of one not begun."""
    return _left(job, runs, folders.outcome(runs / job.id))


def _left(job: Job, runs: Path, outcome: Mapping[str, Any] | None) -> int | None:
    if outcome is not None and outcome["status"] == "done":
        row = outcome["rows"][0]
        own = round(row["flops_segment"] / training_flops(job.macs, job.run.recipe.batch_size))
        return job.steps - own if row.get("trunk_id") else 0
    return checkpoints.branched_at(runs / job.id)


def _start(job: Job, runs: Path, saved: Sequence[int], *, grows: bool) -> int | None:
    """The step at which a branch leaves its trunk, as things stand: 0 where it trains alone, None where it waits."""
    assert job.branch is not None
    outcome = folders.outcome(runs / job.id)
    if outcome is not None and outcome["status"] == "refused":
        return 0  # a person has to look
    left = _left(job, runs, outcome)
    if left is not None:
        return left
    if outcome is None and grows and max(saved, default=0) < job.branch.step and _comes_to(job.branch, runs):
        return None
    return max((step for step in saved if step <= job.branch.step), default=0)


def _left_last(jobs: Iterable[Job], starts: Mapping[str, int | None]) -> dict[str, tuple[int, str]]:
    """Of each trunk the furthest step at which a run has left it, and that run."""
    furthest: dict[str, tuple[int, str]] = {}
    for job in jobs:
        if job.branch is not None and (step := starts[job.id]):
            trunk = job.branch.trunk
            furthest[trunk] = max(furthest.get(trunk, (0, "")), (step, job.id))
    return furthest


def _leaving(job: Job, start: int | None, trained: Container[str]) -> Job:
    """The branch where it leaves its trunk; alone where there is none for it."""
    assert job.branch is not None
    if start is None:  # where it will
        return job if job.branch.trunk in trained else replace(job, branch=None)
    return replace(job, branch=Branch(job.branch.trunk, start) if start else None)


def _is_trained(folder: Path, waiting: int, expected: bool) -> bool:
    """Whether a trunk is worth it for those that wait for it, and others that are `expected` to."""
    return waiting > 1 or (waiting > 0 and expected) or (folder / "run.json").is_file()


def _as_left(trunk: Job, step: int, runs: Path, saved: Sequence[int], *, grows: bool) -> Job | None:
    """A trunk that nobody waits for, as far as runs have left it; None where none has, or it is gone."""
    if not step:
        return None
    needed = _up_to(trunk, step)
    there = folders.outcome_of(needed, runs) is not None or (grows and max(saved, default=0) >= step)
    return needed if there else None


def _as_far_as(trunk: Job, branches: Sequence[Job]) -> Job:
    ends = tuple(sorted((job.branch.step, job.id) for job in branches if job.branch))
    return replace(_up_to(trunk, ends[-1][0]), branches=ends)


def _up_to(trunk: Job, step: int) -> Job:
    recipe = replace(trunk.run.recipe, steps=step)
    return replace(trunk, run=replace(trunk.run, recipe=recipe), branches=())
