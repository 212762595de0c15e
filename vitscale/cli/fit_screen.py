"""What `vitscale fit` found, as tables on a screen and as one JSON document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vitscale.analysis.assess import Assessed, Forecast
from vitscale.analysis.facts import Fact
from vitscale.analysis.fits import Fit
from vitscale.analysis.intervals import Interval
from vitscale.analysis.profiles import Profile
from vitscale.analysis.residuals import Binomial
from vitscale.cli.screen import print_table, say

SHOWN_DETAILS = 5

Table = tuple[list[str], list[list[Any]]]
"""Header and rows; the first column is the curve's name."""


def tables(found: Sequence[Assessed]) -> list[Table]:
    return [
        (["curve", "law", "of", "against", "points", "independent", "from", "to"], [_law(a) for a in found]),
        (["curve", "parameter", "value", "95% low", "95% high", ""], [row for a in found for row in _parameters(a)]),
        (["curve", "form", "misses by", "on held out", ""], [row for a in found for row in _choice(a)]),
        (
            ["curve", "fitted", "points", "parameters", "law at", "", "misses those left out by"],
            [row for a in found for row in _checks(a)],
        ),
        (
            ["curve", "at", "forecast", "95% low", "95% high", "a run's low", "a run's high"],
            [row for a in found for row in _forecasts(a)],
        ),
        (["curve", "at", "mean", "95% low", "95% high", "runs"], [row for a in found for row in _places(a)]),
    ]


def show(tables: Sequence[Table], facts: Sequence[tuple[str, Fact]]) -> None:
    """Tables to stdout, with a line between them; what to doubt to stderr, each with the curve's name."""
    filled = [table for table in tables if table[1]]
    nameless = not any(row[0] for _, rows in filled for row in rows)  # one curve needs no column for its name
    for i, (header, rows) in enumerate(filled):
        if i:
            print()
        print_table([row[nameless:] for row in rows], header[nameless:])
    for curve, fact in facts:
        _say(curve, fact)


def document(found: Sequence[Assessed]) -> list[dict[str, Any]]:
    return [_curve(a) for a in found]


def _say(curve: str, fact: Fact) -> None:
    say(f"{curve}: {fact.text}" if curve else fact.text)
    for detail in fact.details[:SHOWN_DETAILS]:
        say(f"  {detail}")
    if len(fact.details) > SHOWN_DETAILS:
        say(f"  and {len(fact.details) - SHOWN_DETAILS} more (--json has them)")


def _law(a: Assessed) -> list[Any]:
    points = a.fit.observations
    low, high = _range(a)
    return [
        a.curve.name,
        a.fit.form.equation,
        a.curve.what,
        ", ".join(a.curve.columns.inputs),
        len(points),
        points.cluster_count,
        low,
        high,
    ]


def _range(a: Assessed) -> tuple[str, str]:
    inputs = a.fit.observations.inputs
    return _place(inputs.min(0)), _place(inputs.max(0))


def _parameters(a: Assessed) -> list[list[Any]]:
    intervals = a.sample.parameters()
    rows = []
    for name, value in a.fit.parameters.items():
        end = a.profiles[name]
        shown = intervals.get(name) if end.identified else Interval(or_nan(end.low), or_nan(end.high))
        note = "" if end.identified else "not identified"
        if end.identified and end.down_to_zero:
            note = "0 fits as well"
        row = [number(value) if end.identified else "", *ends(shown), note]
        rows.append([a.curve.name, name, *row])
    return rows


def _choice(a: Assessed) -> list[list[Any]]:
    if a.choice is None:
        return []
    rows = []
    for name, held in a.choice.ranking:
        said = f"chosen: {a.choice.margin}" if name == a.choice.form.name else ""
        rows.append([a.curve.name, name, held.missed, f"{held.points} above {held.above:.4g}", said])
    if a.choice.too_few:
        rows.append([a.curve.name, ", ".join(a.choice.too_few), "", "", "too few points to hold some out"])
    return rows


def _checks(a: Assessed) -> list[list[Any]]:
    at = np.array([a.forecasts[-1].inputs]) if a.forecasts else a.fit.observations.inputs[[_dearest(a)]]

    def row(name: str, points: int, fit: Fit, missed: str = "") -> list[Any]:
        return [
            a.curve.name,
            name,
            points,
            _equation_values(fit),
            _place(at[0]),
            number(float(fit.predict(at)[0])),
            missed,
        ]

    rows = [row(variant.name, variant.points, variant.fit) for variant in a.variants]
    held = a.held_out
    if held is None:
        return [*rows, [a.curve.name, "without the dearest", "", "too few points to hold some out", "", "", ""]]
    name = f"without the dearest ({held.points})"
    return [*rows, row(name, len(held.fit.observations), held.fit, held.missed)]


def _dearest(a: Assessed) -> int:
    return int(np.argmax(a.fit.observations.compute))


def _equation_values(fit: Fit) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in fit.parameters.items())


def _forecasts(a: Assessed) -> list[list[Any]]:
    return [
        [a.curve.name, _place(f.inputs), number(f.value), *ends(f.law), *ends(f.run)]
        for f in a.forecasts
    ]  # fmt: skip


def _places(a: Assessed) -> list[list[Any]]:
    """The points themselves stand in for a band that too few runs cannot give."""
    if a.sample.method == "bootstrap":
        return []
    return [[a.curve.name, _place(p.inputs), number(p.mean), *ends(p.interval), p.n] for p in a.places]


def ends(interval: Interval | None) -> list[str]:
    return ["", ""] if interval is None else [number(interval.low), number(interval.high)]


def _place(inputs: Sequence[float] | np.ndarray) -> str:
    return ", ".join(number(float(value)) for value in inputs)


def number(value: float) -> str:
    if math.isinf(value):
        return "no end"
    return "" if math.isnan(value) else f"{value:.4g}"


def or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _curve(a: Assessed) -> dict[str, Any]:
    points = a.fit.observations
    residuals = points.residuals
    joint = a.sample.joint()
    return {
        "curve": a.curve.name,
        "form": a.fit.form.name,
        "equation": a.fit.form.equation,
        "source": a.fit.form.source,
        "of": a.curve.what,
        "inputs": list(a.curve.columns.inputs),
        "points": len(points),
        "independent": points.cluster_count,
        "from": points.inputs.min(0).tolist(),
        "to": points.inputs.max(0).tolist(),
        "huber_delta": a.fit.problem.delta,
        "seed_sd_of_log_odds": residuals.tau if isinstance(residuals, Binomial) else None,
        "objective": a.fit.objective,
        "interval": a.sample.method,
        "parameters": {name: _parameter(a, name, value) for name, value in a.fit.parameters.items()},
        "joint": None
        if joint is None
        else {
            "names": joint.names,
            "center": joint.center.tolist(),
            "covariance": joint.covariance.tolist(),
            "radius2": joint.radius2,
        },
        "auto": None
        if a.choice is None
        else {
            "chosen": a.choice.form.name,
            "margin": a.choice.margin,
            "ranking": [{"form": name, "error": held.error, "points": held.points} for name, held in a.choice.ranking],
            "too_few": list(a.choice.too_few),
        },
        "variants": [
            {"fitted": v.name, "points": v.points, "parameters": v.fit.parameters, "objective": v.fit.objective}
            for v in a.variants
        ],
        "held_out": None
        if a.held_out is None
        else {
            "points": a.held_out.points,
            "above": a.held_out.above,
            "error": a.held_out.error,
            "parameters": a.held_out.fit.parameters,
        },
        "forecasts": [_forecast(forecast) for forecast in a.forecasts],
        "places": [
            {"at": p.inputs, "mean": p.mean, "n": p.n, "interval": pair(p.interval)} for p in a.places
        ],
        "facts": [asdict(fact) for fact in a.facts],
    }  # fmt: skip


def _parameter(a: Assessed, name: str, value: float) -> dict[str, Any]:
    end: Profile = a.profiles[name]
    interval = a.sample.parameters().get(name)
    return {
        "identified": end.identified,
        "value": value if end.identified else None,
        "interval": pair(interval) if end.identified else None,
        "fits_as_well": [0.0 if end.down_to_zero else end.low, end.high],
        "best": value,
    }


def _forecast(forecast: Forecast) -> dict[str, Any]:
    return {
        "at": forecast.inputs,
        "value": forecast.value,
        "law": pair(forecast.law),
        "run": pair(forecast.run),
    }


def pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def finite(document: Any) -> Any:
    """The document with null for what has no end or is no number; JSON knows neither."""
    if isinstance(document, dict):
        return {key: finite(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [finite(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document
