"""The table under the figures: a line per model, set size and budget, a column per measure."""

from __future__ import annotations

import pandas as pd

from vitscale.analysis.curves import LINE, Curves
from vitscale.report.figures import measures, of_measure
from vitscale.report.lines import BASELINE_NAMES, measure_title, short


def table(found: Curves) -> tuple[list[str], list[list[str]]]:
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
        flops = group["flops"].mean()
        start = [name, _number(examples), _number(seen), "" if pd.isna(flops) else f"{flops:.3g}", str(most)]
        rows.append([*start, *(_value(of_measure(group, key), most) for key in columns)])
    for line, group in baselines.groupby([*LINE, "init", "protocol"], dropna=False, sort=True):
        _, model, variant, init, protocol = line
        name = BASELINE_NAMES.get((str(protocol), str(init)), f"{init}, {protocol}")
        name += f", {variant}" if variant else ""
        most = int(group["n"].max())
        start = [name if model == "pixels" else f"{model}, {name}", "", "", "", str(most)]
        rows.append([*start, *(_value(of_measure(group, key), most) for key in columns)])
    return header, rows


def _value(row: pd.DataFrame, most: int) -> str:
    if row.empty:
        return ""
    value, sd, n = (row[name].iloc[0] for name in ("value", "sd", "n"))
    spread = f" ± {100 * sd:.1f}" if n > 1 else ""
    return f"{100 * value:.1f}{spread}" + (f" (n = {n})" if n != most else "")


def _number(value: object) -> str:
    return "" if pd.isna(value) else short(float(value))  # type: ignore[call-overload, arg-type]
