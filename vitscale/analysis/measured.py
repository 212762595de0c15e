"""A study's results as a table to fit: one row for each run and measure, draws averaged, and what was left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from vitscale.analysis.curves import Curves, counted, curves
from vitscale.analysis.facts import Fact
from vitscale.study.select import edges
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
    pretrained = cells[cells["protocol"] == "pretrain"]
    found = {(row["model"], row["examples"], named) for row in _rows(pretrained) if (named := at_edge(row))}
    text = f"Settings of {count(len(found), 'cell')} were chosen at the edge of their grid."
    details = sorted(f"{model} on {examples:,} images: {named}" for model, examples, named in found)
    return [Fact("edge", text, tuple(details))] if found else []


def at_edge(row: Mapping[Any, Any]) -> str | None:
    """The settings of a row that were chosen at the edge of what was tried, with their values: `lr 0.01`."""
    if isinstance(row["tried"], str):
        found = edges(json.loads(row["tried"]))
    else:  # whose parts do not have the grid
        found = {"lr": row["lr"]} if row["lr_at_edge"] else {}
    return ", ".join(f"{key.rpartition('.')[2]} {value:g}" for key, value in found.items()) or None


def _rows(table: pd.DataFrame) -> list[dict[Any, Any]]:
    found = table[["model", "examples", "lr", "lr_at_edge", "tried"]].drop_duplicates()
    return found.astype(object).where(found.notna(), None).to_dict("records")
