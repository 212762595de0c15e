"""The figures, one function each. Each takes `Curves` and returns a Figure, or None where there is nothing to draw."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from vitscale.analysis.curves import LINE, Curves, compute_axis, cost_per_image, one_budget
from vitscale.analysis.variants import REPLICATE
from vitscale.files import write_whole
from vitscale.report.axes import compute_ticks, scientific, size_ticks
from vitscale.report.labels import end_label, push_apart
from vitscale.report.lines import (
    BASELINE_NAMES,
    GREY,
    NAMES,
    Look,
    family_styles,
    looks,
    measure_title,
    short,
    upstream_task,
)

WIDTH = 9.0  # inches
SERIES = ["family", "variant"]  # a line by compute: a family's models joined
FORMATS = ("png", "svg", "pdf")


def style() -> AbstractContextManager[None]:
    return plt.style.context(Path(__file__).parent / "paper.mplstyle")


def accuracy_by_set_size(found: Curves) -> Figure | None:
    """Small multiples over the number of unique pre-training images, at one budget (the paper's Figures 3 and 4)."""
    points, budget = one_budget(_accuracy(found.points))
    if points["examples"].nunique() == 0:
        return None
    spent = f"{short(budget)} images seen by every run" if budget else "every cell at its largest budget"
    points = points[points["examples"].notna()]
    return _small_multiples(points, found, LINE, "examples", "unique pre-training images", size_ticks, spent)


def accuracy_by_flops(found: Curves) -> Figure | None:
    """Small multiples over training compute, for the set size whose cells differ in it (the paper's Figure 5)."""
    points, examples = compute_axis(_accuracy(found.points))
    if examples is None:
        return None
    spent = f"all cells with {short(examples)} unique images"
    return _small_multiples(points, found, SERIES, "flops", "pre-training compute, FLOPs", compute_ticks, spent)


def upstream_vs_downstream(found: Curves) -> Figure | None:
    """One panel a downstream measure: every seed a faint mark, every cell a mark; lines join one budget's set sizes."""
    points = _accuracy(found.points)
    panels = [key for key in measures(points) if key[1] != "pretrain"]
    upstream = upstream_task(points)
    if not panels or upstream is None:
        return None
    line_looks = looks(points, LINE)
    with style():
        figure, grid = _grid(len(panels), columns=2 if len(panels) in (2, 4) else 3)
        labels = []
        for axes, key in zip(grid, panels, strict=True):
            pairs = _pairs(points, upstream, key)
            seeds = _pairs(_accuracy(found.seeds), upstream, key, by=REPLICATE)
            labels.append((axes, _scatter(axes, pairs, seeds, line_looks)))
            axes.set_title(measure_title(*key))
            axes.set_xlabel(f"{upstream.replace('_', ' ')} accuracy, %")
            axes.set_ylabel("downstream accuracy, %")
        _caption(
            figure,
            f"Large: mean over seeds, larger with more pre-training images; faint: one seed. {_seed_text(points)}"
            " Lines join the set sizes at one budget.",
        )
        push_apart(figure, labels)
    return figure


FIGURES: dict[str, Callable[[Curves], Figure | None]] = {
    "accuracy_by_set_size": accuracy_by_set_size,
    "accuracy_by_flops": accuracy_by_flops,
    "upstream_vs_downstream": upstream_vs_downstream,
}


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in FORMATS]
    with style():  # fonts and resolution are looked up when a file is written
        for path in paths:
            # Without a date, the same results give the same bytes.
            when = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(path.suffix[1:], {})
            drawn = io.BytesIO()
            figure.savefig(drawn, format=path.suffix[1:], metadata=when)
            write_whole(path, drawn.getvalue())
    return paths


def _accuracy(points: pd.DataFrame) -> pd.DataFrame:
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


def _grid(panels: int, columns: int = 3) -> tuple[Figure, list[Axes]]:
    columns = min(columns, panels)
    rows = -(-panels // columns)
    width = WIDTH if columns > 1 else WIDTH * 0.6
    figure = plt.figure(figsize=(width, 2.65 * rows + 0.35), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, hspace=0.04, wspace=0.03)  # type: ignore[union-attr, call-arg]
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(panels)]
    return figure, axes


def _small_multiples(
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
    with style():
        figure, grid = _grid(len(panels))
        labels = []
        for number, (axes, key) in enumerate(zip(grid, panels, strict=True)):
            ticks(axes, [float(value) for value in points[x]])
            texts = _draw_lines(axes, of_measure(points, key), keys, x, line_looks)
            texts += _draw_baselines(axes, of_measure(_accuracy(found.baselines), key))
            labels.append((axes, texts))
            axes.set_title(measure_title(*key))
            if number % 3 == 0:
                axes.set_ylabel("accuracy, %")
            if number + 3 >= len(panels):
                axes.set_xlabel(x_label)
        if len(panels) % 3 == 2:
            _key(figure, len(panels), points, cost_per_image(found), line_looks)
        dashed = " Dashed: baselines." if len(found.baselines) else ""
        _caption(
            figure, f"Mean over seeds; band: ± 1 sd over seeds. {_seed_text(points)} {spent.capitalize()}.{dashed}"
        )
        push_apart(figure, labels)
    return figure


def _draw_lines(
    axes: Axes, points: pd.DataFrame, keys: list[str], x: str, line_looks: dict[tuple[str, ...], Look]
) -> list[Annotation]:
    texts = []
    for line, group in points.assign(variant=points["variant"].fillna("")).groupby(keys, sort=True):
        look = line_looks[tuple(map(str, line))]
        group = group.sort_values(x)
        across = group[x].astype(float).to_numpy()
        mean, sd = 100 * group["value"].to_numpy(), 100 * group["sd"].fillna(0).to_numpy()
        axes.fill_between(across, mean - sd, mean + sd, color=look.color, alpha=0.16, linewidth=0)
        if len(across) == 1:  # where a band has no width
            axes.errorbar(across, mean, yerr=sd, fmt="none", ecolor=look.color, elinewidth=1)
        axes.plot(across, mean, color=look.color, marker=look.marker, linestyle=look.dash, markeredgecolor="white")
        texts.append(end_label(axes, look.label, across[-1], mean[-1], look.color, 8))
    return texts


def _draw_baselines(axes: Axes, baselines: pd.DataFrame) -> list[Annotation]:
    """Thin dashed lines; a family's carry its hollow marker at the right edge, so that colour is not all there is."""
    styles = family_styles(baselines)
    texts = []
    right = axes.get_xlim()[1]
    for row in baselines.sort_values(["init", "family"]).itertuples():
        color, marker = styles[str(row.family)]
        value = 100 * float(row.value)  # type: ignore[arg-type]
        axes.axhline(value, color=color, linestyle=(0, (4, 2.5)), linewidth=0.8, zorder=1)
        axes.plot(right, value, marker=marker, color=color, markerfacecolor="white", markersize=4, clip_on=False)
        name = BASELINE_NAMES.get((str(row.protocol), str(row.init)), str(row.init))
        name = ", ".join(filter(None, [name, str(row.variant)]))
        texts.append(end_label(axes, name, right, value, color, 7))
    return texts


def _key(
    figure: Figure, panels: int, points: pd.DataFrame, cost: pd.Series, line_looks: dict[tuple[str, ...], Look]
) -> None:
    """Which model stands behind a family's name, in the grid's free place."""
    axes = figure.add_subplot(-(-panels // 3), 3, panels + 1)
    axes.set_axis_off()
    styles = family_styles(points)
    models = points[["family", "model"]].drop_duplicates().sort_values(["family", "model"])
    shown = {look.label for look in line_looks.values()}
    for number, (family, model) in enumerate(models.head(6).itertuples(index=False, name=None)):
        color, marker = styles[family]
        y = 0.93 - 0.17 * number
        axes.plot([0.03], [y], marker=marker, color=color, transform=axes.transAxes, clip_on=False)
        alone = (models["family"] == family).sum() == 1 and model not in shown
        name = f"{NAMES.get(family, family)}: {model}" if alone else model
        axes.text(0.1, y, name, color=color, fontsize=8, va="center", transform=axes.transAxes)
        if model in cost.index:
            price = f"{scientific(cost[model])} FLOPs an image"
            axes.text(0.1, y - 0.075, price, color=GREY, fontsize=7.5, va="center", transform=axes.transAxes)


def _pairs(
    points: pd.DataFrame, upstream: str, key: tuple[str, str, int | None], by: list[str] | None = None
) -> pd.DataFrame:
    cell = ["family", "model", "trunk", "examples", "examples_seen", *(by or [])]
    first = points[(points["task"] == upstream) & (points["protocol"] == "pretrain")]
    second = of_measure(points, key)[[*cell, "variant", "value"]]
    return first[[*cell, "value"]].merge(second, on=cell, suffixes=("_up", "_down"))


def _scatter(
    axes: Axes, pairs: pd.DataFrame, seeds: pd.DataFrame, line_looks: dict[tuple[str, ...], Look]
) -> list[Annotation]:
    texts = []
    sizes = sorted(pairs["examples"].dropna().unique())
    area = {size: 18 + 42 * number / max(1, len(sizes) - 1) for number, size in enumerate(sizes)}
    for line, group in pairs.groupby(LINE, sort=True):
        look = line_looks[tuple(map(str, line))]
        faint = seeds[(seeds[LINE] == list(line)).all(axis=1)]
        axes.scatter(
            100 * faint["value_up"], 100 * faint["value_down"], s=9, color=look.color, alpha=0.35,
            marker=look.marker, linewidths=0,
        )  # fmt: skip
        for _, budget in group.sort_values("examples").groupby("examples_seen", dropna=False):
            axes.plot(100 * budget["value_up"], 100 * budget["value_down"], color=look.color, linewidth=1)
        axes.scatter(
            100 * group["value_up"], 100 * group["value_down"], s=group["examples"].map(area).astype(float),
            color=look.color, marker=look.marker, edgecolors="white", linewidths=0.6, zorder=3,
        )  # fmt: skip
        last = group.sort_values("value_up").iloc[-1]
        texts.append(end_label(axes, look.label, 100 * last["value_up"], 100 * last["value_down"], look.color, 8))
    return texts


def _seed_text(points: pd.DataFrame) -> str:
    low, high = int(points["n"].min()), int(points["n"].max())
    return f"{low} seed{'s' if low != 1 else ''} a point." if low == high else f"{low} to {high} seeds a point."


def _caption(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=7.5, color=GREY, x=0.012, ha="left")
