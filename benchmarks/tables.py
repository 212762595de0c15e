"""What the benchmarks share: medians with their intervals, and tables."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np

FEWEST_ROUNDS = 8  # of fewer the bootstrap says little
RESAMPLES = 10_000


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median and its 95 % bootstrap interval."""
    found = np.asarray(values)
    draws = np.random.default_rng(0).integers(len(found), size=(RESAMPLES, len(found)))
    low, high = np.quantile(np.median(found[draws], axis=1), (0.025, 0.975))
    return float(np.median(found)), float(low), float(high)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool) -> str:
    if markdown:
        lines = [columns, ["---"] * len(columns), *rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in (columns, *rows)
    )


def at_least(fewest: int) -> Callable[[str], int]:
    """For a command line's numbers."""

    def number(text: str) -> int:
        if int(text) < fewest:
            raise argparse.ArgumentTypeError(f"{text} is less than {fewest}")
        return int(text)

    return number
