"""From result rows to curves: newest attempts, means over draws within a seed, then mean and spread over seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from vitscale.analysis.variants import REPLICATE, tuned_settings, variants
from vitscale.errors import MISSING, VitscaleError
from vitscale.results.store import Held

MEASURE = ["task", "task_version", "protocol", "shots", "metric"]
LINE = ["family", "model", "variant"]
CELL = [*LINE, "examples", "examples_seen"]
# What is drawn of a point's pre-training run, and the column that its own row has it in.
OF_TRUNK = {"flops": "flops_standalone", "params": "params_total", "ratio": "patch", "seconds": "device_seconds"}
PLANNED = ["family", "examples", "flops"]
PARTS = ["trunk", "transfer"]  # of `variant`; they follow from it


@dataclass(frozen=True, slots=True)
class Curves:
    """What there is to draw of one study. Values are those of `metric`, accuracies 0 to 1."""

    rows: pd.DataFrame
    """The rows that count: newest attempts, done, cells and baselines; with `variant` and OF_TRUNK."""
    seeds: pd.DataFrame
    """One row per cell, measure, seed and subset: `value`, the mean over draws."""
    points: pd.DataFrame
    """One row per cell and measure: `value`, `sd` (over seeds, n - 1; null for one), `n`, and means of OF_TRUNK."""
    baselines: pd.DataFrame
    """One row per line, init and measure: `value`, `sd`, `n`."""
    theirs: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=[*CELL, *MEASURE, "value", *OF_TRUNK, "source"])
    )
    """Points that others have published, to be drawn beside: `value`, and OF_TRUNK where they say it; `source`."""
    planned: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=PLANNED))
    """Cells that the study holds and that are not done: `PLANNED`, as far as a plan tells it."""
    fitted: Any = None
    """Laws and profiles, where they are fitted already: a `report.fitted.Fitted`."""


def curves(frame: pd.DataFrame) -> Curves:
    """What there is to draw.

    Raises:
        VitscaleError: two runs claim one point of one seed, and no setting tells them apart (exit 5).
    """
    newest = with_pretraining(counted(frame))
    rows = newest[(newest["status"] == "done") & newest["value"].notna() & (newest["role"] != "tuning")]
    cells = rows[rows["role"] == "cell"]
    cells = cells.assign(**variants(cells, tuned_settings(newest[newest["role"] == "tuning"])))
    baselines = rows[rows["role"] == "baseline"]
    baselines = baselines.assign(**variants(baselines))
    seeds = _mean(cells, [*CELL, *PARTS, *MEASURE, *REPLICATE])
    baseline_seeds = _mean(baselines, [*LINE, "init", *MEASURE, *REPLICATE])
    return Curves(
        rows=pd.concat([cells, baselines]) if len(baselines) else cells,
        seeds=seeds,
        points=_spread(seeds, [*CELL, *PARTS, *MEASURE]),
        baselines=_spread(baseline_seeds, [*LINE, "init", *MEASURE]),
    )


def of_plan(frame: pd.DataFrame, plan: Held | None) -> pd.DataFrame:
    """The rows of the runs that the study holds now; all of them where no plan was recorded.

    And of their trunks: one whose branches are all done is not planned any more, but it was paid for.
    """
    if plan is None:
        return frame
    held = frame["run_id"].isin(plan.runs)
    return frame[held | frame["run_id"].isin(frame.loc[held, "trunk_id"].dropna())]


def counted(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of every run's newest attempt that is done, or of its newest one where none is.

    A tuning run that cells were transferred from is a cell: it was chosen after its part had been written.
    """
    done = frame["attempt"].where(frame["status"] == "done")
    by_run = frame["run_id"].fillna("")
    best = done.groupby(by_run).transform("max").fillna(frame["attempt"].groupby(by_run).transform("max"))
    newest = frame[(frame["attempt"] == best).fillna(True)]
    chosen = newest.loc[newest["role"] == "cell", "parent_id"].dropna().unique()
    was_chosen = (newest["role"] == "tuning") & newest["run_id"].isin(chosen)
    return newest.assign(role=newest["role"].mask(was_chosen, "cell"))


def with_pretraining(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of OF_TRUNK, and sizes where a transfer left them out, as its pre-training run recorded them."""
    trunks = frame[(frame["protocol"] == "pretrain") & frame["run_id"].notna()].drop_duplicates("run_id")
    trunks = trunks.set_index("run_id")
    parent = frame["parent_id"].fillna(frame["run_id"])
    filled = {name: frame[name].fillna(parent.map(trunks[name])) for name in ("examples", "examples_seen", *REPLICATE)}
    drawn = {name: parent.map(trunks[column]).astype("float64") for name, column in OF_TRUNK.items()}
    for name in ("flops", "params", "ratio"):  # a transfer's own seconds are not its pre-training's
        drawn[name] = drawn[name].fillna(frame[OF_TRUNK[name]].astype("float64"))
    drawn["seconds"] = drawn["seconds"].mask(parent.map(trunks["trunk_id"]).notna())  # those of its trunk are not there
    return frame.assign(**filled, **drawn)


def one_version(found: Curves) -> None:
    """Refuses a task measured in two versions: their numbers do not compare, and would share a curve.

    Raises:
        VitscaleError: exit 5.
    """
    versions = found.rows.dropna(subset=["task_version"]).groupby("task")["task_version"].agg(["min", "max"])
    mixed = versions[versions["min"] < versions["max"]]
    if mixed.empty:
        return
    task, old, new = str(mixed.index[0]), mixed["min"].iloc[0], mixed["max"].iloc[0]
    raise VitscaleError(
        f"task {task} was measured in versions {old} and {new}: their numbers do not compare, and share no curve",
        hint="`vitscale sweep STUDY` measures again what the newer version needs and leaves the older out;"
        f" or move the .parquet parts of version {old} away",
        exit_code=MISSING,
    )


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


def compute_axis(points: pd.DataFrame, column: str = "flops") -> tuple[pd.DataFrame, int | None]:
    """The points of the set size at which most cells differ in compute, and that size; empty if none do.

    `column`: `flops`, or `seconds` of compute.
    """
    cells = points[[*CELL, column]].dropna(subset=[column]).drop_duplicates()
    lines = cells.groupby(["family", "variant", "examples"], dropna=False)[column].nunique()
    several = lines[lines > 1].groupby("examples").sum()
    if several.empty:
        return points.iloc[:0], None
    examples = max(several.index, key=lambda size: (several[size], size))
    return points[(points["examples"] == examples) & points[column].notna()], int(examples)


def network_axis(points: pd.DataFrame, column: str, keys: list[str]) -> tuple[pd.DataFrame, tuple[int, int] | None]:
    """The points of the set size and budget at which most networks of one line (`keys`) differ in `column`."""
    known = points.dropna(subset=[column, "examples", "examples_seen"])
    counts = known.groupby([*keys, "examples", "examples_seen"], dropna=False)[column].nunique()
    several = counts[counts > 1].groupby(["examples", "examples_seen"]).sum()
    if several.empty:
        return points.iloc[:0], None
    examples, seen = max(several.index, key=lambda at: (several[at], at))
    return known[(known["examples"] == examples) & (known["examples_seen"] == seen)], (int(examples), int(seen))


def cost_per_image(found: Curves) -> pd.Series:
    """Training FLOPs of one pre-training image by model."""
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
    _one_run_each(rows, keys)
    grouped = rows.groupby(keys, dropna=False, sort=True)
    return grouped[["value", *OF_TRUNK]].mean().reset_index()


def _one_run_each(rows: pd.DataFrame, keys: list[str]) -> None:
    """A mean over two runs of one seed would be a point that nobody trained."""
    clash = rows[rows.groupby(keys, dropna=False)["run_id"].transform("nunique") > 1]
    if clash.empty:
        return
    _, same = next(iter(clash.groupby(keys, dropna=False)))
    first = same.iloc[0]
    one, other = sorted(same["run_id"].dropna().unique())[:2]
    sizes = "" if pd.isna(first["examples"]) else f" on {first['examples']:,} images"
    raise VitscaleError(
        f"runs {one} and {other} are both {first['model']}{sizes}, seed {first['seed']}, {first['task']}"
        f" {first['protocol']}: no setting on record tells them apart, and they are not averaged",
        hint="`vitscale sweep STUDY` records which of them the study holds now;"
        " or move the .parquet parts of the other one out of its results folder",
        exit_code=MISSING,
    )


def _spread(seeds: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    grouped = seeds.groupby(keys, dropna=False, sort=True)
    spread = grouped["value"].agg(sd="std", n="size")
    return grouped[["value", *OF_TRUNK]].mean().join(spread).reset_index()
