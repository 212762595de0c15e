"""Names at the ends of lines, pushed apart so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox, Transform, offset_copy
from numpy.typing import NDArray

from vitscale.report.axes import clear_labels

LEADER = "leader"
LONGEST = 44  # letters: more would leave the panel no room
CLEAR = 4  # points from a line's end to its leader
SMALL = 7  # points, of a name inside
# Where a name may stand, of its marker's middle: right, left, above, below, and aslant.
PLACES = (("left", 5, 0), ("right", -5, 0), ("center", 0, 8), ("center", 0, -8),
          ("right", -4, 6), ("left", 4, -6))  # fmt: skip
GUTTER = 7  # points from the axes' right edge to where labels begin: clear of a marker on the edge


def spread(wanted: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Centres as near to `wanted` as possible, in the same order, `sizes` tall without overlap, within low..high.

    Neighbours that collide become one block at the mean of what its members want. Where the sum of sizes exceeds
    the room, the labels are packed from `low` and stick out at the top.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    blocks: list[tuple[list[int], float, float]] = []  # members, height, lower edge
    for index in order:
        members, height = [index], sizes[index]
        edge = _clamped(wanted[index] - height / 2, height, low, high)
        while blocks and blocks[-1][1] + blocks[-1][2] > edge:
            below, below_height, _ = blocks.pop()
            members, height = below + members, below_height + height
            edge = _clamped(_mean_edge(members, wanted, sizes), height, low, high)
        blocks.append((members, height, edge))
    centres = [0.0] * len(wanted)
    for members, _, edge in blocks:
        for index in members:
            centres[index] = edge + sizes[index] / 2
            edge += sizes[index]
    return centres


def end_label(axes: Axes, text: str, x: float, y: float, color: str, size: float) -> Annotation:
    """The name of a line that ends at data position (x, y); `push_apart` gives it its place."""
    if len(text) > LONGEST:
        text = text[: LONGEST - 1] + "…"
    return axes.annotate(
        text, xy=(x, y), xytext=(1, y), textcoords=(_gutter(axes), "data"), color=color, fontsize=size,
        va="center", ha="left", annotation_clip=False,
    )  # fmt: skip


def push_apart(figure: Figure, labels: Sequence[tuple[Axes, list[Annotation]]]) -> None:
    """Lay the figure out, then move the labels of every axes up and down until they are clear of each other; of ticks
    those go that are not."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)  # which `draw_without_rendering` does, too, and then draws all for nothing
    figure.set_layout_engine("none")
    for axes, texts in labels:
        clear_labels(axes)
        box = axes.get_window_extent()
        ends = [axes.transAxes.inverted().transform(axes.transData.transform(text.xy)) for text in texts]
        # The text's own extent; 1.25 leaves air between two lines.
        line = figure.dpi / 72 * 1.25 / box.height
        sizes = [float(text.get_fontsize()) * line for text in texts]
        centres = spread([float(y) for _, y in ends], sizes, -0.02, 1.02)
        for text, (x, y), centre in zip(texts, ends, centres, strict=True):
            text.set_y(centre)
            text.anncoords = (_gutter(axes), "axes fraction")
            point = figure.dpi / 72 / box.width
            _leader(
                axes, (float(x) + CLEAR * point, float(y)), (1 + (GUTTER - 1) * point, centre), str(text.get_color())
            )


def name_in_room(axes: Axes, named: Sequence[tuple[str, str, int]], places: NDArray[np.float64]) -> None:
    """Write names beside markers where they cover no marker, no other name and no edge; who has no such place has none.

    `named`: name, colour and number in `places` of each marker that may carry it, the best first. `places`: in data.
    """
    point = axes.figure.dpi / 72
    marks = axes.transData.transform(places) / point
    edge = axes.get_window_extent()
    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in marks]
    done: set[str] = set()
    for name, color, at in named:
        width = 0.6 * SMALL * len(name)
        for align, dx, dy in PLACES if name not in done else ():
            left = marks[at][0] + dx - width * {"left": 0, "center": 0.5, "right": 1}[align]
            box = Bbox.from_bounds(left, marks[at][1] + dy - SMALL / 2, width, SMALL)
            inside = edge.x0 <= box.x0 * point and box.x1 * point <= edge.x1
            inside &= edge.y0 <= box.y0 * point and box.y1 * point <= edge.y1
            if inside and not box.count_overlaps(taken):
                axes.annotate(
                    name, xy=places[at], xytext=(dx, dy), textcoords="offset points", color=color, fontsize=SMALL,
                    ha=align, va="center",
                )  # fmt: skip
                taken.append(box)
                done.add(name)
                break


def _leader(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    """From a line's end to its name, as shares of the axes; dotted, as a long one must not pass for data."""
    axes.plot(
        *zip(start, end, strict=True), color=color, linewidth=0.6, linestyle=(0, (1, 2.5)), marker="", clip_on=False,
        transform=axes.transAxes, scalex=False, scaley=False, zorder=1.5, gid=LEADER,
    )  # fmt: skip


def _gutter(axes: Axes) -> Transform:
    return offset_copy(axes.transAxes, axes.get_figure(root=True), x=GUTTER, units="points")


def _clamped(edge: float, height: float, low: float, high: float) -> float:
    return max(low, min(edge, high - height))


def _mean_edge(members: Sequence[int], wanted: Sequence[float], sizes: Sequence[float]) -> float:
    total, below = 0.0, 0.0
    for index in members:
        total += wanted[index] - sizes[index] / 2 - below
        below += sizes[index]
    return total / len(members)
