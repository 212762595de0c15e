"""A run's folder as its worker sees it: what it was told, what it says, who holds it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from vitscale import branches, lease, models
from vitscale.config import Run, Task
from vitscale.errors import MISSING, VitscaleError
from vitscale.failures import Failure
from vitscale.files import locked, write_first, write_whole
from vitscale.models.counts import Head
from vitscale.study.fields import from_dict


class RunDir:
    """`runs/<id>/`: reads `run.json`, appends to `events.jsonl`, writes `result.json` once.

    Of several processes that train a run the first one writes. The others do not hold it, and log nothing but the bad
    samples that they meet, in files of their own: `events-<number>.jsonl`.
    """

    def __init__(self, folder: Path, *, number: int = 0) -> None:
        self.folder, self.number = folder, number
        self.claim: lease.Claim | None = None
        try:
            self.document: dict[str, Any] = json.loads((folder / "run.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise VitscaleError(
                f"{folder} is no run folder: {error}", hint="vitscale status STUDY lists the runs", exit_code=MISSING
            ) from None

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes checkpoints, events and the result."""
        return self.number == 0

    @property
    def id(self) -> str:
        return str(self.document["id"])

    @cached_property
    def run(self) -> Run:
        return from_dict(self.document["config"])

    @cached_property
    def arch(self) -> models.Arch:
        return models.from_dict(self.document["arch"])

    @cached_property
    def head(self) -> Head:
        numbers = self.document["head"]
        if self.document["kind"] == "import":  # the file says
            numbers = (self.result() or {}).get("head", numbers)
        pre_logits = numbers["pre_logits"]
        if isinstance(pre_logits, bool):  # how it was written while the layer was always as wide as the features
            pre_logits = self.arch.feature_width if pre_logits else None
        return Head(num_classes=numbers["num_classes"], pre_logits=pre_logits, patches=numbers.get("patches", 0))

    @cached_property
    def task(self) -> Task:
        return Task(**self.document["task"])

    @cached_property
    def probes(self) -> tuple[Task, ...]:
        return tuple(Task(**task) for task in self.document.get("probes", []))

    @property
    def machine(self) -> dict[str, Any]:
        """Settings that must not change the outcome: threads, shards' folders, and those of the engine."""
        return dict(self.document["machine"])

    @property
    def branch(self) -> tuple[RunDir, int] | None:
        """The trunk that this run can start from, as far as there is one, and the step at which it leaves it."""
        told = self.document.get("branch")
        if told is None or not (self.folder.parent / told["trunk"] / "run.json").is_file():
            return None
        return RunDir(self.folder.parent / told["trunk"]), told["step"]

    @property
    def is_trunk(self) -> bool:
        return bool(self.document.get("branches"))

    def branches(self) -> frozenset[int]:
        """Of a trunk: the steps at which other runs leave it, as far as they are known now; empty of any other run."""
        told = self.document.get("branches", [])
        return frozenset(step for step, _ in (*told, *branches.asked(self.folder))) if told else frozenset()

    def parent(self) -> RunDir:
        return RunDir(self.folder.parent / self.document["parent"])

    def result(self) -> dict[str, Any] | None:
        """The outcome, if there is one yet."""
        path = self.folder / "result.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def events(self) -> list[dict[str, Any]]:
        """All whole lines so far; a last line that was cut off by a crash is left out."""
        return _events(self.folder / "events.jsonl")

    def bad_samples(self) -> set[tuple[str, str]]:
        """(shard, key) of those that any process of any attempt has logged."""
        found = [*self.events(), *(event for path in self.folder.glob("events-*.jsonl") for event in _events(path))]
        return {(event["shard"], event["key"]) for event in found if event["event"] == "bad_sample"}

    def log(self, event: str, facts: Mapping[str, Any]) -> None:
        if not self.writes and event != "bad_sample":  # which only the process that reads it can tell of
            return
        self.check_held()
        line = json.dumps({"event": event, "time": now(), **facts})
        path = self.folder / ("events.jsonl" if self.writes else f"events-{self.number}.jsonl")
        with path.open("a+b") as file:
            # A crash can leave half a line; a new one must not be glued to it.
            cut = file.tell() > 0 and _last_byte(path) != b"\n"
            file.write((b"\n" if cut else b"") + line.encode() + b"\n")

    def check_held(self) -> None:
        """Before anything is written that others read.

        Raises:
            Lost: this process held the run, and another one has taken it over (exit 75).
        """
        if self.claim is not None:
            self.claim.check()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Publishes the outcome in one step: over a failure, never over one that is done.

        Raises:
            Lost: as `check_held`.
        """
        path, data = self.folder / "result.json", json.dumps(result, indent=1).encode()
        self.check_held()
        if not write_first(path, data) and (self.result() or {}).get("status") != "done":
            write_whole(path, data)

    def fail(
        self,
        reason: str,
        *,
        failure: Failure,
        hint: str,
        code: int,
        facts: Mapping[str, Any] | None = None,
        provisional: bool = False,
        retry: bool = True,
    ) -> None:
        """Publishes a failure, unless one is published: of several processes the first to fail knows why.

        One that is `provisional` gives way to any other. `facts` of the attempt default to those of its start; where
        the last that started has its outcome, put aside, this one did not come to its own.
        Without `retry` another attempt would end in the same way, whatever kind of failure it is.
        """
        starts = [event for event in self.events() if event["event"] == "start"]
        aside = [path.stem.partition("-")[2] for path in self.folder.glob("result-*.json")]
        ended = max((int(number) for number in aside if number.isdecimal()), default=0)
        start = starts[-1] if len(starts) > ended else {}
        attempt = max(len(starts), ended + 1)
        known = {"attempt": attempt, "started": start.get("time") or now(), "device": start.get("device")}
        said = {"failure": failure, "retry": retry, "reason": reason, "hint": hint, "exit_code": code}
        outcome = {"status": "failed", **said, "score": None, "rows": []}
        if provisional:
            outcome["provisional"] = True
        if self.claim is not None and not self.claim.holds():
            return  # whoever has taken the run over will say how it ends
        with locked(self.folder / ".outcome", wait=True):
            before = self.result()
            if before is None or (before.get("provisional") and not provisional):
                self.finish({**outcome, **known, **(facts or {}), "ended": now()})

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Holds the run: one attempt at a time. The first of several processes holds it for all of them.

        Raises:
            VitscaleError: another process holds it (exit 75).
        """
        if not self.writes:
            yield
            return
        with lease.hold(self.folder) as self.claim:
            yield


def _events(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            event = json.loads(line)
            if isinstance(event, dict) and "event" in event:
                found.append(event)
    return found


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1)


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
