"""A study's results as a table to fit: one row for each run and measure, draws averaged, and what was left out."""

from __future__ import annotations

import pandas as pd

from vitscale.analysis.curves import Curves, counted, curves
from vitscale.analysis.facts import Fact
from vitscale.wording import count

KEYS = ["run_id", "task", "task_version", "protocol", "shots", "metric"]
CLUSTER = "trunk_id"


def measured(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Fact]]:
    """The table of `by_run`, and what was left out."""
    found = curves(frame)
    return by_run(found), [*_excluded(frame), *_edges(found.rows[found.rows["role"] == "cell"])]


def by_run(found: Curves) -> pd.DataFrame:
    """The rows of cells with `flops` (of pre-training) and `trunk_id`, the training that a row hangs on: its
    pre-training run, or the trunk that this shares with others."""
    cells = found.rows[found.rows["role"] == "cell"]
    grouped = cells.groupby(KEYS, dropna=False, sort=False)
    first = grouped.first()
    # `first` takes the first that is not null; the value is the mean over draws of the support set.
    table = first.assign(value=grouped["value"].mean()).reset_index()
    own = table["parent_id"].fillna(table["run_id"])
    trunks = cells[cells["trunk_id"].notna()].drop_duplicates("run_id")
    trunk_of = dict(zip(trunks["run_id"], trunks["trunk_id"], strict=True))
    table[CLUSTER] = own.map(lambda run_id: trunk_of.get(run_id, run_id))
    return table


def _excluded(frame: pd.DataFrame) -> list[Fact]:
    newest = counted(frame)
    failed = newest[newest["status"] == "failed"].drop_duplicates("run_id")
    tuning = newest.loc[newest["role"] == "tuning", "run_id"].nunique()
    found = []
    if len(failed):
        reasons = zip(failed["run_id"], failed["model"], failed["reason"].fillna("no reason recorded"), strict=True)
        details = tuple(f"{run_id} {model}: {reason}" for run_id, model, reason in reasons)
        found.append(Fact("excluded", f"{count(len(failed), 'run')} left out that failed.", details))
    if tuning:
        found.append(Fact("excluded", f"{count(tuning, 'run')} left out that only chose a setting."))
    return found


def _edges(cells: pd.DataFrame) -> list[Fact]:
    at_edge = cells[cells["lr_at_edge"].fillna(False).astype(bool) & (cells["protocol"] == "pretrain")]
    details = sorted({f"{row.model} on {row.examples:,} images: {row.lr:g}" for row in at_edge.itertuples()})
    text = f"The chosen learning rate of {count(len(details), 'cell')} is at the edge of its grid."
    return [Fact("edge", text, tuple(details))] if details else []
