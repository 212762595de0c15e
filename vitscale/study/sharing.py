"""Budgets of one model share a trunk: what runs have in common that differ only in how long they train.

Under a schedule that does not know its end, a run of T steps with a cool-down over the share f of them is the first
(1 - f) T steps of any longer one, and f T steps of its own. Of budgets T1 < ... < TK that is TK + f (T1 + ... + T(K-1))
steps instead of their sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from vitscale.config import Recipe
from vitscale.study.identity import OF_THE_END
from vitscale.study.job import Branch, Job
from vitscale.study.schedule import cooldown_start, knows_its_end

LENGTHS = ("recipe.steps", "recipe.epochs", "recipe.examples")
"""Settings that say how long a run is."""
DURATIONS = tuple(dict.fromkeys([*LENGTHS, *(f"recipe.{name}" for name in OF_THE_END)]))
"""All in which runs may differ that share a trunk."""


def shared(
    jobs: Iterable[Job],
    *,
    prospects: Mapping[str, tuple[tuple[int, str], ...]] | None = None,
) -> Iterator[Job]:
    """The jobs; those that have a trunk in common as its branches, and behind it.

    `prospects`: as `Job.prospects`, by the ids of trunks, which a single run leaves, too.
    """
    jobs, prospects = list(jobs), prospects or {}
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        if can_branch(job):
            groups.setdefault(job.trunk_id, []).append(job)
    trunks = {id_: group for id_, group in groups.items() if len(group) > 1 or id_ in prospects}
    trunk_of = {job.id: id_ for id_, group in trunks.items() for job in group}
    for job in jobs:
        id_ = trunk_of.get(job.id)
        if id_ is None:
            yield job
            continue
        group = trunks.pop(id_, None)
        if group is not None:
            yield replace(trunk(id_, group), prospects=prospects.get(id_, ()))
        yield replace(job, branch=Branch(id_, leaves_at(job)))


def leaves_at(job: Job) -> int:
    """The step up to which a run does what every longer one does."""
    return cooldown_start(job.run.recipe, job.steps)


def trunk(id_: str, branches: Sequence[Job]) -> Job:
    """The job that trains what these runs have in common, as far as the longest of them needs."""
    longest = max(branches, key=leaves_at)
    ends = {name: getattr(Recipe(), name) for name in OF_THE_END}
    recipe = replace(longest.run.recipe, epochs=None, examples=None, **{**ends, "steps": leaves_at(longest)})
    return replace(
        longest,
        id=id_,
        role="trunk",
        run=replace(longest.run, recipe=recipe),
        branches=tuple(sorted((leaves_at(job), job.id) for job in branches)),
        varied={key: value for key, value in longest.varied.items() if key not in DURATIONS},
        flops_tuning=0,
        at_edge=None,
        tried=(),
    )


def can_branch(job: Job) -> bool:
    """Whether a longer run could begin as this one does."""
    recipe = job.run.recipe
    if job.kind != "pretrain" or recipe.cooldown == 0 or knows_its_end(recipe):
        return False
    return 0 < leaves_at(job) < job.steps
