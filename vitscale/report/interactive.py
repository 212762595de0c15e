"""The page's chart as a Vega-Lite specification, and the scripts that draw it.

Data and axes are left open: the page's own script fills in what its switches say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from typing import Any

import altair as alt
import vl_convert

from vitscale.remember import made_once

# The page's style sheet has the colours, for light, dark and paper.
INK, SOFT, RULE = "var(--ink)", "var(--soft)", "var(--rule)"
FONT = "system-ui, sans-serif"  # by name: Vega measures text before the page can lend its own
HEIGHT = 420
SMALLEST, LARGEST = 45, 180  # area of a marker, in square pixels
# The script gives the last two the titles of what its switches chose.
TOOLTIP = {"run": "run", "model": "model", "images": "images", "seen": "images seen", "across": "x", "up": "y"}
OF_THEIRS = {"source": "published in", "model": "model", "images": "images", "across": "x", "up": "y"}


@cache
def scripts() -> str:
    """Vega, Vega-Lite and vega-embed as one script that needs no network."""
    version = alt.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]
    name = f"vega-lite-{version}-of-vl-convert-{metadata.version('vl-convert-python')}.js"
    # Bundling takes as long as drawing two figures.
    return made_once(name, lambda: vl_convert.javascript_bundle(vl_version=version))  # type: ignore[call-arg]  # its stub wants a snippet


def chart(series: Sequence[Mapping[str, Any]], *, sized: bool) -> dict[str, Any]:
    """Runs as markers over their means as lines. Its data are named: runs, lines, laws, bars, theirs, names and active.

    `sized`: models differ in size, and larger ones have larger markers.
    """
    color = _by_series(alt.Color, series, "color")
    layers = (
        _bars(),
        _laws(color),
        *_theirs(),
        _lines(series, color),
        _runs(series, sized=sized),
        *_names(),
        _active(),
    )
    return _finished(alt.layer(*layers), HEIGHT)


def _of(data: str) -> alt.Chart:
    return alt.Chart(alt.NamedData(data))


def _places() -> tuple[alt.X, alt.Y]:
    return alt.X("x:Q", scale=alt.Scale(nice=False, padding=14)), alt.Y("y:Q", scale=alt.Scale(zero=False))


def _runs(series: Sequence[Mapping[str, Any]], *, sized: bool) -> alt.Chart:
    size = alt.Size("params_total:Q", scale=alt.Scale(type="log", range=[SMALLEST, LARGEST]), legend=None)
    marks = _of("runs").mark_point(filled=True, opacity=0.8, strokeWidth=1, cursor="pointer", size=70)
    return marks.encode(
        *_places(),
        *([size] if sized else []),
        stroke=_by_series(alt.Stroke, series, "color"),
        fill=_by_series(alt.Fill, series, "tint"),
        shape=_by_series(alt.Shape, series, "shape"),
        tooltip=_tooltip(TOOLTIP),
    )


def _theirs() -> tuple[alt.Chart, alt.Chart]:
    """What others have published: hollow markers over the lines that join them."""
    lines = _of("theirs").transform_filter("datum.joined").mark_line(color=SOFT, strokeWidth=1, strokeDash=[1, 2])
    marks = _of("theirs").mark_point(filled=False, color=SOFT, strokeWidth=1.3, size=SMALLEST)
    shape = alt.Shape("shape:N", scale=None)
    return (
        lines.encode(*_places(), detail="line:N"),
        marks.encode(*_places(), shape=shape, tooltip=_tooltip(OF_THEIRS)),
    )


def _names() -> tuple[alt.Chart, alt.Chart]:
    """Over a rim of paper, so that a line below does not strike a name through."""
    align, dx, dy = (alt.ExprRef(f"datum.{channel}") for channel in ("align", "dx", "dy"))
    text = _of("names").encode(*_places(), text="name:N")
    placed: dict[str, Any] = {"baseline": "middle", "font": FONT, "fontSize": 11, "align": align, "dx": dx, "dy": dy}
    return (
        text.mark_text(**placed, stroke="var(--paper)", strokeWidth=3),
        text.mark_text(**placed).encode(color=alt.Color("color:N", scale=None)),
    )


def _lines(series: Sequence[Mapping[str, Any]], color: alt.Color) -> alt.Chart:
    dash = _by_series(alt.StrokeDash, series, "dash")
    return _of("lines").mark_line(strokeWidth=1.8).encode(*_places(), detail="line:N", color=color, strokeDash=dash)


def _laws(color: alt.Color) -> alt.Chart:
    dash = alt.condition("datum.beyond", alt.value([5, 4]), alt.value([1, 0]))
    marks = _of("laws").mark_line(strokeWidth=1, opacity=0.9)
    return marks.encode(*_places(), detail="law:N", color=color, strokeDash=dash)


def _bars() -> alt.Chart:
    return (
        _of("bars")
        .mark_rule(strokeWidth=1.2, opacity=0.8)
        .encode(
            y="y:Q",
            color=alt.Color("color:N", scale=None),
            tooltip=[alt.Tooltip("name:N", title="baseline"), alt.Tooltip("up:N")],
        )
    )


def _active() -> alt.Chart:
    return _of("active").mark_point(size=420, color=INK, strokeWidth=2, filled=False).encode(*_places())


def loss_curve() -> dict[str, Any]:
    """A run's training loss by step; its data are named losses."""
    drawn = (
        alt.Chart(alt.NamedData("losses"))
        .mark_line(strokeWidth=1.6, color="var(--vit)")
        .encode(alt.X("step:Q", title="step"), alt.Y("loss:Q", title="training loss", scale=alt.Scale(zero=False)))
    )
    return _finished(drawn, 150)


def _tooltip(fields: Mapping[str, str]) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in fields.items()]


def _by_series(channel: Any, series: Sequence[Mapping[str, Any]], what: str) -> Any:
    """Numbers of series as their colour, marker or dash."""
    scale = alt.Scale(domain=list(range(len(series))), range=[one[what] for one in series])
    return channel("series:N", scale=scale, legend=None)


def _finished(drawn: Any, height: int) -> dict[str, Any]:
    axis = {"domainColor": SOFT, "gridColor": RULE, "tickColor": SOFT, "labelColor": INK, "titleColor": INK}
    text = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelFont": FONT, "titleFont": FONT}
    found: dict[str, Any] = (
        drawn.properties(width="container", height=height)
        .configure(background="transparent", autosize=alt.AutoSizeParams(type="fit", contains="padding"), aria=False)
        .configure_view(stroke=None)
        .configure_axis(**axis, **text, grid=True)
        .to_dict(validate=True)
    )
    return found
