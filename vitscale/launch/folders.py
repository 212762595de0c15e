"""Run folders from the outside: made before a worker starts, read while it runs and after it ended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from vitscale import branches, checkpoints, lease
from vitscale.errors import INVALID_STUDY, MISSING, VitscaleError
from vitscale.failures import Failure, policy
from vitscale.files import disk_errors, locked, write_whole
from vitscale.launch import code, eventlog
from vitscale.launch.unusable import Unusable, append_nothing, in_the_way, written_to
from vitscale.results import provenance
from vitscale.study import describe
from vitscale.study.job import Job, files_of

State = Literal["to do", "stopped", "running", "done", "failed", "refused"]


def result(folder: Path) -> dict[str, Any] | None:
    """The outcome of the newest attempt that ended; None where there is none. That of a damaged file is `refused`."""
    path = folder / "result.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        document["status"], document["rows"], document["attempt"]
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        if (wrong := in_the_way(folder)) is not None and folder.parent.is_dir():
            return _refused(wrong)
        raise VitscaleError(
            f"{folder.parent} is not a folder", hint="name a folder for the runs with --runs", exit_code=MISSING
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        return _refused(
            Unusable(
                f"{path} is damaged ({type(error).__name__}: {error})",
                hint="delete that file: the run goes on from its last checkpoint",
                exit_code=MISSING,
            )
        )
    return document


def _refused(error: Unusable) -> dict[str, Any]:
    """As an outcome."""
    (problem,) = error.problems
    said = {"reason": problem.message, "hint": problem.hint, "exit_code": error.exit_code}
    return {"status": "refused", **said, "score": None, "rows": [], "attempt": 0}


def document(folder: Path) -> dict[str, Any]:
    """`run.json`.

    Raises:
        Unusable: there is no run here (exit 5).
    """
    try:
        told: dict[str, Any] = json.loads((folder / "run.json").read_text())
        told["id"], told["kind"], told["config"], told["provenance"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from None
    return told


def _damaged(folder: Path, error: Exception) -> Unusable:
    return Unusable(
        f"{folder / 'run.json'} is missing or damaged ({type(error).__name__}: {error})",
        hint=f"move {folder} away: the run is then trained again",
        exit_code=MISSING,
    )


def check(folder: Path) -> Unusable | None:
    """What is wrong with `run.json`: damaged, or of another run than the folder's name says. None: nothing is.

    The name is worked out again from what the file says, once as long as the file stays the same: 0.15 ms.
    """
    path = folder / "run.json"
    try:
        stat = path.stat()
        return _checked(path, (stat.st_mtime_ns, stat.st_size, stat.st_ino))
    except OSError as error:
        return _damaged(folder, error)


@lru_cache(maxsize=2**16)
def _checked(path: Path, state: tuple[int, ...]) -> Unusable | None:
    """`state`: of the file, which is read again when it changes."""
    del state
    text = path.read_bytes()
    # What follows is of the machine and the code: a dirty diff may be a megabyte.
    of_run, comma, _ = text.partition(b',\n  "accept_code_change"')
    try:
        if not text.rstrip().endswith(b"}"):
            raise ValueError("cut off")
        told = json.loads(of_run + b"}" if comma else text)
        holds = told["id"] == path.parent.name and describe.is_called(told, path.parent.name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return _damaged(path.parent, error)
    return None if holds else _foreign(path.parent)


def _foreign(folder: Path) -> Unusable:
    return Unusable(
        f"{folder} does not hold the run that its name says",
        hint="move the folder away; the run is then trained again",
        exit_code=INVALID_STUDY,
    )


def put_aside(folder: Path) -> list[dict[str, Any]]:
    """The outcomes of attempts that were followed by others; what is damaged is left out."""
    found = []
    for path in folder.glob("result-*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            ended = json.loads(path.read_text())
            ended["status"], ended["rows"], ended["attempt"], ended["started"], ended["ended"]
            found.append(ended)
    return sorted(found, key=lambda ended: ended["attempt"])  # of which names have not the order from ten on


def is_held(folder: Path) -> bool:
    """Whether a worker may be working on this run now."""
    return lease.holder(folder) is not None


def outcome(folder: Path) -> dict[str, Any] | None:
    """As `result`; `refused`, with the reason, where the folder holds another run, or something is in its way."""
    found = result(folder)
    if found is not None and found["status"] == "refused":
        return found
    wrong = in_the_way(folder) if found is None else check(folder)
    return found if wrong is None else _refused(wrong)


def state(folder: Path) -> State:
    """Where a run stands."""
    return _state(folder, outcome(folder))


def _state(folder: Path, outcome: Mapping[str, Any] | None) -> State:
    if outcome is not None:
        found: State = outcome["status"]
        return found
    if is_held(folder):
        return "running"
    return "stopped" if (folder / "events.jsonl").is_file() else "to do"


def outcome_of(job: Job, runs: Path) -> dict[str, Any] | None:
    """A job's outcome; None where there is none yet, and for a trunk that must go further than it went."""
    return as_needed(job, runs / job.id, outcome(runs / job.id))


def as_needed(job: Job, folder: Path, found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Of a trunk's outcomes the first that came as far as this job: what others need of it is not this job's matter."""
    if job.role != "trunk" or (found or {}).get("status") == "refused":
        return found
    for each in (*put_aside(folder), *([found] if found else [])):
        if each["status"] == "done" and each.get("reached", 0) >= job.steps:
            return each
    return found if found is not None and found["status"] == "failed" else None


def state_of(job: Job, runs: Path) -> State:
    """Where a job stands."""
    folder, known = runs / job.id, outcome(runs / job.id)
    found = _state(folder, as_needed(job, folder, known))
    # Of a trunk that came to its end more may be needed since: nothing stopped it.
    return "to do" if found == "stopped" and (known or {}).get("status") == "done" else found


def goes_to(trunk: Path) -> int:
    """The last step that a trunk was told to train; 0: it was told nothing."""
    return int(document(trunk)["steps"]) if (trunk / "run.json").is_file() else 0


def scores(runs: Path, ids: Iterable[str]) -> dict[str, float | None]:
    """Upstream validation score of each run among `ids` that tells of its settings, larger is better; None of one that
    they made diverge. Whatever else failed has nothing to say of them: it is to be tried again."""
    ended = {id_: found for id_ in ids if (found := outcome(runs / id_)) is not None}
    scores = {id_: found["score"] for id_, found in ended.items() if found["status"] == "done"}
    return scores | {id_: None for id_, found in ended.items() if diverged(found)}


def diverged(outcome: Mapping[str, Any]) -> bool:
    """Whether a run failed of its own numbers, so that it would do so again."""
    return outcome["status"] == "failed" and outcome.get("failure") == Failure.NOT_FINITE


def prepare(
    job: Job,
    runs: Path,
    *,
    base: Path,
    machine: Mapping[str, Any],
    accept_code_change: bool = False,
    study: Path | None = None,
) -> Path:
    """Makes the run's folder and `run.json`, or checks the one that is there. `study`: the file that asks for it.

    Raises:
        Unusable: the folder holds another configuration, was half done by other code (exit 3), is damaged, has
            something in the way, or takes no files while the runs folder does (exit 5).
        VitscaleError: the disk is full, or the runs folder takes no files (exit 5).
    """
    folder = runs / job.id
    told = {
        **job.document(),
        "accept_code_change": accept_code_change,
        "machine": {**machine, **files_of(base, job.run)},
        "provenance": provenance.collect(),
    }
    if job.branch is not None and not checkpoints.steps(folder):
        _check_trunk(runs / job.branch.trunk, job, told, accept_code_change)
    if (wrong := in_the_way(folder)) is not None:
        raise wrong
    if (folder / "run.json").is_file():
        if (wrong := check(folder)) is not None:
            raise wrong
        if not accept_code_change:
            _check_code(folder, told)
    told = stamped(told, folder)
    with written_to(folder):
        append_nothing(folder)
        if job.role == "trunk" and (folder / "run.json").is_file():
            _go_further(job, folder, told)
        folder.mkdir(parents=True, exist_ok=True)
        for step, name in job.prospects_within:
            branches.ask(folder, step, name, by=study)
        write_whole(folder / "run.json", json.dumps(told, indent=2).encode())
    return folder


def stamped(told: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What `run.json` will say, with the code that has trained the run so far, or the trunk that it starts from."""
    saved, before, trunk = checkpoints.last(folder) or int(checkpoints.holds_work(folder)), None, None
    if saved:
        before = document(folder)
    elif (branch := told.get("branch")) and (folder.parent / branch["trunk"] / "run.json").is_file():
        place = folder.parent / branch["trunk"]
        trunk = document(place), checkpoints.last(place) or 0
    return {**told, **code.history(told["provenance"], before, saved, trunk)}


def _check_code(folder: Path, told: Mapping[str, Any]) -> None:
    before = document(folder)["provenance"]
    if checkpoints.holds_work(folder) and before["code_hash"] != told["provenance"]["code_hash"]:
        raise Unusable(
            f"run {folder.name} was begun by other code (commit {before['git_commit']})",
            hint="check that commit out, delete the folder, or go on with --accept-code-change",
            exit_code=INVALID_STUDY,
        )


def _check_trunk(trunk: Path, job: Job, told: Mapping[str, Any], accept_code_change: bool) -> None:
    if not checkpoints.steps(trunk):
        return
    if (wrong := check(trunk)) is not None:
        raise wrong
    if accept_code_change:
        return
    of_trunk = document(trunk)["provenance"]
    if of_trunk["code_hash"] != told["provenance"]["code_hash"]:
        raise Unusable(
            f"run {job.id} would start from trunk {trunk.name}, which other code has trained "
            f"(commit {of_trunk['git_commit']})",
            hint="check that commit out, train it alone with --no-share, or go on with --accept-code-change",
            exit_code=INVALID_STUDY,
        )


def _go_further(trunk: Job, folder: Path, told: dict[str, Any]) -> None:
    """Keeps the checkpoints that branches of other studies, or of before, leave it at; an outcome gives way."""
    before = [(step, id_) for step, id_ in document(folder).get("branches", [])]
    told["branches"] = sorted({*before, *trunk.branches})
    ended = result(folder)
    if ended is not None and ended["status"] == "done" and ended["reached"] < trunk.steps:
        (folder / "result.json").rename(folder / f"result-{ended['attempt']}.json")


def record_failure(folder: Path, failure: Failure, reason: str, hint: str, code: int) -> None:
    """Publishes the outcome of a run that could not do so itself; one that says why it ended stays."""
    start = eventlog.last_event(folder, "start") or {}
    before = max((each["attempt"] for each in put_aside(folder)), default=0)
    if start.get("attempt", 0) <= before:  # that attempt has its outcome: this one did not come to its start
        start = {"attempt": before + 1}
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    told = {
        "status": "failed",
        "failure": failure,
        "reason": reason,
        "hint": hint,
        "exit_code": code,
        "score": None,
        "rows": [],
        "attempt": start["attempt"],
        "started": start.get("time", now),
        "device": start.get("device"),
        "ended": now,
    }
    with suppress(VitscaleError):  # there is nothing to tell it from
        known = document(folder)
        told |= {"provenance": known["provenance"], "trained_by": known.get("trained_by", [])}
    with disk_errors(folder), locked(folder / ".outcome", wait=True):
        said = result(folder)
        if said is None or said.get("provisional"):
            write_whole(folder / "result.json", json.dumps(told, indent=1).encode())


def _count(folder: Path, ended: Mapping[str, Any]) -> None:
    """Notes the start of an attempt that ended before it began: the next takes its number from how many there were."""
    known = (eventlog.last_event(folder, "start") or {}).get("attempt", 0)
    for attempt in range(known + 1, ended["attempt"] + 1):
        told = {"event": "start", "time": ended.get("started"), "attempt": attempt, "device": None, "began": False}
        with (folder / "events.jsonl").open("a+b") as file:
            file.seek(max(file.tell() - 1, 0))
            cut_off = file.read() not in (b"", b"\n")
            file.write((b"\n" if cut_off else b"") + json.dumps(told).encode() + b"\n")


def has_begun(folder: Path) -> bool:
    """Whether the newest attempt came to its start."""
    return bool((eventlog.last_event(folder, "start") or {"began": False}).get("began", True))


def withdraw(folder: Path) -> None:
    """Takes back what a process of the run has said of its end that could not know better: nothing failed."""
    with suppress(OSError), locked(folder / ".outcome", wait=True):
        if (result(folder) or {}).get("provisional"):
            (folder / "result.json").unlink()


def set_aside(folder: Path, *, asked: bool = False) -> None:
    """Keeps a failed attempt's outcome under another name, so that the run can be tried again.

    `asked`: by a person, after which the tries of each kind of failure are counted anew.

    Raises:
        VitscaleError: as `written_to`.
    """
    ended = result(folder)
    if ended is not None and ended["status"] == "failed":
        place = folder / f"result-{ended['attempt']}.json"
        with written_to(folder):
            _count(folder, ended)
            if asked:
                write_whole(place, json.dumps({**ended, "asked": True}, indent=1).encode())
            with suppress(FileNotFoundError):  # another sweep has just done so
                (folder / "result.json").unlink() if asked else (folder / "result.json").rename(place)


def retried(folder: Path, failure: Failure) -> int:
    """How often the run was tried again after this kind of failure, by any sweep, since a person asked for it."""
    found: dict[int, Any] = {}
    for path in folder.glob("result-*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            ended = json.loads(path.read_text())
            found[ended["attempt"]] = ended
    asked = max((attempt for attempt, ended in found.items() if ended.get("asked")), default=0)
    return sum(ended.get("failure") == failure for attempt, ended in found.items() if attempt > asked)


def try_again(folder: Path) -> str | None:
    """Puts away a failure that is worth another try, and says it; None of any other outcome, or of none.

    Tries of sweeps on this machine and of Slurm's jobs count alike.
    """
    outcome = result(folder)
    if outcome is None or outcome["status"] != "failed":
        return None
    what = policy(outcome)
    tried = retried(folder, Failure(outcome.get("failure") or Failure.CODE))
    if tried >= what.retries:
        return None
    transfer = document(folder)["config"].get("transfer") or {}
    change = what.again(saved=transfer.get("protocol") != "fewshot")
    set_aside(folder)
    return f"{outcome['reason']}  (again {change}: {tried + 1} of {what.retries})"
