"""What an edited study would run anew, and what it has left behind."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from operator import ne
from pathlib import Path
from typing import Any, Literal

from vitscale.launch import folders
from vitscale.results import store
from vitscale.results.store import Held
from vitscale.study import describe
from vitscale.study.plan import Plan


@dataclass(frozen=True, slots=True)
class Change:
    """A pre-training run that a study holds now and did not, one that it held, or a trunk that it needs further."""

    state: Literal["new", "gone", "further"]
    id: str
    model: str
    like: str | None = None
    """Of a new one: the recorded run that differs least."""
    differs: tuple[tuple[str, Any, Any], ...] = ()
    """(setting, of that one or before, of this one or now)"""
    settings: tuple[tuple[str, Any], ...] = ()
    """Of one that is gone: what tells it apart from the others."""

    def words(self) -> str:
        """In which settings it differs, and from which run."""
        settings = ", ".join(f"{key}: {before} -> {after}" for key, before, after in self.differs)
        own = ", ".join(f"{key} {value}" for key, value in self.settings)
        return f"{settings} (from {self.like})" if self.like else settings or own or "-"


def changes(now: Plan, held: Held, runs: Path, results: Path | None = None) -> Iterator[Change]:
    """What differs from the runs that were recorded, pre-training runs alone: transfers follow theirs.

    Of runs that are gone, and whose folders are as well, their rows tell in the study's `results`. What `now.waiting`
    holds cannot be compared yet.
    """
    trained = {job.id: job for job in now.jobs if job.kind == "pretrain"}
    before = {id_: told for id_ in sorted(held.runs) if (told := _document(runs / id_)) is not None}
    new: dict[str, Mapping[str, Any]] = {}
    for job in trained.values():
        if job.id in held.runs:
            steps = before[job.id]["steps"] if job.id in before else job.steps
            if job.role == "trunk" and steps < job.steps:
                yield Change("further", job.id, job.label, None, (("steps", steps, job.steps),))
            continue
        new[job.id] = json.loads(json.dumps(job.document()))
    known = {id_: describe.identity(told) for id_, told in {**before, **new}.items()}
    like = _nearest(known, before, new)
    for id_ in new:
        differs = describe.compared(known[like[id_]], known[id_]) if like else ()
        yield Change("new", id_, trained[id_].label, like.get(id_), tuple(differs))
    gone = {id_: told for id_, told in before.items() if id_ not in trained}
    apart = describe.apart(known.values()) if gone else []
    for id_, told in gone.items():
        trunk = (("role", "trunk"),) if told.get("branches") else ()
        own = ((key, known[id_].get(key)) for key in apart)
        yield Change("gone", id_, told["config"]["model"]["name"], settings=(*trunk, *own))
    present = {job.id for job in now.jobs} | before.keys()
    yield from _recorded(sorted(held.runs - present), results)


def _nearest(known: Mapping[str, Mapping[str, Any]], before: Collection[str], new: Collection[str]) -> dict[str, str]:
    """For each new run, by ids, that of `before` which differs in the fewest settings; of these the one whose numbers
    are nearest, and then the first. Empty where there is none."""
    # There are as many pairs as both multiplied: only what varies at all is compared. Steps follow from the rest.
    keys = {key: None for each in known.values() for key in each if key != "steps"}
    first = next(iter(known.values()), {})
    varying = [key for key in keys if any(each.get(key) != first.get(key) for each in known.values())]
    values = {id_: [each.get(key) for key in varying] for id_, each in known.items()}
    found = {}
    for id_ in new if before else ():
        counts = {other: sum(map(ne, values[other], values[id_])) for other in before}
        least = min(counts.values())
        equal = [other for other, number in counts.items() if number == least]
        found[id_] = min(equal, key=lambda other: sum(map(_gap, values[other], values[id_])))
    return found


def _gap(one: Any, other: Any) -> float:
    """How far two values of a setting lie from each other: 0 to 1 of numbers of one sign, by their ratio."""
    if one == other:
        return 0.0
    if not isinstance(one, int | float) or not isinstance(other, int | float):
        return 1.0
    return abs(one - other) / max(abs(one), abs(other))


def _recorded(ids: Collection[str], results: Path | None) -> Iterator[Change]:
    """Of runs whose folders tell nothing what their rows do."""
    if not ids or results is None or not store.parts(results):
        return
    rows = store.read(results)
    rows = rows[rows["run_id"].isin(list(ids)) & (rows["protocol"] == "pretrain")].drop_duplicates("run_id")
    for row in rows.to_dict("records"):
        trunk = (("role", "trunk"),) if row["role"] == "trunk" else ()
        told = {"data.examples": row["examples"], "recipe.lr": row["lr"], "seed": row["seed"]}
        told |= json.loads(row["settings"] or "{}")
        told.pop("model.name", None)
        yield Change("gone", row["run_id"], row["model"], settings=(*trunk, *told.items()))


def _document(folder: Path) -> Mapping[str, Any] | None:
    """That of a pre-training run; None where none can be read, or it is not the one that the folder's name says."""
    if folders.check(folder) is not None:
        return None
    told = folders.document(folder)
    return told if told["kind"] == "pretrain" else None
