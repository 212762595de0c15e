"""Which runs a study holds, on record beside its results: by its file as a sweep was last started with it.

Several sweeps may be at work on one study, of several versions of its file. The version is what its runs are, not how
its file is spelled: another title, comment or path of the same data is no other version.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from vitscale.errors import VitscaleError
from vitscale.files import locked
from vitscale.results.store import PLAN, DamagedPlan, Held, read_plan, write_plan
from vitscale.study.load import Study
from vitscale.study.plan import Plan, plan


def version_of(study: Study) -> str:
    """12 hex digits of all that it may run: of its jobs before anything is selected, and of what selects."""
    now = plan(study, {})
    ids = sorted(job.id for job in (*now.jobs, *now.waiting))
    return hashlib.sha256(json.dumps([ids, repr(study.select)]).encode()).hexdigest()[:12]


@dataclass(kw_only=True)
class Record:
    """One sweep's hand on the record.

    Its start makes its version the study's. A sweep that finds the version of one that was started later records no
    more what it was told itself, but what the file says now, if that is the version on record: it may be what trains
    the runs. One with `--set` takes over from others of its kind alone: it leaves out no run of the study itself.
    """

    place: Path
    """`results/<study>`."""
    study: Study
    plan_of: Callable[[Study], Plan]
    settings: tuple[str, ...] = ()
    """Of `--set`."""
    reload: Callable[[], Study] | None = None
    """Reads the study's file again, with the same settings."""
    version: str = field(init=False)
    begun: bool = field(default=False, init=False)
    """Whether it has had its start."""

    def __post_init__(self) -> None:
        self.version = version_of(self.study)

    def update(self, now: Plan) -> None:
        """With the study's plan as things stand."""
        claims, self.begun = not self.begun, True
        if self._write(self._held(now, self.version), claims=claims) or self.reload is None:
            return
        with suppress(VitscaleError):  # half edited, or gone
            study = self.reload()
            self._write(self._held(self.plan_of(study), version_of(study)), claims=False)

    def displaces(self) -> Path | None:
        """Another study's file whose record its start will replace: both have one name, and so one folder of results.

        One that was moved, or copied as it is, is no other study.
        """
        before = _before(self.place)
        if before is None or before.file is None or self.begun or self.settings or self.study.file is None:
            return None
        other = self.place / before.file
        same = before.version == self.version or not other.is_file() or other.samefile(self.study.file)
        return None if same else other

    def beside(self, now: Plan) -> int:
        """How many of these runs the study does not hold, as it is on record."""
        before = _before(self.place)
        return len(self._held(now, self.version).runs - before.runs) if before is not None else 0

    def _held(self, now: Plan, version: str) -> Held:
        runs = frozenset(job.id for job in now.jobs if job.kind != "import")
        file = None
        if self.study.file is not None:
            file = os.path.relpath(self.study.file.resolve(), self.place.resolve())
        return Held(runs, len(now.waiting), version=version, settings=self.settings, file=file)

    def _write(self, held: Held, *, claims: bool) -> bool:
        """False where the record is another version's."""
        if self._stands(_before(self.place), held):
            return True  # nor is a lock taken, on a disk that may allow none
        self.place.mkdir(parents=True, exist_ok=True)
        with locked(self.place / f".{PLAN}", wait=True):
            before = _before(self.place)
            if before is not None and before.version != held.version and not self._may_replace(before, held, claims):
                return False
            if before is None:  # or damaged, and `write_plan` would ask it for earlier runs
                (self.place / PLAN).unlink(missing_ok=True)
            of_file = before is not None and not before.settings
            write_plan(self.place, replace(held, settings=() if of_file else held.settings))
        return True

    def _stands(self, before: Held | None, held: Held) -> bool:
        """Whether it is on record already."""
        if before is None:
            return False
        runs = held.runs | before.runs if held.waiting else held.runs
        told = (before.runs, before.waiting, before.version) == (runs, held.waiting, held.version)
        return told and set(before.settings) <= set(held.settings)

    def _may_replace(self, before: Held, held: Held, claims: bool) -> bool:
        """Whether the record of another version gives way."""
        if not self.settings:
            return claims
        return before.runs <= held.runs or (claims and bool(before.settings))


def _before(place: Path) -> Held | None:
    """None also of one that is damaged: it is written anew."""
    try:
        return read_plan(place)
    except DamagedPlan:
        return None
