"""Logarithmic axes that name real values."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from vitscale.report.lines import short

# Of the axis: nearer tick labels would run into each other in a 3-inch panel.
APART = 0.11  # `55k`
LETTER = 0.036  # of longer labels: `1.28M`
BETWEEN = 0.3  # of a letter's height: air between two labels
HALVES = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
FIFTHS = (*(tenth / 10 for tenth in range(10, 30, 2)), 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9)
RAISED = str.maketrans("0123456789-.", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻·")
WRITTEN_OUT = 1e5
FAR_APART = 0.24  # `7×10¹¹`


def log_limits(axes: Axes, values: Sequence[float]) -> tuple[float, float]:
    """A logarithmic x axis from the least to the largest value, with a margin; half an octave around a lone one."""
    low, high = math.log(min(values)), math.log(max(values))
    margin = 0.06 * (high - low) or math.log(2) / 2
    limits = math.exp(low - margin), math.exp(high + margin)
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    return limits


def size_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at the set sizes themselves; labels only where they fit, the largest first."""
    low, high = log_limits(axes, values)
    sizes = sorted(set(values))
    axis = math.log(high / low)
    labels: list[str] = []
    last = math.inf
    for size in reversed(sizes):
        fits = last - math.log(size) >= max(APART, LETTER * len(short(size))) * axis
        labels.append(short(size) if fits else "")
        last = math.log(size) if fits else last
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(FixedFormatter(labels[::-1]))
    axes.xaxis.set_minor_locator(NullLocator())


def clear_labels(axes: Axes) -> None:
    """Leaves out the x labels that touch others, the largest values keep theirs; once the layout has given its width.

    Names beside a panel take of it what `size_ticks` could not know.
    """
    formatter = axes.xaxis.get_major_formatter()
    if not isinstance(formatter, FixedFormatter):
        return
    free, kept = math.inf, []
    for label in reversed(axes.get_xticklabels()):
        box = label.get_window_extent()
        fits = box.x1 + BETWEEN * float(label.get_fontsize()) * axes.figure.dpi / 72 <= free
        kept.append(label.get_text() if fits else "")
        free = box.x0 if fits and label.get_text() else free
    axes.xaxis.set_major_formatter(FixedFormatter(kept[::-1]))


def compute_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Round values in the axis' range: powers of ten, with others between them where there are few."""
    low, high = log_limits(axes, values)
    major = round_values(low, high)
    powers = _decades(math.log10(low), math.log10(high))
    minor = [float(f"{digit}e{power}") for power in powers for digit in range(1, 10)]
    axes.xaxis.set_major_locator(FixedLocator(major))
    axes.xaxis.set_major_formatter(FixedFormatter([plain(value) for value in major]))
    axes.xaxis.set_minor_locator(FixedLocator([value for value in minor if low <= value <= high]))
    axes.tick_params(axis="x", which="minor", labelbottom=False)  # sooner than labels without text


def error_ticks(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic y axis of errors in %, with values as people write them: 2, 5, 10, 20."""
    low, high = min(values), max(values)
    margin = max((high / low) ** 0.06, 1.03)
    axes.set_yscale("log")
    axes.set_ylim(low / margin, high * margin)
    major = round_values(low / margin, high * margin, apart=APART, fewest=3)
    axes.yaxis.set_major_locator(FixedLocator(major))
    axes.yaxis.set_major_formatter(FixedFormatter([f"{value:g}" for value in major]))
    axes.yaxis.set_minor_locator(NullLocator())


def round_values(low: float, high: float, apart: float = FAR_APART, fewest: int = 2) -> list[float]:
    """Values between low and high, far enough apart to be named: powers of ten, else finer steps until `fewest`."""
    tenths = tuple(tenth / 10 for tenth in range(10, 100))
    kept: list[float] = []
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), HALVES, FIFTHS, tenths):
        powers = _decades(math.log10(low), math.log10(high))
        values = [float(f"{mantissa}e{power}") for power in powers for mantissa in mantissas]
        kept = _thinned([value for value in values if low <= value <= high], apart * math.log(high / low))
        if len(kept) >= fewest:
            break
    return kept


def _thinned(values: list[float], room: float) -> list[float]:
    kept: list[float] = []
    for value in values:
        if not kept or math.log(value / kept[-1]) >= room:
            kept.append(value)
    return kept


def scientific(value: float) -> str:
    """Two digits such as `5.6×10⁷`, or `10¹⁴`. As letters: mathtext would be parsed for each size and file anew."""
    mantissa, power = f"{value:.1e}".split("e")
    mantissa = mantissa.removesuffix(".0")
    times = "" if mantissa == "1" else f"{mantissa}×"
    return f"{times}10{raised(int(power))}"


def raised(exponent: float | str) -> str:
    """As letters above the line; there is no raised point, so a raised dot stands for it."""
    return str(exponent).translate(RAISED)


def plain(value: float) -> str:
    """As `scientific`, but small whole numbers as they are: `30`, `1000`."""
    return f"{value:g}" if value < WRITTEN_OUT else scientific(value)


def _decades(low: float, high: float) -> range:
    return range(math.floor(low), math.ceil(high) + 1)
