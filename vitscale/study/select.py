"""Which settings a cell takes where they are tuned: groups, their grids, the choice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import log
from typing import Any

from vitscale.config import Run
from vitscale.study.fields import value_of

RATE = "recipe.lr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """Settings tuned on held-out training data: the best of `over` by `by`, for each group of cells."""

    over: Mapping[str, tuple[Any, ...]]
    by: str = "upstream_val"
    per: tuple[str, ...] = ()
    at: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values of `per` keys at which it is tuned; a cell elsewhere takes the nearest one's choice (on a log scale)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One pre-training run of the study, before anything is selected."""

    values: Mapping[str, Any]
    """All settings that were given, by dotted key."""
    run: Run
    varied: Mapping[str, Any]
    """The settings among them that an axis names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the grid of one group said."""

    values: Mapping[str, Any]
    tried: tuple[Mapping[str, Any], ...]
    """All that was tried, each with its `score`; None of a run that failed."""

    @property
    def rate_at_edge(self) -> bool | None:
        """Whether the learning rate is the smallest or largest that was tried; None: it is not among what is chosen."""
        return RATE in edges(self.tried) if RATE in self.values else None


Group = tuple[Any, ...]


def grid(select: Select) -> list[dict[str, Any]]:
    """Every combination of the values that are compared."""
    return [dict(zip(select.over, values, strict=True)) for values in product(*select.over.values())]


def groups(select: Select | None, cells: Iterable[Cell]) -> dict[Group, Cell]:
    """Group -> the cell that is tuned for it: the first of the study with the group's values."""
    found: dict[Group, Cell] = {}
    for cell in tunable(cells) if select else []:
        assert select is not None
        if all(value_of(cell.run, key) in values for key, values in select.at.items()):
            found.setdefault(tuple(value_of(cell.run, key) for key in select.per), cell)
    return found


def untuned(select: Select, cells: Sequence[Cell]) -> list[Group]:
    """Groups whose choice some cell would take, and that no cell is tuned for; loading a study refuses them."""
    found = groups(select, cells)
    return [group for group in dict.fromkeys(group_of(cell, select) for cell in tunable(cells)) if group not in found]


def tunable(cells: Iterable[Cell]) -> list[Cell]:
    """Those that train anything: not the published checkpoints."""
    return [cell for cell in cells if not cell.run.model.checkpoint]


def group_of(cell: Cell, select: Select) -> Group:
    """The group whose choice a cell takes."""
    return tuple(_nearest(value_of(cell.run, key), select.at.get(key, ())) for key in select.per)


def _nearest(value: Any, tuned: tuple[Any, ...]) -> Any:
    """The nearest positive number by ratio; loading a study refuses other values that are not listed."""
    if not tuned or value in tuned:
        return value
    return min(tuned, key=lambda at: abs(log(at) - log(value)))


def choose(scores: Sequence[tuple[Mapping[str, Any], float]], tried: Sequence[Mapping[str, Any]]) -> Choice:
    """The combination with the best score; of equals the first."""
    return Choice(values=max(scores, key=lambda pair: pair[1])[0], tried=tuple(tried))


def edges(tried: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The chosen numbers that are the smallest or largest of those tried, of at least two, by their settings.

    `tried`: as `Choice.tried`; the best score is the choice, of equals the first.
    """
    scored = [trial for trial in tried if trial["score"] is not None]
    if not scored:
        return {}
    best = max(scored, key=lambda trial: trial["score"])
    found = {}
    for key, value in best.items():
        if key != "score" and isinstance(value, int | float) and not isinstance(value, bool):
            values = {trial[key] for trial in tried}
            if len(values) > 1 and value in (min(values), max(values)):
                found[key] = value
    return found
