"""What an edited study would run anew, and what it has left behind."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitscale.errors import VitscaleError
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
    new: list[Mapping[str, Any]] = []
    for job in trained.values():
        if job.id in held.runs:
            steps = before[job.id]["steps"] if job.id in before else job.steps
            if job.role == "trunk" and steps < job.steps:
                yield Change("further", job.id, job.label, None, (("steps", steps, job.steps),))
            continue
        told = json.loads(json.dumps(job.document()))
        new.append(told)
        found = {id_: describe.differences(other, told) for id_, other in before.items()}
        like = min(found, key=lambda id_: len(found[id_]), default=None)
        yield Change("new", job.id, job.label, like, tuple(found[like]) if like else ())
    gone = {id_: told for id_, told in before.items() if id_ not in trained}
    apart = describe.apart([*before.values(), *new]) if gone else []
    for id_, told in gone.items():
        yield Change("gone", id_, told["config"]["model"]["name"], settings=_settings(told, apart))
    present = {job.id for job in now.jobs} | before.keys()
    yield from _recorded(sorted(held.runs - present), results)


def _settings(told: Mapping[str, Any], keys: Collection[str]) -> tuple[tuple[str, Any], ...]:
    trunk = (("role", "trunk"),) if told.get("branches") else ()
    known = describe.identity(told)
    return (*trunk, *((key, known.get(key)) for key in keys))


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
    """That of a pre-training run; None where none can be read."""
    try:
        told = folders.document(folder)
    except VitscaleError:
        return None
    return told if told["kind"] == "pretrain" else None
