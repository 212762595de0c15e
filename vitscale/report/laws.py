"""Figures of error: against compute with its law, the frontier over all configurations, and isoFLOP profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from vitscale.analysis.curves import Curves, compute_axis
from vitscale.analysis.frontier import Configuration, frontier
from vitscale.analysis.isoflop import Budget, IsoFlop
from vitscale.report.axes import compute_ticks, error_ticks, raised, scientific, size_ticks
from vitscale.report.fitted import Law, Line, fitted, lines_of, profiled_size
from vitscale.report.labels import end_label, push_apart
from vitscale.report.lines import GREY, Look, family_styles, line_name, looks, measure_title, short
from vitscale.report.overlay import along, draw_theirs, overlay_text, theirs_along
from vitscale.report.panels import (
    SERIES,
    accuracy,
    draw_caption,
    draw_title,
    family_text,
    marker_areas,
    measures,
    of_measure,
    panel_grid,
    seed_text,
    size_text,
    style,
    undominated,
)

GRID = 60
NAMING = "model, and as far as they differ, unique images and images seen"
CORNER = " In the corner: the law, C the compute in FLOPs; in brackets the 95 % interval of its exponent."
PLANNED = " Hollow: predicted, of planned runs."
FAINT = 0.3
SHORTEST = 0.4  # of an error: an axis need not hold a spread that reaches lower
LOWEST = 1e-9  # of an error in %: a logarithm needs one, and the axis ends far above
REACH = 10.0  # times below the smallest measured error that is not 0: further an axis does not go for a law
ZERO = " Open triangles on the axis: no error at all."
EQUATIONS = 5  # in a panel: more would leave its data no room
SHADES = (0.35, 0.7)  # of viridis: what can be told from white and from the page's dark paper alike
NAMED = 4  # configurations of a frontier: the dearest


def error_by_flops(found: Curves) -> Figure | None:
    """Small multiples in logarithms: each family's runs, and the law of them, solid where fitted, dashed beyond."""
    points, examples = compute_axis(accuracy(found.points))
    laws = fitted(found).laws
    if examples is None or not laws:
        return None
    panels = [key for key in measures(points) if (of_measure(points, key)["value"] < 1).any()]
    line_looks, theirs = looks(points, SERIES), theirs_along(found, "flops")
    planned = found.planned[found.planned["examples"] == examples]
    with style():
        figure, grid = panel_grid(len(panels), columns=2)
        labels, hollow = [], 0
        for axes, key in zip(grid, panels, strict=True):
            here, beside, own = of_measure(points, key), of_measure(theirs, key), laws.get(key, {})
            compute_ticks(axes, [*along(here, beside, "flops"), *(law.end for law in own.values())])
            texts = _draw_laws(axes, here, own, line_looks, 100 * (1 - beside["value"]))
            hollow += sum(_draw_planned(axes, planned, line, own, line_looks) for line in own)
            labels.append((axes, texts + draw_theirs(axes, beside, "flops", error=True)))
            draw_title(axes, measure_title(*key))
            axes.set_ylabel("error, %")
            axes.set_xlabel("pre-training compute, FLOPs")
        draw_caption(
            figure,
            f"{seed_text(points)}{_bars(points)} Lines: laws of the error fitted to runs with {short(examples)} unique"
            f" images{_best_text(points)}, dashed beyond the largest; band: 95 % interval of the law."
            f"{CORNER if any(0 < len(own) <= EQUATIONS for own in laws.values()) else ''}"
            f"{PLANNED if hollow else ''}{_zero_text(points)}{size_text(points)}"
            f"{overlay_text(theirs)}",
        )
        push_apart(figure, labels)
    return figure


def frontier_by_flops(found: Curves) -> Figure | None:
    """Small multiples: every configuration, faint where a cheaper one is as good, and the frontier of the others."""
    points = accuracy(found.points).dropna(subset=["flops"])
    panels = [
        key
        for key in measures(points)
        if _budgets(of_measure(points, key)) > 1 and (of_measure(points, key)["value"] < 1).any()
    ]
    if not panels:
        return None
    theirs = theirs_along(found, "flops")
    with style():
        figure, grid = panel_grid(len(panels), columns=2)
        labels = []
        for axes, key in zip(grid, panels, strict=True):
            here, beside = of_measure(points, key), of_measure(theirs, key)
            compute_ticks(axes, along(here, beside, "flops"))
            error_ticks(axes, [*_errors(here), *(100 * (1 - beside["value"]))])
            texts = _draw_frontier(axes, here)
            labels.append((axes, texts + draw_theirs(axes, beside, "flops", error=True)))
            draw_title(axes, measure_title(*key))
            axes.set_ylabel("error, %")
            axes.set_xlabel("pre-training compute, FLOPs")
        faint = f"Faint: something cheaper is as good.{_zero_text(points)}\nNames, of the {NAMED} dearest: {NAMING}."
        families = f" {family_text(points)}{size_text(points)}"
        draw_caption(figure, f"{seed_text(points)}{_bars(points)} {faint}{families}{overlay_text(theirs)}")
        push_apart(figure, labels)
    return figure


def isoflop_panels(found: Curves) -> Figure | None:
    """Small multiples: error against parameters at each compute that has four sizes, each with its parabola."""
    profiles = {
        (key, line): one
        for key, of_lines in fitted(found).profiles.items()
        for line, one in of_lines.items()
        if any((budget.fit.observations.y > 0).any() for budget in one.budgets)
    }
    if not profiles:
        return None
    several, examples = len({line for _, line in profiles}) > 1, profiled_size(found)
    with style():
        figure, grid = panel_grid(len(profiles), columns=2)
        labels = []
        for axes, ((key, line), one) in zip(grid, profiles.items(), strict=True):
            sizes = np.concatenate([budget.fit.observations.inputs[:, 0] for budget in one.budgets])
            (size_ticks if len(np.unique(sizes)) <= 8 else compute_ticks)(axes, sizes.tolist())
            labels.append((axes, _draw_profiles(axes, one)))
            draw_title(axes, measure_title(*key) + (f", {line_name(line)}" if several else ""))
            axes.set_ylabel("error, %")
            axes.set_xlabel("parameters")
        runs = f"Runs with {short(examples)} unique images. " if examples else ""
        text = f"{runs}Each line: one compute, in FLOPs. Crosses: the best size, where its runs tell it."
        if any((budget.fit.observations.y == 0).any() for one in profiles.values() for budget in one.budgets):
            text += ZERO
        draw_caption(figure, text)
        push_apart(figure, labels)
    return figure


def equation(law: Law) -> str:
    """Such as `0.031 + 0.12 (C/10²⁰)⁻⁰·³³ [0.21, 0.48]`; no number where one is not identified."""
    if law.open:
        floor = "a + " if "a" in law.profiles else ""
        return f"{floor}b C⁻ᶜ; not identified: {', '.join(law.open)}"
    values = law.fit.parameters
    power = round(np.log10(np.sqrt(law.low * law.high)))
    size = values["b"] * 10.0 ** (-values["c"] * power)
    # Also a floor of 0: the interval is that of a law which has one.
    floor = f"{values['a'] if values['a'] > 1e-6 else 0:.2g} + " if "a" in values else ""
    interval = law.drawn.parameters().get("c")
    ends = f" [{interval.low:.2f}, {interval.high:.2f}]" if interval else ""
    exponent = raised(f"-{values['c']:.2f}")
    return f"{floor}{size:.2g} (C/10{raised(power)}){exponent}{ends}"


def _draw_laws(
    axes: Axes,
    points: pd.DataFrame,
    laws: Mapping[Line, Law],
    line_looks: dict[tuple[str, ...], Look],
    beside: pd.Series,
) -> list[Annotation]:
    """`beside`: further errors that the axis has to hold."""
    ends, written, errors = [], [], [*_errors(points), *beside]
    areas, lowest = marker_areas(points), min(errors) / REACH
    for line, group in lines_of(points):
        look, law = line_looks[line], laws.get(line)
        for top, some in _by_rank(group):
            _draw_points(axes, some, areas, look.color, look.marker, 1.0 if top else FAINT)
        end = group.sort_values("flops").iloc[-1]
        x, y = float(end["flops"]), 100 * (1 - float(end["value"]))
        if law is not None:
            x, y = law.end, max(_draw_law(axes, law, look), lowest)
            errors.append(y)
            written.append((equation(law), look.color))
        ends.append((look, x, y))
    error_ticks(axes, errors)
    _write_equations(axes, written)
    bottom = axes.get_ylim()[0]
    for line, group in lines_of(points):
        _draw_zeros(axes, group.loc[group["value"] >= 1, "flops"], line_looks[line].color)
    return [end_label(axes, look.label, x, max(y, bottom), look.color, 8) for look, x, y in ends]


def _write_equations(axes: Axes, written: Sequence[tuple[str, str]]) -> None:
    """In the lower left corner, below the data; of many laws only how many there are."""
    if len(written) > EQUATIONS:
        written = [(f"{len(written)} laws: vitscale fit has their equations", GREY)]
    for number, (text, color) in enumerate(written):
        axes.text(0.03, 0.04 + 0.085 * number, text, transform=axes.transAxes, fontsize=7, color=color)
    share = 0.02 + 0.085 * len(written)
    low, high = axes.get_ylim()
    axes.set_ylim(low / (high / low) ** (share / (1 - share)), high)


def _by_rank(line: pd.DataFrame) -> list[tuple[bool, pd.DataFrame]]:
    """Of a line of several models: what nothing cheaper equals, and what something does."""
    line = line.sort_values(["flops", "value"], ascending=[True, False])
    if line["model"].nunique() < 2:
        return [(True, line)]
    best = undominated(line)
    return [(True, line[best]), (False, line[~best])]


def _draw_points(axes: Axes, points: pd.DataFrame, areas: pd.Series, color: str, marker: str, alpha: float) -> None:
    """With their spread over seeds; errors of 0 have no place on the axis."""
    points = points[points["value"] < 1]
    _draw_spread(axes, points, color, alpha)
    axes.scatter(
        points["flops"], 100 * (1 - points["value"]), s=areas[points.index], color=color, marker=marker,
        edgecolors="white", linewidths=0.6, alpha=alpha, zorder=3,
    )  # fmt: skip


def _draw_zeros(axes: Axes, places: pd.Series | np.ndarray, color: str) -> None:
    """What made no error at all, at the bottom of a logarithmic axis; `places`: on the other."""
    zeros = np.asarray(places, dtype=float)
    if not len(zeros):  # whose place in the layout would have no size
        return
    axes.plot(
        zeros, np.zeros(len(zeros)), linestyle="", marker="v", markersize=6, markerfacecolor="white",
        markeredgecolor=color, transform=axes.get_xaxis_transform(), clip_on=False, zorder=4, gid="zero",
    )  # fmt: skip


def _zero_text(points: pd.DataFrame) -> str:
    return ZERO if (points["value"] >= 1).any() else ""


def _best_text(points: pd.DataFrame) -> str:
    several = points.groupby(SERIES)["model"].nunique().max() > 1
    return " that nothing cheaper of the family equals (the others are faint)" if several else ""


def _draw_law(axes: Axes, law: Law, look: Look) -> float:
    """The error in % at the law's end."""
    x = np.geomspace(law.low, law.end, GRID)
    y = 100 * law.fit.predict(x[:, None])
    inside = x <= law.high * (1 + 1e-9)
    axes.plot(x[inside], y[inside], color=look.color)
    axes.plot(x[~inside], y[~inside], color=look.color, linestyle=(0, (4, 2.5)), linewidth=1.2)
    if (found := law.drawn.predictions(x[:, None])) is not None:
        band = 100 * np.array([(one.low, one.high) for one in found[0]])
        axes.fill_between(x, np.maximum(band[:, 0], LOWEST), band[:, 1], color=look.color, alpha=0.14, linewidth=0)
    return float(y[-1])


def _draw_spread(axes: Axes, points: pd.DataFrame, color: str, alpha: float = 1.0) -> None:
    """One standard deviation over seeds up and down, where there are several."""
    several, low, high = _spread(points)
    axes.vlines(several["flops"].astype(float), low, high, color=color, linewidth=0.8, alpha=alpha, zorder=2.5)


def _spread(points: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """The points of several seeds, and their errors in % less and plus one standard deviation."""
    several = points[points["n"] > 1]
    error, sd = 100 * (1 - several["value"]), 100 * several["sd"]
    return several, (error - sd).clip(lower=LOWEST), error + sd


def _errors(points: pd.DataFrame) -> list[float]:
    """What an axis has to hold: errors above 0 and their spread, of which a logarithmic axis would have no end."""
    points = points[points["value"] < 1]
    error = 100 * (1 - points["value"])
    several, low, high = _spread(points)
    return [*error, *np.maximum(low, SHORTEST * 100 * (1 - several["value"])), *high]


def _bars(points: pd.DataFrame) -> str:
    return " Bars: ± 1 sd over seeds." if points["n"].max() > 1 else ""


def _draw_planned(
    axes: Axes, planned: pd.DataFrame, line: Line, laws: Mapping[Line, Law], line_looks: dict[Line, Look]
) -> int:
    """Hollow markers where the line's law sees its planned runs, up to its end; how many. Of a family with several
    lines it is not known which of them a run would belong to."""
    family, law, look = line[0], laws[line], line_looks[line]
    if sum(other[0] == family for other in line_looks) > 1:
        return 0
    x = np.unique(planned.loc[planned["family"] == family, "flops"].to_numpy(dtype=float))
    x = x[x <= law.end]
    y = 100 * law.fit.predict(x[:, None])
    axes.scatter(x, y, s=22, facecolors="white", edgecolors=look.color, marker=look.marker, linewidths=1, zorder=2.8)
    return len(x)


def _draw_frontier(axes: Axes, points: pd.DataFrame) -> list[Annotation]:
    points = points.sort_values(["flops", "value"], ascending=[True, False]).reset_index(drop=True)
    styles, areas, names = family_styles(points), marker_areas(points), _names(points)
    grid = [
        Configuration(str(number), float(row["flops"]), 100 * (1 - float(row["value"])), int(row["n"]))
        for number, row in points.iterrows()
    ]
    best = frontier(grid)
    is_best = pd.Series([one in best for one in grid], dtype=bool)
    for (family, top), group in points.groupby([points["family"], is_best]):
        color, marker = styles[str(family)]
        _draw_points(axes, group, areas, color, marker, 1.0 if top else FAINT)
        _draw_zeros(axes, group.loc[group["value"] >= 1, "flops"], color)
    bottom = axes.get_ylim()[0]
    heights = [max(one.value, bottom) for one in best]
    axes.step([one.compute for one in best], heights, where="post", color=GREY, linewidth=1)
    labels = []
    for one, height in list(zip(best, heights, strict=True))[-NAMED:]:
        color = styles[str(points["family"][int(one.name)])][0]
        labels.append(end_label(axes, names[int(one.name)], one.compute, height, color, 7))
    return labels


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


def _draw_profiles(axes: Axes, profile: IsoFlop) -> list[Annotation]:
    errors = np.concatenate([100 * budget.fit.observations.y for budget in profile.budgets])
    error_ticks(axes, errors[errors > 0].tolist())
    shades = plt.get_cmap("viridis")(np.linspace(*SHADES, len(profile.budgets)))
    texts = []
    for budget, shade in zip(profile.budgets, shades, strict=True):
        color = "#{:02x}{:02x}{:02x}".format(*(int(255 * part) for part in shade[:3]))
        texts.append(_draw_profile(axes, budget, color))
    return texts


def _draw_profile(axes: Axes, budget: Budget, color: str) -> Annotation:
    points = budget.fit.observations
    x, y = points.inputs[:, 0], 100 * points.y
    axes.scatter(x[y > 0], y[y > 0], s=16, color=color, edgecolors="white", linewidths=0.5, zorder=3)
    _draw_zeros(axes, x[y == 0], color)
    sizes = np.geomspace(budget.smallest, budget.largest, GRID)
    curve = 100 * budget.fit.predict(sizes[:, None])
    axes.plot(sizes, curve, color=color, linewidth=1.3)
    if budget.best_size is not None and budget.best_value is not None:
        axes.plot(budget.best_size, 100 * budget.best_value, marker="x", color=color, markersize=7, zorder=4)
    return end_label(axes, scientific(budget.compute), sizes[-1], max(curve[-1], axes.get_ylim()[0]), color, 7)
