"""What a column measures, and in which unit: accuracies and errors as shares or in percent, or losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from vitscale.analysis.facts import Fact
from vitscale.errors import MISSING, USAGE, VitscaleError
from vitscale.wording import count

Measure = Literal["accuracy", "error", "loss"]
WORDS: tuple[tuple[str, Measure], ...] = (
    ("loss", "loss"), ("nll", "loss"), ("perplexity", "loss"),
    ("err", "error"),
    ("acc", "accuracy"), ("top1", "accuracy"), ("top-1", "accuracy"), ("top_1", "accuracy"),
)  # fmt: skip
ROUNDING = 1e-4  # beyond 0 or 1: of a share in half precision, or 1 less a sum; what is further off is no share
LOSSES = 1e-50, 1e50  # none is near; the squares of gradients of what is far beyond have no number
VALUE = "value"  # a column whose measure the column `metric` has


def metrics(rows: pd.DataFrame) -> pd.Series:
    """Of each row what its metric column says; empty where nothing does."""
    return rows["metric"].astype("string").fillna("") if "metric" in rows.columns else pd.Series("", rows.index)


def percent(table: pd.DataFrame, y: str) -> dict[str, bool]:
    """Of each metric whether it is in percent: in one table an error of 0.9 beside one of 3 is, whatever its curve.

    What cannot be a percentage, infinity or 999 for what is missing, says nothing of the others.
    """
    return {metric: bool(value > 1 + ROUNDING) for metric, value in _largest(table, y).items()}


def read_as_percent(table: pd.DataFrame, y: str, metric: str) -> Fact:
    """What is said where a metric is in percent: one value decides it for all."""
    of = f"{y} of metric {metric}" if metric else y
    return Fact("percent", f"{of} is read as percent: it has values up to {_largest(table, y)[metric]:.7g}.")


def _largest(table: pd.DataFrame, y: str) -> dict[str, float]:
    """Of each metric the largest value that may be a percentage."""
    values = pd.to_numeric(table[y], errors="coerce")
    largest = values.where(values <= 100 * (1 + ROUNDING)).groupby(metrics(table)).max()
    return {str(metric): float(value) for metric, value in largest.items()}


def measure_of(rows: pd.DataFrame, y: str) -> Measure:
    """By the metric column, or the name of y; an accuracy where neither tells and no value is above 1.

    Raises:
        VitscaleError: nothing tells, and it is no share (exit 2).
    """
    (name, *_) = _names(rows, y)
    if found := _named(name):
        return found
    if rows[y].max() > 1 + ROUNDING:
        raise VitscaleError(
            f"column {y!r} holds values up to {rows[y].max():g}, and {name!r} does not say what they are",
            hint="say --y-is accuracy, error or loss (accuracies and errors above 1 are read as percent)",
            exit_code=USAGE,
        )
    return "accuracy"


def common_measure(rows: pd.DataFrame, columns: Sequence[str]) -> Measure:
    """What columns measure that are averaged.

    Raises:
        VitscaleError: they measure different things, or some of them do not say what (exit 5); as `measure_of`.
    """
    told = {y: {_named(name) for name in _names(rows, y)} for y in columns}
    if len(set().union(*told.values())) > 1:
        said = [f"{y!r} {_said(one)}" for y, of_column in told.items() for one in sorted(of_column, key=str)]
        raise VitscaleError(
            f"columns of different measures have no mean: {', '.join(said)}",
            hint="fit each of them alone; or say --y-is accuracy, error or loss, if all of them are",
            exit_code=MISSING,
        )
    found = [measure_of(rows, y) for y in columns]  # of each, as one may be no share
    return found[0]


def fitted(
    values: Float[np.ndarray, " rows"], name: str, measure: Measure, *, percent: bool
) -> tuple[Float[np.ndarray, " rows"], str]:
    """What the law is of, and in words: the loss, or the error as a share.

    Raises:
        VitscaleError: what no loss, accuracy or error can be (exit 5).
    """
    plain = in_unit(values, name, measure, percent=percent)
    if measure == "loss":
        return plain, _named_as("loss", name)
    unit = f"{name}/100" if percent else name
    return (1 - plain, f"error = 1 - {unit}") if measure == "accuracy" else (plain, _named_as("error", unit))


def in_unit(
    values: Float[np.ndarray, " rows"], name: str, measure: Measure, *, percent: bool
) -> Float[np.ndarray, " rows"]:
    """Losses as they are, accuracies and errors as shares, without what rounding put beyond 0 or 1; NaN stays.

    Raises:
        VitscaleError: what no loss, accuracy or error can be (exit 5).
    """
    if measure == "loss":
        _within(values, name, "a loss is above 0", low=np.nextafter(0, 1), high=np.inf)
        low, high = LOSSES
        _within(values, name, f"a loss lies between {low:g} and {high:g}", low=low, high=high)
        return values
    share = values / 100 if percent else values
    rule = f"an {measure} lies between 0 and {100 if percent else 1}"
    _within(share, name, rule, low=-ROUNDING, high=1 + ROUNDING)
    return np.clip(share, 0.0, 1.0)


def _names(rows: pd.DataFrame, y: str) -> list[str]:
    """What may say what y measures."""
    return sorted(set(metrics(rows))) if y == VALUE and "metric" in rows.columns and len(rows) else [y]


def _named(name: str) -> Measure | None:
    return next((measure for word, measure in WORDS if word in name.lower()), None)


def _said(measure: Measure | None) -> str:
    return "does not say what it is" if measure is None else f"is {'a' if measure == 'loss' else 'an'} {measure}"


def _named_as(what: str, column: str) -> str:
    return what if what == column else f"{what} = {column}"


def _within(values: np.ndarray, name: str, rule: str, *, low: float, high: float) -> None:
    wrong = values[(values < low) | (values > high)]
    if len(wrong):
        raise VitscaleError(
            f"column {name!r} cannot be fitted: {rule}, and {count(len(wrong), 'row')} "
            f"{'is' if len(wrong) == 1 else 'are'} not",
            hint="say what it is with --y-is accuracy, error or loss, or leave rows out with --where",
            exit_code=MISSING,
        )
