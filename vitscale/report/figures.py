"""The figures of accuracy, one function each: of `Curves` a Figure, or None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from vitscale.analysis.curves import LINE, Curves, compute_axis, network_axis, one_budget
from vitscale.analysis.variants import REPLICATE
from vitscale.report.axes import compute_ticks, size_ticks
from vitscale.report.labels import end_label, name_in_room, push_apart
from vitscale.report.laws import error_by_flops, frontier_by_flops, isoflop_panels
from vitscale.report.lines import Look, looks, measure_title, short, upstream_task
from vitscale.report.panels import (
    MOST_NAMES,
    SERIES,
    accuracy,
    columns_for,
    draw_caption,
    draw_title,
    family_text,
    measures,
    of_measure,
    panel_grid,
    seed_text,
    small_multiples,
    style,
)

MOST_TICKS = 8  # of sizes that are named each
MOST_LINES = 8  # of a panel in which they cross: more hide one another


def accuracy_by_set_size(found: Curves) -> Figure | None:
    """Small multiples over the number of unique pre-training images, at one budget (the paper's Figures 3 and 4)."""
    points, budget = one_budget(accuracy(found.points))
    sizes = points["examples"].nunique()
    if sizes == 0 or (sizes == 1 and compute_axis(accuracy(found.points))[1] is not None):
        return None
    spent = f"{short(budget)} images seen by every run" if budget else "every cell at its largest budget"
    points = points[points["examples"].notna()]
    return small_multiples(points, found, LINE, "examples", "unique pre-training images", size_ticks, spent)


def accuracy_by_flops(found: Curves) -> Figure | None:
    """Small multiples over training compute, for the set size whose cells differ in it (the paper's Figure 5)."""
    return _accuracy_by_compute(found, "flops", "pre-training compute, FLOPs")


def accuracy_by_time(found: Curves) -> Figure | None:
    """The same over device-seconds of pre-training; a budget that shares a trunk has no time of its own."""
    return _accuracy_by_compute(found, "seconds", "pre-training time, device-seconds")


def accuracy_by_params(found: Curves) -> Figure | None:
    """Over the parameters of a family's networks, at the set size and budget that most of them share."""
    points, at = network_axis(accuracy(found.points), "params", SERIES)
    return None if at is None else _by_network(found, points, SERIES, at, "params", "parameters")


def accuracy_by_patch(found: Curves) -> Figure | None:
    """Over the patch size of networks that are the same otherwise: a line for each of ViT-B/32, ViT-B/16, ..."""
    points = accuracy(found.points)
    points = points[points["model"].str.contains(r"/\d+$", regex=True)]  # a ResNet has no patches
    points = points.assign(model=points["model"].str.replace(r"/\d+$", "", regex=True))
    points, at = network_axis(points, "ratio", LINE)
    return None if at is None else _by_network(found, points, LINE, at, "ratio", "patch size, pixels")


def _accuracy_by_compute(found: Curves, column: str, label: str) -> Figure | None:
    points, examples = compute_axis(accuracy(found.points), column)
    if examples is None:
        return None
    spent = f"all cells with {short(examples)} unique images"
    return small_multiples(points, found, SERIES, column, label, compute_ticks, spent)


def _by_network(
    found: Curves, points: pd.DataFrame, keys: list[str], at: tuple[int, int], column: str, label: str
) -> Figure:
    spent = f"{short(at[0])} unique images, {short(at[1])} seen by every run"
    ticks = size_ticks if points[column].nunique() <= MOST_TICKS else compute_ticks
    return small_multiples(points, found, keys, column, label, ticks, spent)


def upstream_vs_downstream(found: Curves) -> Figure | None:
    """One panel a downstream measure: every seed a faint mark, every cell a mark; lines join one budget's set sizes."""
    points = accuracy(found.points)
    panels = [key for key in measures(points) if key[1] != "pretrain"]
    upstream = upstream_task(points)
    if not panels or upstream is None:
        return None
    line_looks = looks(points, LINE)
    paired = [_pairs(points, upstream, key) for key in panels]
    named = _budgets_named(paired)
    joined = max(len(pairs[LINE].drop_duplicates()) for pairs in paired) <= MOST_LINES
    with style():
        columns = 2 if len(panels) in (2, 4) else columns_for(look.label for look in line_looks.values())
        figure, grid = panel_grid(len(panels), columns)
        labels = []
        for axes, key, pairs in zip(grid, panels, paired, strict=True):
            if joined:
                seeds = _pairs(accuracy(found.seeds), upstream, key, by=REPLICATE)
                labels.append((axes, _scatter(axes, pairs, seeds, line_looks, named=named)))
            else:
                _cloud(axes, pairs, line_looks)
            draw_title(axes, measure_title(*key))
            axes.set_xlabel(f"{upstream.replace('_', ' ')} accuracy, %")
            axes.set_ylabel("downstream accuracy, %")
        draw_caption(figure, _pairs_text(points, named=named, joined=joined))
        push_apart(figure, labels)
        for axes, pairs in zip(grid, [] if joined else paired, strict=False):
            _name_models(axes, pairs, line_looks)
    return figure


def _pairs(
    points: pd.DataFrame, upstream: str, key: tuple[str, str, int | None], by: list[str] | None = None
) -> pd.DataFrame:
    cell = ["family", "model", "trunk", "examples", "examples_seen", *(by or [])]
    first = points[(points["task"] == upstream) & (points["protocol"] == "pretrain")]
    second = of_measure(points, key)[[*cell, "variant", "value"]]
    return first[[*cell, "value"]].merge(second, on=cell, suffixes=("_up", "_down"))


def _scatter(
    axes: Axes, pairs: pd.DataFrame, seeds: pd.DataFrame, line_looks: dict[tuple[str, ...], Look], *, named: bool
) -> list[Annotation]:
    """`named`: each budget has its name, and not each line alone."""
    texts = []
    areas = _areas(pairs, 18, 60)
    for line, group in pairs.groupby(LINE, sort=True):
        look = line_looks[tuple(map(str, line))]
        faint = seeds[(seeds[LINE] == list(line)).all(axis=1)]
        axes.scatter(
            100 * faint["value_up"], 100 * faint["value_down"], s=9, color=look.color, alpha=0.35,
            marker=look.marker, linewidths=0,
        )  # fmt: skip
        for _, budget in group.sort_values("examples").groupby("examples_seen", dropna=False):
            across, up = 100 * budget["value_up"], 100 * budget["value_down"]
            axes.plot(across, up, color=look.color, linewidth=1, linestyle=look.dash)
        axes.scatter(
            100 * group["value_up"], 100 * group["value_down"], s=areas[group.index],
            color=look.color, marker=look.marker, edgecolors="white", linewidths=0.6, zorder=3,
        )  # fmt: skip
        for _, run in group.groupby("examples_seen", dropna=False) if named else [("", group)]:
            last = run.sort_values("value_up").iloc[-1]
            seen = f", {short(float(last['examples_seen']))} seen" if named and pd.notna(last["examples_seen"]) else ""
            across, up = 100 * last["value_up"], 100 * last["value_down"]
            texts.append(end_label(axes, look.label + seen, across, up, look.color, 7 if named else 8))
    return texts


def _cloud(axes: Axes, pairs: pd.DataFrame, line_looks: dict[tuple[str, ...], Look]) -> None:
    """A small mark for every cell, in no order, so that no family covers another; no line, no seed."""
    areas = _areas(pairs, 7, 28)
    rows: Any = pairs.sample(frac=1, random_state=0).itertuples()
    for row in rows:
        look = line_looks[_line_of(row)]
        axes.scatter(
            100 * row.value_up, 100 * row.value_down, s=areas[row.Index], color=look.color, marker=look.marker,
            edgecolors="white", linewidths=0.4, alpha=0.75, zorder=3,
        )  # fmt: skip


def _name_models(axes: Axes, pairs: pd.DataFrame, line_looks: dict[tuple[str, ...], Look]) -> None:
    places = 100 * pairs[["value_up", "value_down"]].to_numpy()
    best: Any = pairs.assign(at=range(len(pairs))).sort_values("value_up", ascending=False).itertuples()
    found = [(line_looks[_line_of(row)], row.at) for row in best]
    name_in_room(axes, [(look.label, look.color, at) for look, at in found], places)


def _line_of(row: Any) -> tuple[str, ...]:
    return tuple(str(getattr(row, key)) for key in LINE)


def _areas(pairs: pd.DataFrame, least: float, most: float) -> pd.Series:
    """Of markers, by unique images."""
    sizes = sorted(pairs["examples"].dropna().unique())
    area = {size: least + (most - least) * number / max(1, len(sizes) - 1) for number, size in enumerate(sizes)}
    return pairs["examples"].map(area).astype(float)


def _budgets_named(paired: Sequence[pd.DataFrame]) -> bool:
    """Whether each budget of a line has a name: where there are several, and every panel has room for all of them."""
    named = [pairs[[*LINE, "examples_seen"]].drop_duplicates() for pairs in paired]
    return max(one["examples_seen"].nunique() for one in named) > 1 and max(map(len, named)) <= MOST_NAMES


def _pairs_text(points: pd.DataFrame, *, named: bool, joined: bool) -> str:
    """What tells the markers apart: family, set size, and the budget, which a name or a line has."""
    sizes = [short(float(size)) for size in sorted(points["examples"].dropna().unique())]
    listed = ", ".join(sizes) if len(sizes) <= MOST_TICKS else f"{sizes[0]} to {sizes[-1]}"
    larger = f" Markers from small to large: {listed} unique images." if len(sizes) > 1 else ""
    if not joined:
        return f"{seed_text(points)} {family_text(points)}{larger} A name is that of the model of the marker beside it."
    lines = " Lines join the set sizes at one budget." if len(sizes) > 1 else ""
    budgets = " Off the lines: other budgets." if lines and points["examples_seen"].nunique() > 1 and not named else ""
    return f"{seed_text(points)} {family_text(points)}{larger} Faint: one seed.{lines}{budgets}"


FIGURES: dict[str, Callable[[Curves], Figure | None]] = {
    draw.__name__: draw
    for draw in (
        accuracy_by_set_size,
        accuracy_by_flops,
        error_by_flops,
        frontier_by_flops,
        isoflop_panels,
        accuracy_by_params,
        accuracy_by_patch,
        accuracy_by_time,
        upstream_vs_downstream,
    )
}
OF_FITS = ("error_by_flops", "isoflop_panels")  # which draw what `fitted` gives
TITLES = {  # of those whose names do not say it
    "accuracy_by_set_size": "Accuracy against pre-training-set size",
    "accuracy_by_flops": "Accuracy against training compute",
    "error_by_flops": "Error against training compute, with its law",
    "frontier_by_flops": "The best error at each compute",
    "isoflop_panels": "Error against size at equal compute",
    "accuracy_by_params": "Accuracy against parameters",
    "accuracy_by_patch": "Accuracy against patch size",
    "accuracy_by_time": "Accuracy against training time",
    "upstream_vs_downstream": "Upstream against downstream",
}
# Why a figure is missing that a reader of any study would look for; the others come where what they show varies.
NOTHING = {
    "accuracy_by_set_size": "no finished cell, or one set size alone",
    "accuracy_by_flops": "no set size was trained at two budgets",
    "upstream_vs_downstream": "no cell has both an upstream and a downstream accuracy",
}


def title_of(name: str) -> str:
    return TITLES.get(name, name.replace("_", " ").capitalize())
