"""Figures of error: against compute with its law, the frontier over all configurations, and isoFLOP profiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from vitscale.analysis.checks import choose
from vitscale.analysis.curves import Curves, compute_axis
from vitscale.analysis.fits import Fit, fit
from vitscale.analysis.forms import FORMS
from vitscale.analysis.frontier import Configuration, frontier
from vitscale.analysis.intervals import Sample, sample
from vitscale.analysis.isoflop import Budget, IsoFlop, isoflop
from vitscale.analysis.measured import CLUSTER, by_run
from vitscale.analysis.tables import Columns, curves_of
from vitscale.errors import VitscaleError
from vitscale.report.axes import compute_ticks, error_ticks, scientific, size_ticks
from vitscale.report.labels import end_label, push_apart
from vitscale.report.lines import GREY, Look, family_styles, looks, measure_title, short
from vitscale.report.overlay import along, draw_theirs, overlay_text, theirs_along
from vitscale.report.panels import (
    SERIES,
    accuracy,
    draw_caption,
    marker_areas,
    measures,
    of_measure,
    panel_grid,
    seed_text,
    style,
)

LAWS = ("power", "saturating")  # what few points can tell apart
FEWEST = 3  # places in x of a law
CHOICE = 5  # places from which on the dearest can be held out to choose a form
BEYOND = 10.0  # times the largest compute: further a forecast is a guess
RESAMPLES = 200  # enough for the eye; `vitscale fit` takes more
GRID = 60
NAMING = "model, and as far as they differ, unique images and images seen"
NAMED = 4  # configurations of a frontier: the dearest


@dataclass(frozen=True, slots=True)
class Law:
    fit: Fit
    sample: Sample
    low: float
    high: float
    """The computes between which it was fitted."""

    @property
    def end(self) -> float:
        """As far beyond the data as the data reach, up to `BEYOND` times."""
        return self.high * min(self.high / self.low, BEYOND)


def error_by_flops(found: Curves) -> Figure | None:
    """Small multiples in logarithms: each family's runs, and the law of its best, solid where fitted, dashed beyond."""
    points, examples = compute_axis(accuracy(found.points))
    if examples is None:
        return None
    runs = by_run(found)
    runs = accuracy(runs)[(accuracy(runs)["examples"] == examples).fillna(False)]
    panels = [key for key in measures(points) if (of_measure(points, key)["value"] < 1).any()]
    line_looks, theirs = looks(points, SERIES), theirs_along(found, "flops")
    with style():
        figure, grid = panel_grid(len(panels), columns=2)
        labels, fitted = [], 0
        for axes, key in zip(grid, panels, strict=True):
            here, own = of_measure(points, key), of_measure(runs, key)
            laws = {line: law for line, rows in _lines(own) if (law := law_of(rows)) is not None}
            fitted += len(laws)
            beside = of_measure(theirs, key)
            compute_ticks(axes, [*along(here, beside, "flops"), *(law.end for law in laws.values())])
            texts = _draw_laws(axes, here, laws, line_looks, 100 * (1 - beside["value"]))
            labels.append((axes, texts + draw_theirs(axes, beside, "flops", error=True)))
            axes.set_title(measure_title(*key))
            axes.set_ylabel("error, %")
            axes.set_xlabel("pre-training compute, FLOPs")
        if not fitted:
            plt.close(figure)
            return None
        draw_caption(
            figure,
            f"{seed_text(points)} Lines: laws of the error fitted to runs with"
            f" {short(examples)} unique images, dashed beyond the largest;\nband: 95 % interval of the law."
            " In the corner: the law, C the compute in FLOPs; in brackets the 95 % interval of its exponent."
            f"{overlay_text(theirs)}",
        )
        push_apart(figure, labels)
    return figure


def frontier_by_flops(found: Curves) -> Figure | None:
    """Small multiples: every configuration, faint where a cheaper one is as good, and the frontier of the others."""
    points = accuracy(found.points).dropna(subset=["flops"])
    points = points[points["value"] < 1]
    panels = [key for key in measures(points) if _budgets(of_measure(points, key)) > 1]
    if not panels:
        return None
    theirs = theirs_along(found, "flops")
    with style():
        figure, grid = panel_grid(len(panels), columns=2)
        labels = []
        for axes, key in zip(grid, panels, strict=True):
            here, beside = of_measure(points, key), of_measure(theirs, key)
            compute_ticks(axes, along(here, beside, "flops"))
            error_ticks(axes, [100 * (1 - value) for value in along(here, beside, "value")])
            texts = _draw_frontier(axes, here)
            labels.append((axes, texts + draw_theirs(axes, beside, "flops", error=True)))
            axes.set_title(measure_title(*key))
            axes.set_ylabel("error, %")
            axes.set_xlabel("pre-training compute, FLOPs")
        draw_caption(
            figure, f"{seed_text(points)} Faint: something cheaper is as good. Names: {NAMING}.{overlay_text(theirs)}"
        )
        push_apart(figure, labels)
    return figure


def isoflop_panels(found: Curves) -> Figure | None:
    """Small multiples: error against parameters at each compute that has four sizes, each with its parabola."""
    runs = accuracy(by_run(found)).dropna(subset=["params"])
    profiles = {key: one for key in measures(runs) if (one := _isoflop(of_measure(runs, key))) is not None}
    if not profiles:
        return None
    with style():
        figure, grid = panel_grid(len(profiles), columns=2)
        labels = []
        for axes, (key, one) in zip(grid, profiles.items(), strict=True):
            sizes = np.concatenate([budget.fit.observations.inputs[:, 0] for budget in one.budgets])
            (size_ticks if len(np.unique(sizes)) <= 8 else compute_ticks)(axes, sizes.tolist())
            labels.append((axes, _draw_profiles(axes, one)))
            axes.set_title(measure_title(*key))
            axes.set_ylabel("error, %")
            axes.set_xlabel("parameters")
        draw_caption(
            figure, "Each line: one compute, in FLOPs. Crosses: the best size, where it lies inside those measured."
        )
        push_apart(figure, labels)
    return figure


def law_of(rows: pd.DataFrame) -> Law | None:
    """Of one line's runs in one measure: the law of error in compute, if enough places tell one that falls."""
    columns = Columns(inputs=("flops",), y="value", cluster=CLUSTER, measure="accuracy")
    if rows["flops"].nunique() < FEWEST:
        return None
    try:
        (curve,), _ = curves_of(rows, columns)
    except VitscaleError:  # equal values, or versions that are not compared: there is no law to draw
        return None
    points = curve.observations
    several = len(np.unique(points.inputs)) >= CHOICE
    found = fit(choose(points, LAWS).form if several else FORMS["power"], points)
    low, high = float(points.inputs.min()), float(points.inputs.max())
    falls = found.predict(np.array([[high]]))[0] < 0.999 * found.predict(np.array([[low]]))[0]
    return Law(found, sample(found, resamples=RESAMPLES), low, high) if falls else None


def equation(law: Law) -> str:
    """Mathtext such as `$0.031 + 0.12\\,(C/10^{20})^{-0.33}$ [0.21, 0.48]`."""
    values = law.fit.parameters
    power = round(np.log10(np.sqrt(law.low * law.high)))
    size = values["b"] * 10.0 ** (-values["c"] * power)
    floor = f"{values['a']:.2g} + " if values.get("a", 0.0) > 1e-6 else ""
    interval = law.sample.parameters().get("c")
    ends = f" [{interval.low:.2f}, {interval.high:.2f}]" if interval else ""
    return f"${floor}{size:.2g}\\,(C/10^{{{power}}})^{{-{values['c']:.2f}}}${ends}"


def _lines(runs: pd.DataFrame) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    for line, rows in runs.assign(variant=runs["variant"].fillna("")).groupby(SERIES, sort=True):
        yield tuple(map(str, line)), rows


def _draw_laws(
    axes: Axes,
    points: pd.DataFrame,
    laws: dict[tuple[str, ...], Law],
    line_looks: dict[tuple[str, ...], Look],
    beside: pd.Series,
) -> list[Annotation]:
    """`beside`: further errors that the axis has to hold."""
    texts, written, errors = [], [], [*(100 * (1 - points.loc[points["value"] < 1, "value"])), *beside]
    areas = marker_areas(points)
    for line, group in _lines(points):
        look, law = line_looks[line], laws.get(line)
        axes.scatter(
            group["flops"], 100 * (1 - group["value"]), s=areas[group.index], color=look.color, marker=look.marker,
            edgecolors="white", linewidths=0.6, zorder=3,
        )  # fmt: skip
        end = group.sort_values("flops").iloc[-1]
        x, y = float(end["flops"]), 100 * (1 - float(end["value"]))
        if law is not None:
            x, y = law.end, _draw_law(axes, law, look)
            errors.append(y)
            written.append((equation(law), look.color))
        texts.append(end_label(axes, look.label, x, y, look.color, 8))
    error_ticks(axes, errors)
    for number, (text, color) in enumerate(written):
        axes.text(0.03, 0.04 + 0.085 * number, text, transform=axes.transAxes, fontsize=6.5, color=color)
    low, high = axes.get_ylim()
    axes.set_ylim(low / (high / low) ** (0.1 * len(written)), high)  # room for the equations
    return texts


def _draw_law(axes: Axes, law: Law, look: Look) -> float:
    """The error in % at the law's end."""
    x = np.geomspace(law.low, law.end, GRID)
    y = 100 * law.fit.predict(x[:, None])
    inside = x <= law.high * (1 + 1e-9)
    axes.plot(x[inside], y[inside], color=look.color)
    axes.plot(x[~inside], y[~inside], color=look.color, linestyle=(0, (4, 2.5)), linewidth=1.2)
    if (found := law.sample.predictions(x[:, None])) is not None:
        band = 100 * np.array([(one.low, one.high) for one in found[0]])
        axes.fill_between(x, np.maximum(band[:, 0], 1e-3), band[:, 1], color=look.color, alpha=0.14, linewidth=0)
    return float(y[-1])


def _draw_frontier(axes: Axes, points: pd.DataFrame) -> list[Annotation]:
    points = points.sort_values(["flops", "value"], ascending=[True, False]).reset_index(drop=True)
    styles, areas, names = family_styles(points), marker_areas(points), _names(points)
    grid = [
        Configuration(str(number), float(row["flops"]), 100 * (1 - float(row["value"])), int(row["n"]))
        for number, row in points.iterrows()
    ]
    best = frontier(grid)
    for number, one in enumerate(grid):
        color, marker = styles[str(points["family"][number])]
        axes.scatter(
            one.compute, one.value, s=areas[number], color=color, marker=marker, edgecolors="white", linewidths=0.6,
            alpha=1.0 if one in best else 0.3, zorder=3,
        )  # fmt: skip
    axes.step([one.compute for one in best], [one.value for one in best], where="post", color=GREY, linewidth=1)
    shown = [(int(one.name), one) for one in best[-NAMED:]]
    colors = {number: styles[str(points["family"][number])][0] for number, _ in shown}
    return [end_label(axes, names[number], one.compute, one.value, colors[number], 7) for number, one in shown]


def _budgets(points: pd.DataFrame) -> int:
    """The most computes that one family was trained at."""
    return int(points.groupby("family")["flops"].nunique().max())


def _names(points: pd.DataFrame) -> list[str]:
    """Model, unique images and images seen, as far as they differ."""
    names = points["model"].astype(str)
    for column in ("examples", "examples_seen"):
        if points[column].nunique() > 1:
            names = names + ", " + points[column].map(lambda size: "" if pd.isna(size) else short(size))
    return names.tolist()


def _isoflop(rows: pd.DataFrame) -> IsoFlop | None:
    columns = Columns(inputs=("flops", "params"), y="value", cluster=CLUSTER, measure="accuracy")
    try:
        (curve,), _ = curves_of(rows.dropna(subset=["flops"]), columns)
    except VitscaleError:
        return None
    found = isoflop(curve.observations, resamples=RESAMPLES)
    return found if found.budgets else None


def _draw_profiles(axes: Axes, profile: IsoFlop) -> list[Annotation]:
    texts, errors = [], []
    shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, len(profile.budgets)))
    for budget, shade in zip(profile.budgets, shades, strict=True):
        color = "#{:02x}{:02x}{:02x}".format(*(int(255 * part) for part in shade[:3]))
        texts.append(_draw_profile(axes, budget, color))
        errors += list(100 * budget.fit.observations.y)
    error_ticks(axes, errors)
    return texts


def _draw_profile(axes: Axes, budget: Budget, color: str) -> Annotation:
    points = budget.fit.observations
    axes.scatter(points.inputs[:, 0], 100 * points.y, s=16, color=color, edgecolors="white", linewidths=0.5, zorder=3)
    sizes = np.geomspace(budget.smallest, budget.largest, GRID)
    curve = 100 * budget.fit.predict(sizes[:, None])
    axes.plot(sizes, curve, color=color, linewidth=1.3)
    if not budget.at_edge:
        axes.plot(budget.best_size, 100 * budget.best_value, marker="x", color=color, markersize=7, zorder=4)
    return end_label(axes, scientific(budget.compute), sizes[-1], curve[-1], color, 7)
