"""What tells the lines of a figure apart beside the model: the settings of its runs."""

from __future__ import annotations

import json
from typing import Any

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
REPLICATE = ["seed", "subset_seed"]
CELL_OF_MODEL = ["model", "examples", "examples_seen", *REPLICATE]
PUBLISHED = "model.checkpoint"
TELLING = ("recipe.objective", "recipe.masked_target")  # whose values are words of their own
SHOTS = "transfer.shots"  # the rows of two transfers with other shots are told apart by their column already


def variants(rows: pd.DataFrame, tuned: frozenset[str] = frozenset()) -> pd.DataFrame:
    """Of each row `trunk` (the settings of its pre-training), `transfer` (those of its transfer) and `variant` (both).

    They read like `masked-patch, schedule=rsqrt, warmup_steps=0`, and are empty where nothing tells rows apart. A
    setting counts where rows of one model, size and seed differ in it; one of a transfer always does, as rows carry
    only those that differ. A `tuned` setting that differs between cells makes no lines; one that differs within a cell
    makes them for that model alone.
    """
    told = _settings(rows)
    names = sorted({name for settings in told for name in settings} - set(SHOWN_SETTINGS))
    parts = pd.DataFrame("", index=rows.index, columns=["trunk", "transfer"], dtype="str")
    for name in names:
        text = _text(rows, told, name)
        column, shown = "trunk", pd.Series(True, index=rows.index)
        if name == PUBLISHED:
            pass  # a row of its own, whatever else is trained
        elif name.startswith("transfer."):
            column = "transfer"
            measure = ["task", "protocol"]
            if name == SHOTS:
                shown = _anywhere(_differs(rows, text, [*CELL_OF_MODEL, *measure, "init", "shots"]), rows, measure)
        else:
            differs = _differs(rows, text, CELL_OF_MODEL)
            shown = _anywhere(differs, rows, ["model"]) if name in tuned else shown & bool(differs.any())
        label = ", " + ("" if name in TELLING else _short(name, names) + "=") + text
        parts[column] += label.where(shown & (text != ""), "")
    return pd.DataFrame(
        {
            "trunk": parts["trunk"].str.removeprefix(", "),
            "transfer": parts["transfer"].str.removeprefix(", "),
            "variant": (parts["trunk"] + parts["transfer"]).str.removeprefix(", "),
        }
    )


def tuned_settings(tuning: pd.DataFrame) -> frozenset[str]:
    """The settings that the tuning runs of one cell differ in."""
    told = _settings(tuning)
    names = sorted({name for settings in told for name in settings})
    return frozenset(name for name in names if _differs(tuning, _text(tuning, told, name), CELL_OF_MODEL).any())


def _settings(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [json.loads(text) if isinstance(text, str) else {} for text in rows["settings"]]


def _text(rows: pd.DataFrame, told: list[dict[str, Any]], name: str) -> pd.Series:
    """A setting's values as text; empty where a row has none."""
    values = [json.dumps(settings[name]).strip('"') if name in settings else "" for settings in told]
    return pd.Series(values, index=rows.index, dtype="str")


def _differs(rows: pd.DataFrame, text: pd.Series, by: list[str]) -> pd.Series:
    return text.groupby(_keys(rows, by)).transform("nunique") > 1


def _anywhere(differs: pd.Series, rows: pd.DataFrame, by: list[str]) -> pd.Series:
    return differs.groupby(_keys(rows, by)).transform("any").astype(bool)


def _keys(rows: pd.DataFrame, by: list[str]) -> list[pd.Series]:
    return [rows[name].astype("string").fillna("") for name in by]


def _short(name: str, names: list[str]) -> str:
    """The last word, or the whole name where two settings share it."""
    last = name.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in names) == 1 else name
