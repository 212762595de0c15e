"""What waits for a choice of [select], and what of it would be trained: by what lies in run folders.

Until the choice is made that is a bound: what is to be trained if the trial is chosen with which that is the most.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from vitscale.launch import standing, trunks
from vitscale.study.bill import is_left
from vitscale.study.job import Branch, Job
from vitscale.study.plan import Open, Plan, unnamed
from vitscale.study.sharing import can_branch, shared

Wanted = Callable[[Job], bool]


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Of one plan: what the jobs that wait would be, and cost, if this or that trial were chosen."""

    named: Mapping[str, Job]
    """All that wait for no choice, as they will be trained."""
    leaving: Mapping[str, Sequence[Job]]
    """Of their trunks, by id, the runs that leave them."""
    prospects: Mapping[str, tuple[tuple[int, str], ...]]
    runs: Path
    there: Container[str]
    """What lies in the folder of runs."""
    others_there: bool
    """Whether anything that is not `named` does."""
    wanted: Wanted
    resolved: Callable[[Iterable[Job], Wanted], Sequence[Job]]
    """Jobs that share trunks as they will be trained."""
    share: bool

    def dearest(self, choice: Open) -> list[Job]:
        """What waits for a choice if the trial is chosen with which most is to be trained; of equals the first."""
        first = choice.trials[0][0]
        cells, same = choice.cells, list[Job]()
        if choice.alike and not self.others_there:  # so that a trial's trunk is all that can tell
            cells = choice.sharing
            tried = set(map(id, cells))
            same = choice.if_chosen(first, (cell for cell in choice.cells if id(cell) not in tried))
        found, parents, most = list[Job](), list[Job](), -1.0
        for values, _ in choice.trials:
            runs = choice.if_chosen(values, cells)
            jobs = self._if_chosen(runs)
            transfers = () if choice.alike else choice.transfers(runs)  # which else take the same
            price = sum(job.flops * job.share_left for job in chain(jobs, map(unnamed, transfers)) if self.wanted(job))
            if price > most:
                found, parents, most = jobs, runs, price
        return [*found, *self._if_chosen(same), *map(unnamed, choice.transfers([*parents, *same]))]

    def _if_chosen(self, runs: Sequence[Job]) -> list[Job]:
        """Of these runs those that are not planned already, and what their trunks would train further."""
        new = [job for job in runs if job.id not in self.named]
        trunk_of = {job.id: job.trunk_id for job in new if can_branch(job)}
        begun = {trunk_of.get(job.id, job.id) for job in new if job.id in self.there}
        begun |= {id_ for id_ in trunk_of.values() if id_ in self.there or id_ in self.leaving}
        return [
            *self._to_begin([job for job in new if trunk_of.get(job.id, job.id) not in begun]),
            *self._begun([job for job in new if trunk_of.get(job.id, job.id) in begun], begun),
        ]

    def _to_begin(self, runs: Sequence[Job]) -> Iterator[Job]:
        """Those of which nothing lies in any folder, nor of their trunks."""
        told = [(job, self.share and self._is_wanted(job)) for job in runs]
        yield from map(unnamed, shared(job for job, together in told if together))
        yield from (unnamed(job) for job, together in told if not together)

    def _begun(self, runs: Sequence[Job], trunk_ids: Iterable[str]) -> Iterator[Job]:
        """The others, priced beside those that leave the same trunks."""
        beside = [replace(job, branch=None) for id_ in trunk_ids for job in self.leaving.get(id_, ())]
        jobs = self.resolved(shared([*beside, *runs], prospects=self.prospects), self._is_wanted)
        left = self._shares_left(jobs)
        for job in jobs:
            if job.id not in self.named:
                yield replace(unnamed(job), share_left=left[job.id])
            elif job.role == "trunk" and job.steps > (before := self.named[job.id]).steps:
                further = job.steps - before.steps
                steps = job.steps * left[job.id] - before.steps * self._shares_left([before])[job.id]
                beyond = unnamed(replace(job, branch=Branch(job.id, before.steps)))
                yield replace(beyond, share_left=max(steps, 0.0) / further)

    def _shares_left(self, jobs: Sequence[Job]) -> dict[str, float]:
        """Of each job the share that is still to be trained."""
        states, left = standing.states(jobs, self.runs), trunks.shares_left(jobs, self.runs)
        return {job.id: left.get(job.id, 1.0) if is_left(states[job.id]) else 0.0 for job in jobs}

    def _is_wanted(self, job: Job) -> bool:
        return self.wanted(job if job.id in self.named else unnamed(job))


def waiting(
    now: Plan,
    jobs: Sequence[Job],
    runs: Path,
    wanted: Wanted,
    resolved: Callable[[Iterable[Job], Wanted], Sequence[Job]],
    *,
    share: bool,
) -> Iterator[Job]:
    """What waits for the open choices of the plan, whose other `jobs` will be trained so.

    Each choice is taken by itself: where those of several would have a trunk in common, each pays for it.
    """
    if not now.open:
        return
    named = {job.id: job for job in jobs}
    leaving: dict[str, list[Job]] = {}
    for job in jobs:
        if job.branch is not None:
            leaving.setdefault(job.branch.trunk, []).append(job)
    there = set[str]()
    with suppress(OSError):  # none has been made yet
        there.update(path.name for path in runs.iterdir())
    of = Waiting(
        named=named,
        leaving=leaving,
        prospects=now.prospects,
        runs=runs,
        there=there,
        others_there=not there <= named.keys(),
        wanted=wanted,
        resolved=resolved,
        share=share,
    )
    for choice in now.open:
        yield from of.dearest(choice)
