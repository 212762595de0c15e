"""Which runs become the tasks of one array: those of one shape that wait for nothing, or for the same array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vitscale.launch.slurm.script import Shape
from vitscale.launch.slurm.submissions import Place
from vitscale.study.job import Job


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What one task works on: a pre-training, or the transfers of one start."""

    jobs: tuple[Job, ...]
    shape: Shape
    after: Place | None
    """What it waits for."""


@dataclass(frozen=True, kw_only=True)
class Array:
    """What is submitted at once; of a shape on several nodes only one unit, as a job."""

    shape: Shape
    units: Mapping[int, Unit]
    """By the number of the task."""
    after: str | None
    """As sbatch takes it."""
    is_array: bool = True


def arrays(units: Sequence[Unit], most: int) -> Iterator[Array]:
    """In the order of their first units. `most`: tasks of one array; 0, on a cluster without arrays: all are jobs.

    Where each unit waits for a task of its own of one array, the numbers are those of these tasks, and Slurm lets each
    begin when its own is done (`aftercorr`).
    """
    groups: dict[tuple[Shape, str], list[Unit]] = {}
    for unit in units:
        groups.setdefault((unit.shape, _base(unit.after)), []).append(unit)
    for (shape, base), group in groups.items():
        if shape.nodes > 1 or not most:
            for unit in group:
                yield Array(shape=shape, units={0: unit}, after=_ok(unit.after), is_array=False)
        elif base and len({unit.after.task for unit in group if unit.after}) == len(group) > 1:
            yield Array(
                shape=shape,
                units={unit.after.task: unit for unit in group if unit.after},
                after=f"aftercorr:{base}",
            )
        else:
            yield from _by_what_they_wait_for(shape, group, most)


def _by_what_they_wait_for(shape: Shape, group: Sequence[Unit], most: int) -> Iterator[Array]:
    alike: dict[str | None, list[Unit]] = {}
    for unit in group:
        alike.setdefault(_ok(unit.after), []).append(unit)
    for after, each in alike.items():
        for start in range(0, len(each), most):
            yield Array(shape=shape, units=dict(enumerate(each[start : start + most])), after=after)


def _base(place: Place | None) -> str:
    """The number of an array; empty of what is none."""
    return place.job.partition("_")[0] if place is not None and place.submission.array else ""


def _ok(place: Place | None) -> str | None:
    return f"afterok:{place.job}" if place is not None else None
