"""What an edited study would run anew, and what it has left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitscale.errors import VitscaleError
from vitscale.launch import folders
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

    def words(self) -> str:
        """In which settings it differs from which run."""
        settings = ", ".join(f"{key}: {before} -> {after}" for key, before, after in self.differs)
        return f"{settings} (from {self.like})" if self.like else settings or "-"


def changes(now: Plan, held: Held, runs: Path) -> Iterator[Change]:
    """What differs from the runs that were recorded, pre-training runs alone: transfers follow theirs."""
    trained = {job.id: job for job in now.jobs if job.kind == "pretrain"}
    before = {id_: told for id_ in sorted(held.runs) if (told := _document(runs / id_)) is not None}
    for job in trained.values():
        if job.id in held.runs:
            steps = before[job.id]["steps"] if job.id in before else job.steps
            if job.role == "trunk" and steps < job.steps:
                yield Change("further", job.id, job.label, None, (("steps", steps, job.steps),))
            continue
        told = json.loads(json.dumps(job.document()))
        found = {id_: describe.differences(other, told) for id_, other in before.items()}
        like = min(found, key=lambda id_: len(found[id_]), default=None)
        yield Change("new", job.id, job.label, like, tuple(found[like]) if like else ())
    for id_, other in before.items():
        if id_ not in trained:
            yield Change("gone", id_, other["config"]["model"]["name"])


def _document(folder: Path) -> Mapping[str, Any] | None:
    """That of a pre-training run; None where none can be read."""
    try:
        told = folders.document(folder)
    except VitscaleError:
        return None
    return told if told["kind"] == "pretrain" else None
