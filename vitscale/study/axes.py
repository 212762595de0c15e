"""From a study's tables to its cells: defaults, product, zip and union of axes, `--set`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

Cell = dict[str, Any]


def expand(tables: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """The cells of `[[axes]]` tables, each a map from dotted key to value, in the order written.

    Inside one table the product of its keys, or with `zip = true` their values in step; several tables: the union,
    without the repetitions. No table: one cell without a key.

    Raises:
        ValueError: lists of unequal length are zipped.
    """
    cells: list[Cell] = []
    for table in tables:
        axes = {key: value if isinstance(value, list) else [value] for key, value in table.items() if key != "zip"}
        if table.get("zip", False):
            if len({len(values) for values in axes.values()}) > 1:
                lengths = ", ".join(f"{key}: {len(values)}" for key, values in axes.items())
                raise ValueError(f"zip = true needs lists of one length ({lengths})")
            combinations = list(zip(*axes.values(), strict=True))
        else:
            combinations = list(product(*axes.values()))
        for values in combinations:
            cell = dict(zip(axes, values, strict=True))
            if cell not in cells:
                cells.append(cell)
    return cells or [{}]


def varied(cells: Sequence[Cell]) -> list[str]:
    """Dotted keys that some table of axes names, in the order of their first mention."""
    return list(dict.fromkeys(key for cell in cells for key in cell))
