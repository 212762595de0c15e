"""The honesty box: what a reader must know before believing a curve."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd

from vitscale.analysis.curves import CELL, LINE, Curves, cost_per_image, counted, of_plan
from vitscale.analysis.measured import at_edge
from vitscale.analysis.variants import REPLICATE
from vitscale.report.lines import BASELINE_NAMES, measure_title
from vitscale.results.store import Held
from vitscale.wording import NOT_HELD, count

SAME_COST = 1.10  # families whose FLOPs an image differ by more are not compared at equal compute


@dataclass(frozen=True, slots=True)
class Note:
    text: str
    details: tuple[str, ...] = ()


def notes(frame: pd.DataFrame, found: Curves, plan: Held | None = None) -> list[Note]:
    """Everything that spoils the comparison, and what was left out; empty only if nothing does."""
    newest = counted(frame)
    return [
        *_failed(newest),
        *([] if _finished(frame, plan) else _missing(found)),
        *_no_baseline(found),
        *_below_baseline(found),
        *_unmeasured(newest),
        *_without_labels(found),
        *_mixed_code(found),
        *_edges(newest),
        *_changing_rates(found),
        *_unequal_cost(found),
        *_few_seeds(found),
        *_left_out(newest),
    ]


def plan_notes(everything: pd.DataFrame, plan: Held | None) -> list[Note]:
    """What the study holds and these rows do not, and the other way round."""
    if plan is None:
        return []
    recorded = set(everything["run_id"].dropna())
    absent, gone = len(plan.runs - recorded) + plan.waiting, recorded - set(of_plan(everything, plan)["run_id"])
    total = len(plan.runs) + plan.waiting
    found = []
    if absent and plan.waiting and not plan.runs - recorded:
        found.append(Note(f"Settings are being selected again; these are the {count(len(plan.runs), 'run')} so far."))
    elif absent:
        found.append(Note(f"Unfinished: {absent:,} of the study's {count(total, 'run')} have no result yet."))
    if gone:
        text = f"{count(len(gone), 'run')} left out: recorded here, but {NOT_HELD}."
        found.append(Note(text, tuple(sorted(gone))))
    return found


def _finished(rows: pd.DataFrame, plan: Held | None) -> bool:
    """All that a study holds is recorded: a cell that one line has and another has not is none of it."""
    return plan is not None and not plan.waiting and plan.runs <= set(rows["run_id"].dropna())


def _failed(newest: pd.DataFrame) -> list[Note]:
    failed = newest[newest["status"] == "failed"].drop_duplicates("run_id")
    untried = (failed["attempt"] == 0).fillna(False) & failed["parent_id"].notna()
    tried, orphans = failed[~untried], failed[untried]
    found = []
    if len(tried):
        details = [f"{_cell(row)}, {_what(row)}: {row['reason'] or 'no reason recorded'}" for row in _records(tried)]
        found.append(Note(f"{count(len(tried), 'run')} failed; no point is drawn for them.", tuple(details)))
    if len(orphans):
        parents = count(orphans["parent_id"].nunique(), "failed run")
        found.append(Note(f"{count(len(orphans), 'transfer')} of {parents} could not be tried."))
    return found


def _missing(found: Curves) -> list[Note]:
    """Cells and measures that other seeds have, or most other lines: where each line has sizes of its own, as in an
    isoFLOP study, those are no others' gaps."""
    seeds = found.seeds[(found.seeds["metric"] == "accuracy") & found.seeds["examples"].notna()]  # none published
    measure = ["task", "protocol", "shots", "transfer"]
    line_of = ["family", "model", "trunk"]
    size_of = ["examples", "examples_seen"]
    present = set(_keys(seeds[[*line_of, *size_of, *REPLICATE, *measure]]))
    cells = set(_keys(seeds[[*line_of, *size_of]]))
    lines = {cell[: len(line_of)] for cell in cells}
    having = Counter(cell[len(line_of) :] for cell in cells)
    common = {size for size, times in having.items() if times >= max(2, len(lines) / 2)}
    expected = cells | {(*line, *size) for line, size in product(lines, common)}
    every_seed = set(_keys(seeds[REPLICATE]))
    without_labels = set(_keys(found.seeds.loc[_of_patches(found.seeds), line_of]))
    measures = sorted(set(_keys(seeds[measure])), key=str)
    absent: list[str] = []
    for cell, seed in sorted(product(expected, every_seed), key=str):
        own = [key for key in measures if key[1] != "pretrain" or cell[: len(line_of)] not in without_labels]
        lacking = [key for key in own if (*cell, *seed, *key) not in present]
        if lacking:
            record = dict(zip([*line_of, *size_of, *REPLICATE], (*cell, *seed), strict=True))
            what = "nothing measured" if len(lacking) == len(own) else f"no {', no '.join(_titles(lacking))}"
            absent.append(f"{_cell(record)}: {what}")
    if not absent:
        return []
    return [Note(f"{count(len(absent), 'cell')} missing or incomplete that other lines or seeds have.", tuple(absent))]


def _no_baseline(found: Curves) -> list[Note]:
    measure = ["task", "protocol", "shots"]
    transfers = found.points[(found.points["protocol"] != "pretrain") & (found.points["metric"] == "accuracy")]
    bare = sorted(set(_keys(transfers[measure])) - set(_keys(found.baselines[measure])), key=str)
    text = "No baseline recorded yet; a curve that does not clear it says nothing."
    return [Note(text, tuple(_titles(bare)))] if bare else []


def _below_baseline(found: Curves) -> list[Note]:
    """Lines that at their best do not clear raw pixels, or their own network before pre-training."""
    measure = ["task", "protocol", "shots"]
    bars = found.baselines[found.baselines["metric"] == "accuracy"]
    points = found.points[(found.points["protocol"] != "pretrain") & (found.points["metric"] == "accuracy")]
    best = points.loc[points.groupby([*LINE, *measure], dropna=False)["value"].idxmax()]
    both = best.merge(bars, on=measure, suffixes=("", "_bar"))
    own = (both["model"] == both["model_bar"]) | (both["init"] == "pixels")
    below = both[own & _is_bar_of(both) & (both["value"] <= both["value_bar"])]
    details = [_shortfall(row) for row in _records(below.sort_values([*measure, *LINE]))]
    lines = len(below[[*LINE, *measure]].drop_duplicates())
    text = f"Curves that do not clear a baseline, and so say nothing about pre-training: {lines} of {len(best)}."
    return [Note(text, tuple(details))] if details else []


def _is_bar_of(both: pd.DataFrame) -> pd.Series:
    """A baseline's settings are those of its network and transfer, a line's may hold more."""
    pairs = zip(both["variant"], both["variant_bar"], strict=True)
    alike = [set(bar.split(", ")) - {""} <= set(line.split(", ")) for line, bar in pairs]
    return pd.Series(alike, index=both.index, dtype="bool")


def _shortfall(row: dict[str, object]) -> str:
    line = ", ".join(filter(None, [str(row["model"]), str(row["variant"])]))
    measured = _titles([(row["task"], row["protocol"], row["shots"])])[0]
    bar = BASELINE_NAMES.get((str(row["protocol"]), str(row["init"])), str(row["init"]))
    return f"{line}, {measured}: {row['value']:.1%} at best, {bar} {row['value_bar']:.1%}"


def _unmeasured(newest: pd.DataFrame) -> list[Note]:
    rows = newest[(newest["status"] == "done") & newest["value"].isna()]
    return [Note(f"{count(len(rows), 'row')} without a value left out.")] if len(rows) else []


def _without_labels(found: Curves) -> list[Note]:
    """Runs that predicted patches: how well, since no figure can show it beside an accuracy."""
    points = found.points[_of_patches(found.points)]
    details = [
        f"{_cell(row, seed=False)}, {measure_title(str(row['task']), 'pretrain', None).lower()}: "
        f"{row['metric']} {row['value']:.3g}"
        for row in _records(points)
    ]
    text = "Pre-trained without labels: no upstream accuracy, and so in no upstream panel."
    return [Note(text, tuple(details))] if details else []


def _of_patches(rows: pd.DataFrame) -> pd.Series:
    return rows["metric"].isin(["patch_accuracy", "patch_loss"])


def _mixed_code(found: Curves) -> list[Note]:
    """Lines whose points were trained by different code, and points trained by code that no commit holds."""
    result = []
    rows = found.rows
    hashes = rows.groupby([*LINE, "task", "protocol"], dropna=False)["code_hash"].nunique()
    mixed = hashes[hashes > 1].reset_index()
    if len(mixed):
        details = tuple(
            f"{row['model']}, {row['task']} {row['protocol']}: {row['code_hash']}" for row in _records(mixed)
        )
        result.append(Note("Rows of one curve come from different code (number of code hashes).", details))
    elif rows["code_hash"].nunique() > 1:
        result.append(Note(f"The curves come from {rows['code_hash'].nunique()} versions of the training code."))
    relayed = rows[rows["earlier_code"].notna()].drop_duplicates("run_id")
    if len(relayed):
        text = f"{count(len(relayed), 'run')} trained by several versions of the code, one after another."
        result.append(Note(text, tuple(f"{_cell(row)}: {_codes(row)}" for row in _records(relayed))))
    dirty = rows[rows["git_dirty"].fillna(False).astype(bool)]["run_id"].nunique()
    if dirty:
        result.append(Note(f"{count(dirty, 'run')} trained by code with uncommitted changes."))
    return result


def _codes(row: dict[str, object]) -> str:
    """Commits of the code that trained a run, the first one first."""
    return f"{earlier_commits(row)}, then {_commit(row)}"


def earlier_commits(row: Mapping[Any, Any]) -> str | None:
    """Of the code that trained a run before that of its row, the first one first; None if there was none."""
    told = row["earlier_code"]
    return ", then ".join(map(_commit, json.loads(told))) if isinstance(told, str) else None


def _commit(code: Mapping[Any, Any]) -> str:
    commit = code["git_commit"]
    return commit[:10] if isinstance(commit, str) and commit else "no commit"


def _edges(newest: pd.DataFrame) -> list[Note]:
    chosen = newest[(newest["lr_at_edge"].notna() | newest["tried"].notna()) & (newest["role"] != "tuning")]
    chosen = chosen[chosen["protocol"] != "fewshot"]  # a few-shot row repeats its pre-training run's
    details = sorted(
        {
            f"{_cell(row, seed=False)}, {_what(row)}: {named}{_of(row)}"
            for row in _records(chosen)
            if (named := at_edge(row)) is not None
        }
    )
    text = "Settings were chosen at the edge of what was tried; better ones may lie beyond."
    return [Note(text, tuple(details))] if details else []


def _of(row: dict[str, object]) -> str:
    """What the row's settings were chosen from, with the validation score of each, where that is on record."""
    told = []
    for trial in json.loads(str(row["tried"] or "[]")):
        score = "failed" if trial["score"] is None else f"{trial['score']:.3g}"
        values = (f"{key.rpartition('.')[2]} {value}" for key, value in trial.items() if key != "score")
        told.append(f"{', '.join(values)} ({score})")
    return f", of {'; '.join(told)}" if told else ""


def _changing_rates(found: Curves) -> list[Note]:
    """Lines whose points were pre-trained at several rates: between them, not only the data differ."""
    cells = found.rows[(found.rows["role"] == "cell") & (found.rows["protocol"] == "pretrain")]
    details = []
    for _, line in cells.groupby(LINE, dropna=False):
        sizes = line.groupby("lr")["examples"].unique()
        if len(sizes) > 1:
            parts = [f"{lr:g} on {', '.join(f'{n:,}' for n in sorted(found))}" for lr, found in sizes.items()]
            details.append(f"{line['model'].iloc[0]}: {'; '.join(parts)} images")
    text = "Pre-training rates change along a line, as they were selected at some of its sizes."
    return [Note(text, tuple(details))] if details else []


def _unequal_cost(found: Curves) -> list[Note]:
    cost = cost_per_image(found)
    if len(cost) < 2 or cost.max() <= SAME_COST * cost.min():
        return []
    details = tuple(f"{model}: {value:.3g} FLOPs" for model, value in cost.sort_values().items())
    ratio = cost.max() / cost.min()
    differ = f"differ by {ratio - 1:.0%}" if ratio < 2 else f"differ up to {ratio:.3g} times"
    return [Note(f"Training FLOPs an image {differ} between models.", details)]


def _few_seeds(found: Curves) -> list[Note]:
    trained = found.points[found.points["examples"].notna()]  # a published checkpoint has no seeds
    alone = trained[(trained["n"] == 1) & (trained["metric"] == "accuracy")]
    cells = alone[CELL].drop_duplicates()
    return [Note(f"{count(len(cells), 'cell')} measured with one seed only: no spread is known.")] if len(cells) else []


def _left_out(newest: pd.DataFrame) -> list[Note]:
    tuning = newest[newest["role"] == "tuning"]
    runs = tuning["run_id"].nunique()
    if not runs:
        return []
    chosen = newest[newest["tried"].notna() & (newest["role"] == "cell") & (newest["protocol"] == "pretrain")]
    details = sorted({f"{_cell(row, seed=False)}: {row['lr']:g}{_of(row)}" for row in _records(chosen)})
    text = f"{count(runs, 'tuning run')} left out of the curves; their FLOPs are not on the x axes."
    return [Note(text, tuple(details))]


def _cell(row: dict[str, object], seed: bool = True) -> str:
    parts = [str(row.get("model") or row.get("run_id")), *([str(row["trunk"])] if row.get("trunk") else [])]
    for name, text in (("examples", "images"), ("examples_seen", "seen")):
        value = row.get(name)
        if value is not None and not pd.isna(value):  # type: ignore[call-overload]
            parts.append(f"{int(value):,} {text}")  # type: ignore[call-overload]
    if seed and row.get("seed") is not None and not pd.isna(row["seed"]):  # type: ignore[call-overload]
        parts.append(f"seed {row['seed']}")
    return ", ".join(parts)


def _what(row: dict[str, object]) -> str:
    role = f" ({row['role']})" if row["role"] not in ("cell", None) else ""
    return ("pre-training" if row["protocol"] == "pretrain" else f"{row['task']} {row['protocol']}") + role


def _titles(keys: list[tuple[object, ...]]) -> list[str]:
    """Of (task, protocol, shots) and, where it tells transfers apart, the transfer's settings."""
    return [
        ", ".join([measure_title(str(task), str(protocol), shots), *(str(more) for more in rest if more)])  # type: ignore[arg-type]
        for task, protocol, shots, *rest in keys
    ]


def _records(frame: pd.DataFrame) -> list[dict[str, object]]:
    plain = frame.astype(object).where(frame.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in plain.to_dict("records")]


def _keys(frame: pd.DataFrame) -> list[tuple[object, ...]]:
    plain = frame.astype(object).where(frame.notna(), None)
    return list(plain.itertuples(index=False, name=None))
