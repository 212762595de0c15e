"""The tables of the page: a line per model, set size and budget, and a line per run; a column per measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from vitscale.analysis.curves import LINE, Curves
from vitscale.report.lines import BASELINE_NAMES, measure_title, short
from vitscale.report.panels import measures, of_measure


class Cell(NamedTuple):
    text: str
    number: float | None = None
    """What the column is sorted by and a CSV holds."""
    run: str | None = None
    """The run whose card it opens."""


def table(found: Curves) -> tuple[list[str], list[list[Cell]]]:
    """Header and rows: accuracy in % as mean ± sd over seeds, the number of seeds where it is not the row's."""
    points = found.points[found.points["metric"] == "accuracy"]
    baselines = found.baselines[found.baselines["metric"] == "accuracy"]
    columns = measures(points)
    header = ["model", "images", "images seen", "FLOPs", "seeds", *(measure_title(*key) for key in columns)]
    rows = []
    for cell, group in points.groupby([*LINE, "examples", "examples_seen"], dropna=False, sort=True):
        _, model, variant, examples, seen = cell
        name = f"{model}, {variant}" if variant else str(model)
        most = int(group["n"].max())
        start = [Cell(name), _number(examples), _number(seen), _flops(group["flops"].mean()), Cell(str(most), most)]
        rows.append([*start, *(_value(of_measure(group, key), most) for key in columns)])
    for line, group in baselines.groupby([*LINE, "init", "protocol"], dropna=False, sort=True):
        _, model, variant, init, protocol = line
        name = BASELINE_NAMES.get((str(protocol), str(init)), f"{init}, {protocol}")
        name += f", {variant}" if variant else ""
        most = int(group["n"].max())
        start = [
            Cell(name if model == "pixels" else f"{model}, {name}"),
            Cell(""),
            Cell(""),
            Cell(""),
            Cell(str(most), most),
        ]
        rows.append([*start, *(_value(of_measure(group, key), most) for key in columns)])
    return header, rows


def run_table(records: Mapping[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    """Of `records`: every run with what was measured on it."""
    shown = [i for i, measure in enumerate(records["measures"]) if not measure["metric"].endswith("loss")]
    header = ["run", "model", "images", "images seen", "seed", "FLOPs", "device-seconds"]
    header += [records["measures"][i]["title"] for i in shown]
    values: dict[tuple[int, int], list[float]] = {}
    columns = (records["values"][name] for name in ("run", "measure", "value"))
    for run, measure, value in zip(*columns, strict=True):
        values.setdefault((run, measure), []).append(value)
    rows = []
    for number, run in enumerate(records["runs"]):
        name = ", ".join(filter(None, [run["model"], run.get("variant")]))
        start = [
            Cell(run["id"], run=run["id"]),
            Cell(name),
            _number(run.get("examples")),
            _number(run.get("examples_seen")),
        ]
        start += [_whole(run.get("seed")), _flops(run.get("flops")), _number(run.get("device_seconds"))]
        rows.append([*start, *(_percent(values.get((number, i), [])) for i in shown)])
    return header, rows


def _percent(values: list[float]) -> Cell:
    """All of them where a run was transferred with several settings: the best on a test set is no result."""
    return Cell(" / ".join(f"{100 * value:.1f}" for value in values), values[0] if len(values) == 1 else None)


def _value(row: pd.DataFrame, most: int) -> Cell:
    if row.empty:
        return Cell("")
    value, sd, n = (row[name].iloc[0] for name in ("value", "sd", "n"))
    spread = f" ± {100 * sd:.1f}" if n > 1 else ""
    return Cell(f"{100 * value:.1f}{spread}" + (f" (n = {n})" if n != most else ""), float(value))


def _whole(value: int | None) -> Cell:
    return Cell("") if value is None else Cell(str(value), value)


def _number(value: object) -> Cell:
    return Cell("") if pd.isna(value) else Cell(short(float(value)), float(value))  # type: ignore[call-overload, arg-type]


def _flops(value: float | None) -> Cell:
    return Cell("") if pd.isna(value) else Cell(f"{value:.3g}", value)
