"""The table [select] of a study's file, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitscale.study import fields
from vitscale.study.fields import value_of
from vitscale.study.given import converted, flat
from vitscale.study.mistakes import Mistakes
from vitscale.study.select import Cell, Select, tunable, untuned

CHANCE = ("seed", "data.subset_seed")
"""The luckiest of them is no choice: results are of their mean, over an axis."""
SELECT_KEYS = {"over", "by", "per", "at"}


def read_select(
    document: Mapping[str, Any], cells: Sequence[Cell], mistakes: Mistakes, *, overridden: set[str]
) -> Select | None:
    """None also where the command line fixes all that would be tuned (`overridden`)."""
    table = document.get("select")
    if table is None:
        return None
    for key in table:
        if key not in SELECT_KEYS:
            mistakes.unknown(f"select.{key}", f"select.{key}", [f"select.{k}" for k in sorted(SELECT_KEYS)])
    grids = {}
    for name in ("over", "at"):
        good = {}
        for key, values in flat(table.get(name, {})).items():
            each = values if isinstance(values, list) else [values]
            if not each:
                mistakes.add(f"select.{name}", f"select.{name}: '{key}' has no values", "give it at least one")
            parts = [converted({key: value}, mistakes, lambda _, n=name: f"select.{n}") for value in each]
            good[key] = fields.each_once(part[key] for part in parts if key in part)
        grids[name] = good
    if not grids["over"]:
        mistakes.add(
            "select", "[select] has nothing to choose from", 'write over = { "recipe.lr" = [3e-4, 1e-3, 3e-3] }'
        )
    # A setting that the command line fixes is not tuned.
    over = {key: values for key, values in grids["over"].items() if key not in overridden}
    by = table.get("by", "upstream_val")
    if by != "upstream_val":
        mistakes.add("select.by", f"cannot select by {by!r}", "by = 'upstream_val': test labels never choose anything")
    per = table.get("per", [])
    if not isinstance(per, list):
        mistakes.add("select.per", f"select.per is not a list: {per!r}", 'for example ["model.name"]')
        per = []
    for key in per:
        if key not in fields.run_keys():
            mistakes.unknown("select.per", key, list(fields.run_keys()))
    for key in grids["at"]:
        if key not in per:
            mistakes.add("select.at", f"'{key}' stands in select.at but not in select.per", "name it in per, too")
    trained = tunable(cells)
    _check_grids(grids, per, trained, mistakes)
    if any(not cell.run.data.val_examples for cell in trained):
        mistakes.add("select", "[select] needs an upstream validation set", "set data.val_examples")
    select = Select(over=over, by=by, per=tuple(per), at=grids["at"])
    for group in [] if mistakes.problems else untuned(select, cells):
        named = ", ".join(f"{key} = {value}" for key, value in zip(select.per, group, strict=True))
        message = f"[select] tunes at {named}, but no cell of the study has these values"
        mistakes.add("select.at", message, "select.at takes values that stand on the axes")
    return select if over else None


def _named(key: str, value: Any) -> str:
    if value is not None:
        return repr(value)
    return "all images" if key == "data.examples" else "none, which is what a cell has that does not give it"


def _check_grids(
    grids: Mapping[str, Mapping[str, tuple[Any, ...]]],
    per: Sequence[str],
    cells: Sequence[Cell],
    mistakes: Mistakes,
) -> None:
    """A setting is either compared or selected, and every cell has a nearest group that was tuned."""
    for key in grids["over"]:
        if key in CHANCE:
            mistakes.add("select.over", f"'{key}' is chance: none of its values is better", "put it on an axis")
        if any(key in cell.varied for cell in cells):
            mistakes.add("select.over", f"'{key}' stands on an axis and in select.over", "keep one of them")
    for key, tuned in grids["at"].items():
        values = dict.fromkeys(value_of(cell.run, key) for cell in cells) if key in per and tuned else {}
        for value in values:
            number = isinstance(value, int | float) and value > 0
            if value not in tuned and not (number and all(isinstance(at, int | float) and at > 0 for at in tuned)):
                mistakes.add(
                    "select.at",
                    f"nothing in select.at is near {key} = {_named(key, value)}",
                    f"list it in select.at{', or give its number on the axis' if value is None else ''}",
                )
