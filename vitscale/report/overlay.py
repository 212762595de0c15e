"""Published points over a study's own: grey, and named as theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.text import Annotation

from vitscale.analysis.curves import LINE, Curves
from vitscale.report.labels import end_label
from vitscale.report.lines import GREY, KNOWN, NAMES

TABLES = {"examples": 5, "flops": 6}  # of the paper: which has what is drawn along x
PAPER = "arXiv 2010.11929v2"


def theirs_along(found: Curves, x: str) -> pd.DataFrame:
    """The published points that can be drawn along a column; none where no table says it."""
    return found.theirs[found.theirs["source"] == TABLES.get(x, 0)]


def draw_theirs(axes: Axes, points: pd.DataFrame, x: str, *, error: bool = False) -> list[Annotation]:
    """Dotted lines: of each model over set sizes; else of each family, through what nothing before it equals."""
    texts = []
    for name, marker, line in lines_of_theirs(points, x):
        across, up = line[x].astype(float), 100 * (1 - line["value"] if error else line["value"])
        axes.scatter(across, up, s=12, marker=marker, color=GREY, alpha=0.55, linewidths=0, zorder=2)
        best = line["joined"]
        axes.plot(across[best], up[best], color=GREY, linewidth=0.8, linestyle=(0, (1, 1.5)), marker="", zorder=1.8)
        texts.append(end_label(axes, name, across[best].iloc[-1], up[best].iloc[-1], GREY, 7))
    return texts


def lines_of_theirs(points: pd.DataFrame, x: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Of each line its name, its marker, and its points from left to right: `joined` are those that nothing before them
    equals, where a line has several models."""
    of_models = x == "examples"
    for key, line in points.groupby(LINE if of_models else ["family"], sort=True):
        line = line.sort_values([x, "value"], ascending=[True, False])
        joined = of_models | (line["value"] > line["value"].cummax().shift(fill_value=-1))
        name = str(key[1]) if of_models else NAMES[str(key[0])]
        yield f"{name}, paper", KNOWN[str(key[0])][1], line.assign(joined=joined)


def source_text(points: pd.DataFrame) -> str:
    return f"{PAPER}, Table {points['source'].iloc[0]}"


def overlay_text(points: pd.DataFrame) -> str:
    """For the caption; empty where nothing is drawn."""
    if points.empty:
        return ""
    return f"\nGrey: the paper's own, {source_text(points)}."


def along(ours: pd.DataFrame, theirs: pd.DataFrame, x: str) -> Sequence[float]:
    """All values that an axis has to hold."""
    return [float(value) for value in (*ours[x], *theirs[x])] if len(theirs) else [float(value) for value in ours[x]]
