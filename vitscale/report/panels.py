"""What figures are made of: panels, lines named at their ends, baselines, a key, a caption, and files."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from fontTools import subset
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Transform

from vitscale.analysis.curves import Curves, cost_per_image
from vitscale.files import write_whole
from vitscale.report.axes import scientific
from vitscale.report.labels import end_label, push_apart
from vitscale.report.lines import BASELINE_NAMES, GREY, NAMES, Look, family_styles, looks, measure_title, upstream_task
from vitscale.report.overlay import along, draw_theirs, overlay_text, theirs_along

SMALLEST = 5.0  # points, of a key's letters: longer names are cut
ROOMY = 26  # letters of a line's name: so many beside each of three panels leave it half its width
WIDTH = 9.0  # inches
SERIES = ["family", "variant"]  # a line by compute: a family's models joined
MARKER, SMALL, LARGE = 26.0, 14.0, 64.0  # square points
SAME_SIZE = 1.5  # networks whose parameters differ by less have markers of one size
MOST_NAMES = 15  # that the height of a panel holds
ALIKE = 1.5  # markers whose areas differ by less are not told apart by them
INSIDE = ("", "o", "_", "|", "x")  # in white, the markers of a family's models that are alike
ROOM, PRICED, UNPRICED = 1.05, 0.17, 0.1  # of a key's height: all of it, a model with its price, one without
LONG, ACROSS = 14, 1.24  # of a key: rows in a column; the width of all columns, in panels without their names
TITLE = 96  # letters of the titles of all panels beside each other
LETTERS = 16.5  # of a caption in an inch
FORMATS = ("png", "svg", "pdf")


def style() -> AbstractContextManager[None]:
    return plt.style.context(Path(__file__).parent / "paper.mplstyle")


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """As PNG, SVG and PDF. Without a date, the same results give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    png, svg, pdf = (io.BytesIO() for _ in FORMATS)
    with style():  # fonts and resolution are looked up when a file is written
        # The canvases' own methods: `savefig` would draw everything twice, the first time for a layout that is done.
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
        with _fonts_without_layout():
            FigureCanvasPdf(figure).print_pdf(pdf, metadata={"CreationDate": None})
        figure.set_dpi(plt.rcParams["savefig.dpi"])
        FigureCanvasAgg(figure).print_png(png)
    paths = [folder / f"{name}.{kind}" for kind in FORMATS]
    for path, drawn in zip(paths, (png, svg, pdf), strict=True):
        write_whole(path, drawn.getvalue())
    return paths


@contextmanager
def _fonts_without_layout() -> Iterator[None]:
    """A PDF's fonts without the rules by which text is shaped: it places each letter itself, and to subset those rules
    takes longer than all else of it."""
    # fontTools has this as a default of its options; matplotlib, which calls it, passes none of ours on.
    before = getattr(subset.Options, "_drop_tables_default", [])
    subset.Options._drop_tables_default = [*before, "GSUB", "GPOS", "GDEF", "kern"]
    try:
        yield
    finally:
        subset.Options._drop_tables_default = before


def accuracy(points: pd.DataFrame) -> pd.DataFrame:
    return points[points["metric"] == "accuracy"]


def measures(points: pd.DataFrame) -> list[tuple[str, str, int | None]]:
    """Panels in reading order: upstream, then each task's few-shot by shots, then its fine-tuning."""
    keys = points[["task", "protocol", "shots"]].drop_duplicates().itertuples(index=False, name=None)
    found = [(str(task), str(protocol), None if pd.isna(shots) else int(shots)) for task, protocol, shots in keys]
    upstream = upstream_task(points)
    kept = [key for key in found if key[1] != "pretrain" or key[0] == upstream]
    order = {"pretrain": 0, "fewshot": 1, "finetune": 2}
    return sorted(kept, key=lambda key: (key[1] != "pretrain", key[0], order.get(key[1], 3), key[2] or 0))


def of_measure(points: pd.DataFrame, key: tuple[str, str, int | None]) -> pd.DataFrame:
    task, protocol, shots = key
    same_shots = points["shots"].isna() if shots is None else (points["shots"] == shots).fillna(False)
    return points[(points["task"] == task) & (points["protocol"] == protocol) & same_shots]


def columns_for(names: Iterable[str]) -> int:
    """Of panels beside each other: long names at the ends of lines would leave three no room."""
    return 2 if any(len(name) > ROOMY for name in names) else 3


def panel_grid(panels: int, columns: int = 3, free: int = 0) -> tuple[Figure, list[Axes]]:
    """`free`: places that stay empty behind the panels."""
    columns = min(columns, panels + free)
    rows = -(-(panels + free) // columns)
    width = WIDTH if columns > 1 else WIDTH * 0.6
    figure = plt.figure(figsize=(width, 2.65 * rows + 0.35), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, hspace=0.04, wspace=0.03)  # type: ignore[union-attr, call-arg]
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(panels)]
    return figure, axes


def small_multiples(
    points: pd.DataFrame,
    found: Curves,
    keys: list[str],
    x: str,
    x_label: str,
    ticks: Callable[[Axes, Sequence[float]], None],
    spent: str,
) -> Figure:
    panels = measures(points)
    line_looks = looks(points, keys)
    theirs = theirs_along(found, x)
    with style():
        several = points.assign(variant=points["variant"].fillna("")).groupby(keys)["model"].nunique().max() > 1
        names = [look.label for look in line_looks.values()]
        columns = columns_for([*names, *baseline_names(accuracy(found.baselines))])
        # Where nothing else names all of them, or there is room.
        keyed = several or len(line_looks) > MOST_NAMES or len(panels) % columns == columns - 1
        figure, grid = panel_grid(len(panels), columns, free=int(keyed))
        inside = marks_inside(points) if keyed else {}  # which the key explains
        labels = []
        for number, (axes, key) in enumerate(zip(grid, panels, strict=True)):
            beside = of_measure(theirs, key)
            ticks(axes, along(points, beside, x))
            texts = draw_lines(axes, of_measure(points, key), keys, x, line_looks, inside)
            if keyed and len(texts) > MOST_NAMES:  # the key has them all
                texts = _removed(texts)
            texts += draw_theirs(axes, beside, x)
            texts += draw_baselines(axes, of_measure(accuracy(found.baselines), key))
            labels.append((axes, texts))
            draw_title(axes, measure_title(*key))
            if number % columns == 0:
                axes.set_ylabel("accuracy, %")
            if number + columns >= len(panels):
                axes.set_xlabel(x_label)
        if keyed:
            place = grid[0].get_gridspec()[len(panels)]  # type: ignore[index]
            draw_key(figure.add_subplot(place), columns, points, keys, cost_per_image(found), line_looks)
        level = " Level lines: baselines." if len(found.baselines) else ""
        band = " Band: ± 1 sd over seeds." if points["n"].max() > 1 else ""
        faint = " Faint: something smaller along x is as good." if several else ""
        spent = f"{spent[0].upper()}{spent[1:]}."
        caption = f"{seed_text(points)}{band} {spent}{level}{faint}{size_text(points)}{overlay_text(theirs)}"
        draw_caption(figure, caption)
        push_apart(figure, labels)
    return figure


def _removed(texts: list[Annotation]) -> list[Annotation]:
    for text in texts:
        text.remove()
    return []


def draw_lines(
    axes: Axes,
    points: pd.DataFrame,
    keys: list[str],
    x: str,
    line_looks: dict[tuple[str, ...], Look],
    inside: Mapping[str, str],
) -> list[Annotation]:
    """Means and their bands, each line named at its end. Of a line of several models only the points that nothing
    smaller in x equals are joined; the others are faint. `inside`: as `marks_inside` gives it."""
    texts = []
    areas = marker_areas(points)
    for line, group in points.assign(variant=points["variant"].fillna("")).groupby(keys, sort=True):
        look = line_looks[tuple(map(str, line))]
        group = group.sort_values([x, "value"], ascending=[True, False])
        best = undominated(group) if group["model"].nunique() > 1 else pd.Series(True, index=group.index)
        joined = group[best]
        across = joined[x].astype(float).to_numpy()
        mean, sd = 100 * joined["value"].to_numpy(), 100 * joined["sd"].fillna(0).to_numpy()
        axes.fill_between(across, mean - sd, mean + sd, color=look.color, alpha=0.16, linewidth=0)
        if len(across) == 1:  # where a band has no width
            axes.errorbar(across, mean, yerr=sd, fmt="none", ecolor=look.color, elinewidth=1)
        axes.plot(across, mean, color=look.color, linestyle=look.dash)
        for shown, alpha in ((best, 1.0), (~best, 0.35)):
            axes.scatter(
                group.loc[shown, x].astype(float), 100 * group.loc[shown, "value"], s=areas[shown[shown].index],
                color=look.color, marker=look.marker, edgecolors="white", linewidths=0.6, alpha=alpha, zorder=3,
            )  # fmt: skip
        for model, of_model in group.groupby("model"):
            at = (of_model[x].astype(float), 100 * of_model["value"])
            _draw_inside(axes, *at, areas[of_model.index], inside.get(str(model), ""), axes.transData)
        texts.append(end_label(axes, look.label, across[-1], mean[-1], look.color, 8))
    return texts


def marks_inside(points: pd.DataFrame) -> dict[str, str]:
    """By model, what is in its markers: something else for each of a family's that are about as large."""
    areas = _areas_by_model(points)
    found: dict[str, str] = {}
    for _, models in points.groupby("family")["model"].unique().items():
        number, before = 0, 0.0
        for model in sorted(map(str, models), key=lambda name: (areas[name], name)):
            number = number + 1 if areas[model] < ALIKE * before else 0
            found[model], before = INSIDE[number % len(INSIDE)], float(areas[model])
    return found


def _draw_inside(axes: Axes, x: Any, y: Any, areas: Any, mark: str, places: Transform) -> None:
    if mark:
        filled = mark == "o"
        axes.scatter(
            x, y, s=areas * (0.15 if filled else 0.5), marker=mark, color="white", linewidths=0 if filled else 1,
            zorder=3.1, transform=places, clip_on=False,
        )  # fmt: skip


def undominated(line: pd.DataFrame) -> pd.Series:
    """Of points sorted by x, and best first: those better than all before them."""
    before = line["value"].cummax().shift()
    return (line["value"] > before) | before.isna()


def marker_areas(points: pd.DataFrame) -> pd.Series:
    """By parameters where `sized`; in square points."""
    params = points["params"].astype(float)
    low, high = params.min(), params.max()
    if not sized(points, "params"):
        return pd.Series(MARKER, index=points.index)
    share = (params / low).map(math.log) / math.log(high / low)
    return (SMALL + (LARGE - SMALL) * share).fillna(MARKER)


def sized(points: pd.DataFrame, column: str) -> bool:
    """Whether some family has networks whose parameters (`column`) differ enough to be told apart by their markers."""
    params = points[column].astype(float).groupby(points["family"])
    return bool((params.max() > SAME_SIZE * params.min()).any())


def draw_baselines(axes: Axes, baselines: pd.DataFrame) -> list[Annotation]:
    """Thin level lines; a family's carry its hollow marker at the right edge, so that colour is not all there is.

    Never dashed: a dash tells the lines of one family apart.
    """
    styles = family_styles(baselines)
    texts = []
    right = axes.get_xlim()[1]
    for row in baselines.assign(name=baseline_names(baselines)).sort_values(["init", "family"]).itertuples():
        color, marker = styles[str(row.family)]
        value = 100 * float(row.value)  # type: ignore[arg-type]
        axes.axhline(value, color=color, linewidth=0.7, alpha=0.8, zorder=1)
        axes.plot(right, value, marker=marker, color=color, markerfacecolor="white", markersize=4, clip_on=False)
        texts.append(end_label(axes, str(row.name), right, value, color, 7))
    return texts


def baseline_names(baselines: pd.DataFrame) -> list[str]:
    """What each baseline was begun with, its model where its family has several, and its settings."""
    several = baselines.groupby(["family", "init", "variant"], dropna=False)["model"].transform("nunique") > 1
    names = []
    for row in baselines.assign(several=several).itertuples():
        init = BASELINE_NAMES.get((str(row.protocol), str(row.init)), str(row.init))
        names.append(", ".join(filter(None, [init, str(row.model) if row.several else "", str(row.variant)])))
    return names


def draw_key(
    axes: Axes,
    abreast: int,
    points: pd.DataFrame,
    keys: list[str],
    cost: pd.Series,
    line_looks: dict[tuple[str, ...], Look],
) -> None:
    """What each line's or marker's model is and costs, in a place of the grid's that is free, of so many `abreast`."""
    axes.set_axis_off()
    rows = list(_of_lines(points, keys, line_looks) if "model" in keys else _of_models(points, line_looks))
    priced = any(model in cost.index for _, model, _, _ in rows) and len(rows) <= ROOM / PRICED
    columns = -(-len(rows) // LONG)
    tall, wide = -(-len(rows) // columns), ACROSS / columns
    step = PRICED if priced else min(UNPRICED, ROOM / tall)
    name_at = 0.22 if "model" in keys else 0.15
    # A letter is some 0.6 of its height wide.
    room = (72 * WIDTH / abreast - 100) * (wide - name_at) / 0.6
    size = max(SMALLEST, min(8, 100 * step, room / max(len(name) for name, *_ in rows)))
    inside = marks_inside(points)
    for number, (name, model, look, area) in enumerate(rows):
        left, y = wide * (number // tall), 0.93 - step * (number % tall)
        across = [left, left + 0.09, left + 0.18] if look.dash else [left + 0.09]
        axes.plot(
            across, [y] * len(across), color=look.color, linestyle=look.dash or "", linewidth=1.4, marker=look.marker,
            markersize=math.sqrt(area), markevery=[len(across) // 2], markeredgewidth=0, transform=axes.transAxes,
            clip_on=False,
        )  # fmt: skip
        _draw_inside(axes, left + 0.09, y, area, inside[model], axes.transAxes)
        shown = name if len(name) * size <= room else f"{name[: int(room / size) - 1]}…"
        axes.text(left + name_at, y, shown, color=look.color, fontsize=size, va="center", transform=axes.transAxes)
        if priced and model in cost.index:
            price = f"{scientific(cost[model])} FLOPs an image"
            axes.text(name_at, y - 0.075, price, color=GREY, fontsize=7.5, va="center", transform=axes.transAxes)


KeyRow = tuple[str, str, Look, float]
"""Name, model, look and the marker's area in square points."""


def _of_lines(points: pd.DataFrame, keys: list[str], line_looks: dict[tuple[str, ...], Look]) -> Iterator[KeyRow]:
    """A line is a model's: its dash tells it from others of its family."""
    areas, family, at = _areas_by_model(points), keys.index("family"), keys.index("model")
    params = points.groupby("model")["params"].mean()
    for line, look in sorted(line_looks.items(), key=lambda item: (item[0][family], params[item[0][at]])):
        model = line[at]
        name = look.label if model in look.label else f"{look.label}: {model}"
        yield name, model, look, areas[model]


def _of_models(points: pd.DataFrame, line_looks: dict[tuple[str, ...], Look]) -> Iterator[KeyRow]:
    """A line is a family's: its models are told apart by the size of their markers, where that differs."""
    areas, styles = _areas_by_model(points), family_styles(points)
    names = {look.label for look in line_looks.values()}
    models = points[["family", "model", "params"]].groupby(["family", "model"], as_index=False).mean()
    for family, group in models.sort_values(["family", "params", "model"]).groupby("family"):
        for model in group["model"]:
            alone = len(group) == 1 and model not in names
            name = f"{NAMES.get(str(family), str(family))}: {model}" if alone else model
            yield name, model, Look(name, *styles[str(family)], ""), areas[model]


def _areas_by_model(points: pd.DataFrame) -> pd.Series:
    return marker_areas(points).groupby(points["model"]).mean()


def seed_text(points: pd.DataFrame) -> str:
    low, high = int(points["n"].min()), int(points["n"].max())
    if high == 1:
        return "One run a point."
    return f"Means over {high} seeds." if low == high else f"Means over {low} to {high} seeds."


def family_text(points: pd.DataFrame) -> str:
    """Whose markers those are, for figures whose lines are not named."""
    shapes = {"o": "circles", "s": "squares", "^": "triangles", "D": "diamonds", "v": "triangles down", "P": "plusses"}
    styles = family_styles(points)
    told = [
        f"{NAMES.get(family, family)} {shapes.get(styles[family][1], 'crosses')}"
        for family in sorted(set(points["family"].dropna().astype(str)))
    ]
    return f"{', '.join(told)}."


def size_text(points: pd.DataFrame) -> str:
    return " Larger markers: more parameters." if sized(points, "params") else ""


def draw_title(axes: Axes, text: str) -> None:
    """On as many lines as it takes: a task may have any name."""
    columns = axes.get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    axes.set_title("\n".join(wrap(text, TITLE // columns)))


def draw_caption(figure: Figure, text: str) -> None:
    room = int(LETTERS * figure.get_figwidth())
    text = "\n".join(part for line in text.split("\n") for part in wrap(line, room))
    figure.supxlabel(text, fontsize=7.5, color=GREY, x=0.012, ha="left")
