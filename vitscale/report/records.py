"""What the page's chart and cards show, as plain data: runs, measures, and one value for each run and measure."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from vitscale.analysis.curves import LINE, Curves, compute_axis
from vitscale.report.fitted import fitted
from vitscale.report.lines import BASELINE_NAMES, family_styles, looks, measure_title, upstream_task
from vitscale.report.notes import earlier_commits
from vitscale.report.overlay import TABLES, lines_of_theirs, source_text, theirs_along
from vitscale.report.panels import sized

SHAPES = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross"}
KEYS = ["task", "protocol", "shots", "metric"]
METRICS = {
    "accuracy": "accuracy, %", "error": "error, %", "loss": "loss, nats",
    "patch_accuracy": "accuracy of patches, %", "patch_loss": "loss of patches",
}  # fmt: skip
ALONE = "flops"
COUNTINGS = {
    ALONE: "each run alone",
    "flops_tuned": "and choosing its settings",
    "flops_computed": "all that its job computed",
    "flops_inside": "as in the paper's Table 6: taps inside the image",
}
# Columns of a run that a chart can have along x, their titles, and what stays the same along a line besides the family
# and settings: the fewest of these that still leave a line with two points.
X_AXES = {
    "flops": ("pre-training compute, FLOPs", ("examples",)),
    "examples": ("unique pre-training images", ("model", "examples_seen")),
    "examples_seen": ("pre-training images seen", ("model", "examples")),
    "params_total": ("parameters", ("examples", "examples_seen")),
    "device_seconds": ("pre-training time, device-seconds", ("examples",)),
    "patch": ("patch size, pixels", ("examples", "examples_seen")),
    "resolution": ("resolution, pixels", ("model", "examples", "examples_seen")),
    "lr": ("peak learning rate", ("model", "examples", "examples_seen")),
    "upstream": ("upstream accuracy, %", ("model", "examples_seen")),
}
OF_RUN = (
    "family", "model", "examples", "examples_seen", "epochs", "seed", "subset_seed", "lr", "patch", "resolution",
    "params_total", "flops_standalone", "flops_segment", "flops_tuning", "flops_eval", "flops_lost",
    "device_seconds", "n_devices", "mfu",
)  # fmt: skip
LAW_POINTS = 25
OF_CODE = ("git_commit", "git_dirty", "code_hash", "device", "versions", "dataset")


@dataclass(frozen=True, slots=True)
class Trace:
    """What only a run's folder tells."""

    command: str | None
    """Makes the run again; None where only its study's sweep does."""
    losses: tuple[tuple[int, float], ...] = ()
    """Training loss by step, thinned."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a report's rows come from, as far as it is at hand."""

    study: str | None = None
    """What `vitscale sweep` takes to make the runs again; None: they are not ours."""
    traces: Mapping[str, Trace] = field(default_factory=dict)
    """By run id."""
    outside: Mapping[str, float] = field(default_factory=dict)
    """Of each model the training FLOPs of one image's taps outside the image."""
    planned: pd.DataFrame | None = None
    """As `Curves.planned`."""


def records(found: Curves, sources: Sources) -> dict[str, Any]:
    """All that the page's script needs; every value is a number, text, true, false or null."""
    cells = found.rows[found.rows["role"] == "cell"]
    cells = cells.assign(made_by=cells["parent_id"].fillna(cells["run_id"]), variant=cells["variant"].fillna(""))
    pretrained = _pretrained(cells)
    measures = _measures(cells)
    shades = _shades(cells)
    look_of = dict(sorted(looks(cells, LINE).items(), key=lambda item: (item[0][0], shades[item[0][:2]], item[0])))
    several = _several(look_of)
    upstream = _upstream(cells)
    steps: dict[tuple[int, ...], int] = {}
    codes: dict[str, int] = {}
    runs = [_run(row, upstream, sources, codes, steps) for row in pretrained.reset_index().to_dict("records")]
    return {
        "metrics": [{"key": key, "title": title} for key, title in METRICS.items() if _has(measures, key)],
        "measures": measures,
        "axes": sorted((_axis(key, runs) for key in X_AXES if _varies(runs, key)), key=lambda axis: not axis["first"]),
        "countings": [{"key": key, "title": title} for key, title in COUNTINGS.items() if _counts(runs, key)],
        "series": [
            {
                "name": look.label,
                "family": line[0],
                "variant": line[2],
                "color": look.color,
                "several": line[0] in several,
                "shade": shades[line[:2]] if line[0] in several else None,
                "shape": SHAPES.get(look.marker, "circle"),
                "dash": [] if isinstance(look.dash, str) else list(look.dash[1]),
            }
            for line, look in look_of.items()
        ],
        "sized": sized(cells, "params"),
        "runs": [{name: value for name, value in run.items() if value is not None} for run in runs],
        "codes": [json.loads(code) for code in codes],
        "steps": list(steps),
        "values": _values(cells, measures, list(look_of), {str(id_): i for i, id_ in enumerate(pretrained.index)}),
        "baselines": _baselines(found.baselines, measures),
        "laws": _laws(found, measures, list(look_of)),
        "theirs": _theirs(found, measures),
    }  # fmt: skip


def _shades(cells: pd.DataFrame) -> dict[tuple[str, ...], float]:
    """Of a family's models 0 for the one with the fewest parameters to 1 for that with the most, in equal steps."""
    models = cells.groupby(["family", "model"])["params_total"].mean().reset_index()
    models = models.sort_values(["family", "params_total", "model"])
    of_family = models.groupby("family")["model"]
    shades = of_family.cumcount() / (of_family.transform("size") - 1).clip(lower=1)
    return dict(zip(zip(models["family"], models["model"], strict=True), map(float, shades), strict=True))


def _several(lines: Iterable[tuple[str, ...]]) -> set[str]:
    """The families of several models."""
    models = {line[:2] for line in lines}
    return {family for family, count in Counter(family for family, _ in models).items() if count > 1}


def _theirs(found: Curves, measures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Published lines by measure and by the axis that they can be drawn along."""
    measure_at = {tuple(measure["key"]): i for i, measure in enumerate(measures)}
    told = []
    for axis in TABLES:
        for key, points in theirs_along(found, axis).groupby(KEYS, dropna=False, sort=False):
            for name, marker, line in lines_of_theirs(points, axis):
                columns = (line[name] for name in ("model", "examples", axis, "value", "joined"))
                told.append(
                    {
                        "measure": measure_at[tuple(map(_plain, key))],
                        "axis": axis,
                        "name": name,
                        "shape": SHAPES[marker],
                        "source": source_text(line),
                        "points": [
                            dict(zip(("model", "images", "x", "value", "joined"), map(_plain, row), strict=True))
                            for row in zip(*columns, strict=True)
                        ],
                    }
                )
    return told


def _pretrained(cells: pd.DataFrame) -> pd.DataFrame:
    """A row for each pre-training run: its own where it was recorded, else one of its transfers'."""
    own = cells.assign(transferred=cells["protocol"] != "pretrain").sort_values("transferred", kind="stable")
    return own.drop_duplicates("made_by").set_index("made_by").sort_index()


def _measures(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """In reading order: upstream, then each task's few-shot by shots, then its fine-tuning."""
    order = {"pretrain": 0, "fewshot": 1, "finetune": 2}

    def place(key: tuple[Any, ...]) -> tuple[Any, ...]:
        task, protocol, shots, _ = key
        return protocol != "pretrain", task != "upstream_test", str(task), order.get(str(protocol), 3), shots or 0

    keys = sorted(_tuples(cells[KEYS].drop_duplicates()), key=place)
    return [{"key": list(key), "title": measure_title(key[0], key[1], key[2]), "metric": key[3]} for key in keys]


def _has(measures: Sequence[Mapping[str, Any]], metric: str) -> bool:
    return any(measure["metric"] == ("accuracy" if metric == "error" else metric) for measure in measures)


def _upstream(cells: pd.DataFrame) -> pd.Series:
    """Accuracy on the upstream test (else validation) set by pre-training run, in %."""
    rows = cells[(cells["protocol"] == "pretrain") & (cells["metric"] == "accuracy")]
    return 100 * rows[rows["task"] == upstream_task(rows)].groupby("made_by")["value"].mean()


def _run(
    row: Mapping[Any, Any],
    upstream: pd.Series,
    sources: Sources,
    codes: dict[str, int],
    steps: dict[tuple[int, ...], int],
) -> dict[str, Any]:
    """A run; what many share, provenances and the steps of loss curves, it names by number."""
    id_ = row["made_by"]
    told = {**{name: _plain(row[name]) for name in OF_CODE}, "earlier": earlier_commits(row)}
    code = json.dumps(told, sort_keys=True)
    trace = sources.traces.get(id_, Trace(None))
    return {
        "id": id_,
        **{name: _plain(row[name]) for name in OF_RUN},
        **_flops(row, sources.outside.get(str(row["model"]))),
        "upstream": _plain(upstream.get(id_)),
        "started": _time(row["started"]),
        "ended": _time(row["ended"]),
        "variant": row["trunk"] or None,
        "shared": _plain(row["trunk_id"]),
        "settings": json.loads(row["settings"]) if isinstance(row["settings"], str) else {},
        "code": codes.setdefault(code, len(codes)),
        "command": trace.command or (sources.study and f"vitscale sweep {sources.study} --only {id_}"),
        "steps": steps.setdefault(tuple(step for step, _ in trace.losses), len(steps)) if trace.losses else None,
        "losses": [float(f"{loss:.4g}") for _, loss in trace.losses] or None,
    }


def _flops(row: Mapping[Any, Any], outside: float | None) -> dict[str, float | None]:
    """By each counting; what was not recorded adds nothing, but without its main part there is no number."""
    alone, segment, seen = (_plain(row[name]) for name in ("flops", "flops_segment", "examples_seen"))
    tuning, lost, evaluation = (_plain(row[f"flops_{name}"]) or 0.0 for name in ("tuning", "lost", "eval"))
    return {
        "flops": alone,
        "flops_tuned": None if alone is None else _rounded(alone + tuning),
        "flops_computed": None if segment is None else _rounded(segment + lost + evaluation),
        "flops_inside": None if None in (alone, outside, seen) else _rounded(alone - outside * seen),
    }


def _axis(key: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    title, fixed = X_AXES[key]
    values = sorted({run[key] for run in runs if run.get(key) is not None})
    return {
        "key": key,
        "title": title,
        "fixed": list(fixed),
        "log": key != "upstream" and values[0] > 0,
        "scientific": key == "flops",
        "first": key == "examples" and len(values) > 2,  # else compute, if that varies
        "ticks": values if len(values) <= 8 and key not in ("flops", "device_seconds", "upstream") else None,
    }


def _counts(runs: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Whether this counting says anything that counting each run alone does not."""
    return key == ALONE or any(run.get(key) is not None and run[key] != run.get(ALONE) for run in runs)


def _varies(runs: Sequence[Mapping[str, Any]], key: str) -> bool:
    return len({run[key] for run in runs if run.get(key) is not None}) > 1


def _values(
    cells: pd.DataFrame, measures: Sequence[Mapping[str, Any]], lines: Sequence[tuple[str, ...]], at: Mapping[str, int]
) -> dict[str, list[Any]]:
    """Columns of equal length: run, measure and series by number, the mean over draws, and the transfer's own id."""
    keys = ["made_by", "run_id", *KEYS, *LINE]
    grouped = cells.groupby(keys, dropna=False, sort=False)["value"].agg(["mean", "size"]).reset_index()
    measure_at = {tuple(measure["key"]): i for i, measure in enumerate(measures)}
    line_at = {line: i for i, line in enumerate(lines)}
    return {
        "run": [at[str(id_)] for id_ in grouped["made_by"]],
        "measure": [measure_at[key] for key in _tuples(grouped[KEYS])],
        "series": [line_at[tuple(map(str, line))] for line in _tuples(grouped[LINE])],
        "value": [_rounded(value) for value in grouped["mean"]],
        "draws": [int(size) for size in grouped["size"]],
        "id": [None if own == trunk else own for trunk, own in _tuples(grouped[["made_by", "run_id"]])],
    }


def _baselines(baselines: pd.DataFrame, measures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    measure_at = {tuple(measure["key"]): i for i, measure in enumerate(measures)}
    colors = family_styles(baselines)
    found = []
    for row in baselines.to_dict("records"):
        (key,) = _tuples(pd.DataFrame([row])[KEYS])
        if key in measure_at:
            name = BASELINE_NAMES.get((str(row["protocol"]), str(row["init"])), str(row["init"]))
            model = [] if row["init"] == "pixels" else [str(row["model"])]
            found.append(
                {
                    "measure": measure_at[key],
                    "name": ", ".join(filter(None, [*model, name, str(row["variant"] or "")])),
                    "value": _rounded(row["value"]),
                    "color": colors[str(row["family"])][0],
                }
            )
    return found


def _laws(
    found: Curves, measures: Sequence[Mapping[str, Any]], lines: Sequence[tuple[str, ...]]
) -> list[dict[str, Any]]:
    """Accuracies along the fitted laws: where they were fitted, and beyond."""
    measure_at = {tuple(measure["key"]): i for i, measure in enumerate(measures)}
    _, examples = compute_axis(found.points[found.points["metric"] == "accuracy"])
    told = []
    for key, of_lines in fitted(found).laws.items():
        for (family, variant), law in of_lines.items():
            series = [i for i, line in enumerate(lines) if (line[0], line[2]) == (family, variant)]
            for beyond, ends in enumerate(((law.low, law.high), (law.high, law.end))):
                x = np.geomspace(*ends, LAW_POINTS)
                told.append(
                    {
                        "measure": measure_at[*key, "accuracy"],
                        "series": series,
                        "examples": examples,
                        "beyond": bool(beyond),
                        "x": [_rounded(value) for value in x],
                        "y": [_rounded(1 - value) for value in law.fit.predict(x[:, None])],
                    }
                )
    return told


def _tuples(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return [tuple(_plain(value) for value in row) for row in frame.itertuples(index=False, name=None)]


def _plain(value: Any) -> Any:
    """As JSON has it: null for what is missing or not finite, integers as integers."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() and abs(value) < 2**53 else _rounded(value)
    return value


def _rounded(value: float) -> float:
    """Six digits: more than any measurement here has."""
    return float(f"{value:.6g}")


def _time(value: Any) -> str | None:
    return None if pd.isna(value) else f"{value:%Y-%m-%d %H:%M} UTC"
