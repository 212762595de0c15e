"""Run folders from the outside: made before a worker starts, read while it runs and after it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from vitscale import lease
from vitscale.errors import INVALID_STUDY, MISSING, VitscaleError
from vitscale.failures import Failure
from vitscale.files import disk_errors, locked, write_whole
from vitscale.results import provenance
from vitscale.study.archs import IN_ARCH
from vitscale.study.fields import from_dict
from vitscale.study.identity import OF_MASKED
from vitscale.study.job import Job, files_of

State = Literal["to do", "stopped", "running", "done", "failed"]


def result(folder: Path) -> dict[str, Any] | None:
    """The outcome of the newest attempt that ended; None where there is none.

    Raises:
        VitscaleError: the file is damaged (exit 5).
    """
    path = folder / "result.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        document["status"], document["rows"], document["attempt"]
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise VitscaleError(
            f"{folder.parent} is not a folder", hint="name a folder for the runs with --runs", exit_code=MISSING
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise VitscaleError(
            f"{path} is damaged ({type(error).__name__}: {error})",
            hint="delete that file: the run goes on from its last checkpoint",
            exit_code=MISSING,
        ) from None
    return document


def document(folder: Path) -> dict[str, Any]:
    """`run.json`.

    Raises:
        VitscaleError: there is no run here (exit 5).
    """
    try:
        told: dict[str, Any] = json.loads((folder / "run.json").read_text())
        told["id"], told["kind"], told["config"], told["provenance"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VitscaleError(
            f"{folder / 'run.json'} is missing or damaged ({type(error).__name__}: {error})",
            hint=f"move {folder} away: the run is then trained again",
            exit_code=MISSING,
        ) from None
    return told


def put_aside(folder: Path) -> list[dict[str, Any]]:
    """The outcomes of attempts that were followed by others; what is damaged is left out."""
    found = []
    for path in sorted(folder.glob("result-*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            outcome = json.loads(path.read_text())
            outcome["status"], outcome["rows"], outcome["attempt"], outcome["started"], outcome["ended"]
            found.append(outcome)
    return found


def events(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of `events.jsonl`, the oldest first."""
    found = []
    for line in _lines_from_the_end(folder / "events.jsonl"):
        with suppress(ValueError):
            found.append(json.loads(line))
    return found[::-1]


def last_event(folder: Path, kind: str = "step") -> dict[str, Any] | None:
    """The newest whole line of this kind in `events.jsonl`."""
    wanted = f'"event": "{kind}"'.encode()
    for line in _lines_from_the_end(folder / "events.jsonl"):
        if wanted in line:
            try:
                event: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            return event
    return None


def _lines_from_the_end(path: Path, block: int = 2**16) -> Iterator[bytes]:
    """The last line first; a run of days has logged megabytes, and who watches looks every second."""
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        left, rest = file.seek(0, 2), b""
        while left:
            size = min(block, left)
            left = file.seek(left - size)
            first, *lines = (file.read(size) + rest).split(b"\n")
            yield from reversed(lines)
            rest = first
        yield rest


def silent_seconds(folder: Path) -> float | None:
    """Since the run last moved, by its heartbeat; None where it has none."""
    try:
        return max(time.time() - (folder / "heartbeat").stat().st_mtime, 0.0)
    except OSError:
        return None


def is_held(folder: Path) -> bool:
    """Whether a worker may be working on this run now."""
    return lease.holder(folder) is not None


def state(folder: Path) -> State:
    """Where a run stands."""
    outcome = result(folder)
    if outcome is not None:
        return "done" if outcome["status"] == "done" else "failed"
    if is_held(folder):
        return "running"
    return "stopped" if (folder / "events.jsonl").is_file() else "to do"


def outcome_of(job: Job, runs: Path) -> dict[str, Any] | None:
    """A job's outcome; None where there is none yet, and for a trunk that must go further than it went."""
    found = result(runs / job.id)
    if found is not None and job.role == "trunk" and found["status"] == "done" and found["reached"] < job.steps:
        return None
    return found


def state_of(job: Job, runs: Path) -> State:
    """Where a job stands."""
    found = state(runs / job.id)
    return "stopped" if found == "done" and outcome_of(job, runs) is None else found


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of which a run has checkpoints."""
    names = [path.name.removeprefix("step-") for path in (folder / "checkpoints").glob("step-*")]
    return [int(name) for name in names if name.isdecimal()]


def branched_at(folder: Path) -> int | None:
    """The step of the trunk's checkpoint that a run has begun with, 0 without a trunk; None where it has none of its
    own."""
    for step in sorted(checkpoint_steps(folder), reverse=True):
        with suppress(OSError, ValueError, KeyError, TypeError):  # damaged: the one before is gone on from
            state = json.loads((folder / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())
            return int(state["progress"].get("branched_at", 0))
    return None


def checkpoints(folder: Path) -> frozenset[str]:
    """All that a run has saved, those of a fine-tuning's single trainings included."""
    return frozenset(str(path.relative_to(folder)) for path in folder.rglob("step-*"))


def goes_to(trunk: Path) -> int:
    """The last step that a trunk was told to train; 0: it was told nothing."""
    return int(document(trunk)["steps"]) if (trunk / "run.json").is_file() else 0


def scores(runs: Path, ids: Iterable[str]) -> dict[str, float | None]:
    """Upstream validation score of each ended run among `ids`, larger is better; None for one that failed."""
    found = {}
    for id_ in ids:
        outcome = result(runs / id_)
        if outcome is not None:
            found[id_] = outcome["score"] if outcome["status"] == "done" else None
    return found


def prepare(job: Job, runs: Path, *, base: Path, machine: Mapping[str, Any], accept_code_change: bool = False) -> Path:
    """Makes the run's folder and `run.json`, or checks the one that is there.

    Raises:
        VitscaleError: the folder holds another configuration, or was half done by other code (exit 3).
    """
    folder = runs / job.id
    told = {
        **job.document(),
        "accept_code_change": accept_code_change,
        "machine": {**machine, **files_of(base, job.run)},
        "provenance": provenance.collect(),
    }
    if job.branch is not None and not checkpoint_steps(folder):
        _check_trunk(runs / job.branch.trunk, job, told, accept_code_change)
    if (folder / "run.json").is_file():
        _check_same(folder, told, accept_code_change)
    with disk_errors(runs):
        if job.role == "trunk" and (folder / "run.json").is_file():
            _go_further(job, folder, told)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "run.json", json.dumps(told, indent=2).encode())
    return folder


def _check_same(folder: Path, told: Mapping[str, Any], accept_code_change: bool) -> None:
    before = document(folder)
    if before["id"] != folder.name or _identity(before) != _identity(told):
        raise VitscaleError(
            f"{folder} does not hold the run that its name says",
            hint="move the folder away; the run is then trained again",
            exit_code=INVALID_STUDY,
        )
    if (
        checkpoint_steps(folder)
        and not accept_code_change
        and before["provenance"]["code_hash"] != told["provenance"]["code_hash"]
    ):
        raise VitscaleError(
            f"run {folder.name} was begun by other code (commit {before['provenance']['git_commit']})",
            hint="check that commit out, delete the folder, or go on with --accept-code-change",
            exit_code=INVALID_STUDY,
        )


def _check_trunk(trunk: Path, job: Job, told: Mapping[str, Any], accept_code_change: bool) -> None:
    if not checkpoint_steps(trunk) or accept_code_change:
        return
    of_trunk = document(trunk)["provenance"]
    if of_trunk["code_hash"] != told["provenance"]["code_hash"]:
        raise VitscaleError(
            f"run {job.id} would start from trunk {trunk.name}, which other code has trained "
            f"(commit {of_trunk['git_commit']})",
            hint="check that commit out, train it alone with --no-share, or go on with --accept-code-change",
            exit_code=INVALID_STUDY,
        )


def _go_further(trunk: Job, folder: Path, told: dict[str, Any]) -> None:
    """Keeps the checkpoints that branches of other studies, or of before, leave it at; an outcome gives way."""
    before = [(step, id_) for step, id_ in document(folder).get("branches", [])]
    told["branches"] = sorted({*before, *trunk.branches})
    outcome = result(folder)
    if outcome is not None and outcome["status"] == "done" and outcome["reached"] < trunk.steps:
        (folder / "result.json").rename(folder / f"result-{outcome['attempt']}.json")


def _identity(told: Mapping[str, Any]) -> tuple[Any, ...]:
    """What must agree: all but paths and spellings. Settings that came after the run was made have their defaults."""
    config = asdict(from_dict(json.loads(json.dumps(told["config"]))))
    for key in ("shards", "test", "size", "num_classes", "examples", "fraction", "subset_seed", "exclude", "max_bad"):
        config["data"].pop(key, None)
    for key in ("steps", "epochs", "examples", "validate_every", "probe", *OF_MASKED):
        config["recipe"].pop(key, None)
    for key in (*IN_ARCH, "checkpoint", "pre_logits"):
        config["model"].pop(key, None)
    if told["kind"] == "transfer":
        config["transfer"].pop("task")
        if told["parent"] is None:
            config = {"transfer": config["transfer"]}
    return config, json.loads(json.dumps(told["arch"])), told["kind"], told["parent"]


def record_failure(folder: Path, failure: Failure, reason: str, hint: str, code: int) -> None:
    """Publishes the outcome of a run that could not do so itself; one that says why it ended stays."""
    start = last_event(folder, "start") or {}
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    outcome = {
        "status": "failed",
        "failure": failure,
        "reason": reason,
        "hint": hint,
        "exit_code": code,
        "score": None,
        "rows": [],
        "attempt": start.get("attempt", 1),
        "started": start.get("time", now),
        "device": start.get("device"),
        "ended": now,
    }
    with suppress(VitscaleError):  # there is nothing to tell it from
        outcome["provenance"] = document(folder)["provenance"]
    with disk_errors(folder), locked(folder / ".outcome", wait=True):
        before = result(folder)
        if before is None or before.get("provisional"):
            write_whole(folder / "result.json", json.dumps(outcome, indent=1).encode())


def withdraw(folder: Path) -> None:
    """Takes back what a process of the run has said of its end that could not know better: nothing failed."""
    with suppress(OSError), locked(folder / ".outcome", wait=True):
        if (result(folder) or {}).get("provisional"):
            (folder / "result.json").unlink()


def set_aside(folder: Path) -> None:
    """Keeps a failed attempt's outcome under another name, so that the run can be tried again."""
    outcome = result(folder)
    if outcome is not None and outcome["status"] == "failed":
        with suppress(FileNotFoundError):  # another sweep has just done so
            (folder / "result.json").rename(folder / f"result-{outcome['attempt']}.json")
