"""From result rows to curves: newest attempts, means over draws within a seed, then mean and spread over seeds."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pandas as pd

# Settings that a figure has an axis, a line or a mean for; any other one that varies makes lines of its own.
SHOWN_SETTINGS = (
    "seed",
    "model.name",
    "data.examples",
    "data.subset_seed",
    "recipe.examples",
    "recipe.steps",
    "recipe.epochs",
)
MEASURE = ["task", "task_version", "protocol", "shots", "metric"]
LINE = ["family", "model", "variant"]
CELL = [*LINE, "examples", "examples_seen"]


@dataclass(frozen=True, slots=True)
class Curves:
    """What there is to draw of one study. Values are those of `metric`, accuracies 0 to 1."""

    rows: pd.DataFrame
    """The rows that count: newest attempts, done, not tuning; with `variant` and `flops` (of pre-training)."""
    seeds: pd.DataFrame
    """One row per cell, measure and seed: `value`, the mean over draws."""
    points: pd.DataFrame
    """One row per cell and measure: `value`, `sd` (over seeds, n - 1; null for one seed), `n`, `flops`."""
    baselines: pd.DataFrame
    """One row per line, init and measure: `value`, `sd`, `n`."""


def curves(frame: pd.DataFrame) -> Curves:
    newest = with_pretraining(counted(frame))
    rows = newest[(newest["status"] == "done") & newest["value"].notna() & (newest["role"] != "tuning")]
    cells = rows[rows["role"] == "cell"]
    cells = cells.assign(variant=variants(cells))
    baselines = rows[rows["role"] == "baseline"].assign(variant="")
    seeds = _mean(cells, [*CELL, *MEASURE, "seed"])
    baseline_seeds = _mean(baselines, [*LINE, "init", *MEASURE, "seed"])
    return Curves(
        rows=pd.concat([cells, baselines]) if len(baselines) else cells,
        seeds=seeds,
        points=_spread(seeds, [*CELL, *MEASURE]),
        baselines=_spread(baseline_seeds, [*LINE, "init", *MEASURE]),
    )


def counted(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of every run's newest attempt that is done, or of its newest one where none is."""
    done = frame["attempt"].where(frame["status"] == "done")
    by_run = frame["run_id"].fillna("")
    best = done.groupby(by_run).transform("max").fillna(frame["attempt"].groupby(by_run).transform("max"))
    return frame[(frame["attempt"] == best).fillna(True)]


def with_pretraining(frame: pd.DataFrame) -> pd.DataFrame:
    """`flops`, and sizes where a transfer left them out, as its pre-training run recorded them."""
    trunks = frame[(frame["protocol"] == "pretrain") & frame["run_id"].notna()].drop_duplicates("run_id")
    trunks = trunks.set_index("run_id")
    parent = frame["parent_id"].fillna(frame["run_id"])
    filled = {name: frame[name].fillna(parent.map(trunks[name])) for name in ("examples", "examples_seen", "seed")}
    flops = parent.map(trunks["flops_standalone"]).astype("float64").fillna(frame["flops_standalone"])
    return frame.assign(**filled, flops=flops)


def variants(rows: pd.DataFrame) -> pd.Series:
    """What tells rows apart that share model, sizes and seed, e.g. `schedule=rsqrt`; empty where nothing does.

    A setting that differs between cells but not within one (a tuned learning rate) makes no line of its own.
    """
    settings = pd.DataFrame([json.loads(text) if isinstance(text, str) else {} for text in rows["settings"]])
    settings.index = rows.index
    keys = [rows[name].astype("string").fillna("") for name in ("model", "examples", "examples_seen", "seed")]
    label = pd.Series("", index=rows.index, dtype="str")
    for name in sorted(set(settings.columns) - set(SHOWN_SETTINGS)):
        text = settings[name].map(lambda value: json.dumps(value, default=str).strip('"'))
        if (text.groupby(keys).nunique() > 1).any():
            label = label + (", " + name.rpartition(".")[2] + "=" + text).where(text != "NaN", "")
    return label.str.removeprefix(", ")


def one_budget(points: pd.DataFrame) -> tuple[pd.DataFrame, int | None]:
    """The points of the budget (examples seen) that most cells share, and that budget.

    Where no budget holds two set sizes (durations in epochs), every cell at its largest budget, and None.
    """
    cells = points[CELL].drop_duplicates()
    if cells.empty:
        return points, None
    count = cells.groupby("examples_seen")["examples"].agg(["size", "nunique"])
    if cells["examples"].nunique() > 1 and count["nunique"].max() < 2:
        largest = points.groupby([*LINE, "examples"], dropna=False)["examples_seen"].transform("max")
        return points[points["examples_seen"] == largest], None
    budget = max(count.index, key=lambda seen: (count.loc[seen, "size"], seen))
    return points[points["examples_seen"] == budget], int(budget)


def compute_axis(points: pd.DataFrame) -> tuple[pd.DataFrame, int | None]:
    """The points of the set size at which most cells differ in compute, and that size; empty if none do."""
    cells = points[[*CELL, "flops"]].dropna(subset=["flops"]).drop_duplicates()
    lines = cells.groupby(["family", "variant", "examples"], dropna=False)["flops"].nunique()
    several = lines[lines > 1].groupby("examples").sum()
    if several.empty:
        return points.iloc[:0], None
    examples = max(several.index, key=lambda size: (several[size], size))
    return points[(points["examples"] == examples) & points["flops"].notna()], int(examples)


def cost_per_image(found: Curves) -> pd.Series:
    """Training FLOPs of one pre-training image by model; a transfer's differ with its head and resolution."""
    rows = found.rows[(found.rows["protocol"] == "pretrain") & found.rows["flops_per_example"].notna()]
    return rows.groupby("model")["flops_per_example"].mean()


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per cell or baseline and measure: mean, sd and number of seeds; tuning rows are left out."""
    found = curves(frame)
    cells = found.points.assign(role="cell")
    baselines = found.baselines.assign(role="baseline")
    columns = ["role", *LINE, "init", "examples", "examples_seen", "flops", *MEASURE, "value", "sd", "n"]
    both = [part.reindex(columns=columns) for part in (cells, baselines) if len(part)]
    if not both:
        return pd.DataFrame(columns=columns)
    # Baselines have no set size, which would turn the other rows' into floats.
    return pd.concat(both, ignore_index=True).astype({"examples": "Int64", "examples_seen": "Int64"})


def _mean(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    grouped = rows.groupby(keys, dropna=False, sort=True)
    return grouped.agg(value=("value", "mean"), flops=("flops", "mean")).reset_index()


def _spread(seeds: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    grouped = seeds.groupby(keys, dropna=False, sort=True)
    return grouped.agg(
        value=("value", "mean"), sd=("value", "std"), n=("value", "size"), flops=("flops", "mean")
    ).reset_index()
