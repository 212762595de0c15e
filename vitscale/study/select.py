"""Which settings a cell takes where they are tuned: groups, their grids, the choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any

from vitscale.errors import INVALID_STUDY, VitscaleError
from vitscale.study.fields import value_of
from vitscale.study.load import Cell, Select, Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the grid of one group said."""

    values: Mapping[str, Any]
    at_edge: bool
    """Some chosen number is the smallest or largest of its grid (of at least two)."""
    tried: tuple[Mapping[str, Any], ...] = ()
    """All that was tried, each with its `score`; None of a run that failed."""


Group = tuple[Any, ...]


def groups(study: Study) -> dict[Group, Cell]:
    """Group -> the cell that is tuned for it: the first of the study with the group's values."""
    select = study.select
    if select is None:
        return {}
    found: dict[Group, Cell] = {}
    cells = [cell for cell in study.cells if not cell.run.model.checkpoint]
    for cell in cells:
        if all(value_of(cell.run, key) in values for key, values in select.at.items()):
            found.setdefault(tuple(value_of(cell.run, key) for key in select.per), cell)
    for cell in cells:
        if group_of(cell, select) not in found:
            named = ", ".join(f"{k} = {v}" for k, v in zip(select.per, group_of(cell, select), strict=True))
            raise VitscaleError(
                f"[select] tunes at {named}, but no cell of the study has these values",
                hint="select.at takes values that stand on the axes",
                exit_code=INVALID_STUDY,
            )
    return found


def group_of(cell: Cell, select: Select) -> Group:
    """The group whose choice a cell takes."""
    return tuple(_nearest(value_of(cell.run, key), select.at.get(key, ())) for key in select.per)


def _nearest(value: Any, tuned: tuple[Any, ...]) -> Any:
    """The nearest positive number by ratio; loading a study refuses other values that are not listed."""
    if not tuned or value in tuned:
        return value
    return min(tuned, key=lambda at: abs(log(at) - log(value)))


def choose(select: Select, scores: list[tuple[dict[str, Any], float]]) -> Choice:
    """The combination with the best score; of equals the first."""
    best = max(scores, key=lambda pair: pair[1])[0]
    edge = any(
        len(values) > 1 and isinstance(best[key], int | float) and best[key] in (min(values), max(values))
        for key, values in select.over.items()
    )
    return Choice(values=best, at_edge=edge)
