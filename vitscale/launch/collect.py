"""From a run's outcome to the study's rows: what the worker measured, and what only the study knows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from vitscale import checkpoints
from vitscale.failures import Failure
from vitscale.files import disk_errors
from vitscale.launch import code, eventlog, folders
from vitscale.results import attempts, spent, store
from vitscale.study.job import Job


def collect(job: Job, runs: Path, results: Path, study: str) -> bool:
    """Writes the run's parts into `results/<study>`; False where the run has not ended.

    Also those of earlier attempts that nobody has recorded: a job of a cluster tries again by itself.
    """
    folder = runs / job.id
    outcome = folders.as_needed(job, folder, folders.result(folder))
    if job.kind == "import":
        return outcome is not None  # nothing was measured; its transfers are rows
    for earlier in folders.put_aside(folder):
        if outcome is not None and earlier["attempt"] >= outcome["attempt"]:
            continue  # of a trunk that somebody else has taken further
        if not _is_recorded(job, earlier, results / study):
            _write(job, earlier, folder, results / study)
    if outcome is None:
        return False
    _write(job, outcome, folder, results / study)
    return True


def _is_recorded(job: Job, ended: Mapping[str, Any], place: Path) -> bool:
    number = attempts.number_of(place, job.id, ended["attempt"], datetime.fromisoformat(ended["started"]))
    return number in attempts.recorded(place).get(job.id, ())


def _write(job: Job, outcome: dict[str, Any], folder: Path, place: Path) -> None:
    told = folders.document(folder)
    found = rows(job, outcome, told, place.name)
    if outcome["status"] == "failed":
        found = [{**row, **_spent(job, folder, outcome["attempt"])} for row in found]
    if job.run.transfer is not None and job.run.transfer.protocol == "finetune":
        found = [{**row, "tried": _rates_tried(folder)} for row in found]
    with disk_errors(place.parent):
        changes = store.write_changes(_source(outcome, told).get("git_diff"), place)
        before = [_kept(source, place) for source in code.earlier(outcome if outcome.get("provenance") else told)]
        found = [{**row, "git_diff": changes, "earlier_code": before or None} for row in found]
        store.write_part(found, place, run_id=job.id, attempt=outcome["attempt"], started=outcome["started"])


def _spent(job: Job, folder: Path, attempt: int) -> dict[str, Any]:
    """What a failed attempt and those before it have cost, as far as its log came to say so."""
    every = spent.attempts(eventlog.events(folder))
    begun = every[:attempt]
    per_step = float(job.flops_per_step)
    if job.run.transfer is None:
        # The newest checkpoint may lie behind the last line of who was killed.
        saved = checkpoints.last(folder) if len(every) == attempt else None
        trained = spent.of_pretraining(begun).as_saved(saved)
    else:
        trained = spent.of_trainings(begun)
    return {
        "flops_segment": trained.steps * per_step,
        "flops_lost": trained.lost * per_step,
        "flops_eval": trained.flops_eval,
        "device_seconds": trained.device_seconds,
        **(_as_far_as(job, trained.reached) if job.role == "trunk" else {}),
    }


def _source(outcome: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """The code of an attempt; run.json knows that of the newest one only."""
    found: dict[str, Any] = outcome.get("provenance") or told["provenance"]
    return found


def _kept(source: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """What a row says of code that had a part in its run; the changes are kept beside the parts."""
    told = {key: source[key] for key in ("git_commit", "git_dirty", "code_hash")}
    return {**told, "git_diff": store.write_changes(source.get("git_diff"), place)}


def _rates_tried(folder: Path) -> list[dict[str, Any]] | None:
    """The rates that a fine-tuning compared on its dev split; None where it had no choice."""
    event = eventlog.last_event(folder, "chose")
    return None if event is None else [{"transfer.lr": float(lr), "score": s} for lr, s in event["grid"].items()]


def collect_orphan(job: Job, origin: Job, outcome: dict[str, Any], results: Path, study: str) -> None:
    """A row for a job that cannot be because its folder is refused, or what it starts from is, or failed.

    A real attempt replaces it, and has its own row already where the folder was another one then.
    """
    if job.kind == "import" or any(attempts.recorded(results / study).get(job.id, ())):
        return
    names = {"trunk": "trunk", "import": "published checkpoint", "pretrain": "pre-training"}
    reason, refused = outcome["reason"], outcome["status"] == "refused"
    if origin is not job:
        which = f"its {names['trunk' if origin.role == 'trunk' else origin.kind]} {origin.id}"
        reason = f"{which} {'is refused' if refused else 'failed'}: {reason}"
    kind = Failure.SETUP if refused else outcome.get("failure")
    row = {**_of_job(job), **_failure(job, {"failure": kind, "reason": reason}), "study": study}
    with disk_errors(results):
        store.write_part([row], results / study, run_id=job.id, attempt=0)


def rows(job: Job, outcome: dict[str, Any], told: dict[str, Any], study: str) -> list[dict[str, Any]]:
    """One row a measured number; one row with the reason for a failure."""
    known = {**_of_job(job), **_of_attempt(outcome, told), "study": study}
    if "reached" in outcome:
        known |= _as_far_as(job, outcome["reached"])
    if outcome["status"] != "done":
        return [{**known, **_failure(job, outcome)}]
    tuning = known.pop("flops_tuning")
    found = []
    for row in outcome["rows"]:
        found.append({**known, "status": "done", **row, "flops_tuning": tuning + row.get("flops_tuning", 0)})
    return found


def _failure(job: Job, outcome: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": "failed",
        "failure": outcome.get("failure"),
        "reason": outcome["reason"],
        "task": job.task.name if job.task else None,
        "protocol": job.run.transfer.protocol if job.run.transfer else "pretrain",
        "value": None,
    }


def _of_job(job: Job) -> dict[str, Any]:
    pixels = job.run.transfer is not None and job.run.transfer.init == "pixels"
    pretrained = job.role != "baseline"
    data = job.run.data
    seed = job.run.seed
    columns: dict[str, Any] = {
        "run_id": job.id,
        "parent_id": job.parent,
        "role": job.role,
        "init": job.run.transfer.init if job.run.transfer else None,
        "family": "raw" if pixels else job.arch.family,
        "model": "pixels" if pixels else job.run.model.name,
        "resolution": (job.run.transfer.resolution if job.run.transfer else None) or data.resolution,
        "seed": seed,
        "lr": _rate(job),
        "settings": dict(job.varied),
        # A trunk is no point of a curve.
        "flops_standalone": None if job.checkpoint or job.role == "trunk" else float(job.pretrain_flops),
        "flops_tuning": float(job.flops_tuning),
    }
    if job.run.transfer is None or job.run.transfer.protocol == "fewshot":  # whose `lr` is that of the pre-training
        columns |= {"lr_at_edge": job.at_edge, "tried": list(job.tried) or None}
    if not pixels:
        params = job.params
        columns |= {
            "width": job.arch.feature_width,
            "depth": job.arch.depth,
            "patch": job.arch.ratio,
            "params_embedding": params.embedding,
            "params_blocks": params.blocks,
            "params_head": params.head,
            "params_total": params.total,
            "flops_per_example": 6.0 * job.macs,
        }
    if pretrained and job.checkpoint is None:
        columns |= {
            "dataset": job.dataset.name,
            "examples": job.examples,
            "excluded": job.dataset.excluded,
            "subset_seed": seed if data.subset_seed is None else data.subset_seed,
            "epochs": job.examples_seen / job.examples,
            "examples_seen": job.examples_seen,
        }
    return columns


def _rate(job: Job) -> float | None:
    """The one that a fine-tuning was given, else that of the pre-training; null of a choice that was not made yet."""
    transfer = job.run.transfer
    if transfer is not None and transfer.protocol == "finetune":
        return transfer.lr[0] if len(transfer.lr) == 1 else None
    return None if job.role == "baseline" or job.checkpoint else job.run.recipe.lr


def _as_far_as(trunk: Job, step: int) -> dict[str, Any]:
    """Of an attempt at a trunk: this study may need less of it than another one had it train, or more by now."""
    seen = step * trunk.run.recipe.batch_size
    return {"examples_seen": seen, "epochs": seen / trunk.examples}


def _of_attempt(outcome: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    source = _source(outcome, told)
    return {
        "attempt": outcome["attempt"],
        "host": outcome.get("host") or source.get("host"),
        "device": outcome.get("device"),
        "n_devices": outcome.get("n_devices"),
        "git_commit": source["git_commit"],
        "git_dirty": source["git_dirty"],
        "code_hash": source["code_hash"],
        "versions": source["versions"],
        "started": outcome["started"],
        "ended": outcome["ended"],
    }
