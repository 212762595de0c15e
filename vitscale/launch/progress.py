"""Jobs, outcomes and progress in the words of one line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from vitscale import checkpoints
from vitscale.config import PROBE_SHOTS, Transfer
from vitscale.launch import eventlog
from vitscale.study.describe import variant, with_settings
from vitscale.study.job import Job, trainings
from vitscale.study.sharing import DURATIONS

MEASURED = {"accuracy": "", "patch_accuracy": " patches"}
"""Metrics that are shares, and how they are told."""


def title(job: Job) -> str:
    """A job in a few words."""
    run, name = job.run, "-" if job.to_select else job.id
    if job.kind == "import":
        return f"{job.id} {run.model.name} from {run.model.checkpoint}"
    if run.transfer is None:
        settings = "to select" if job.to_select else f"lr {run.recipe.lr:g}"
        what = with_settings(f"{name} {job.label}", job)
        what += f" on {job.examples:,} images, seed {run.seed}, {settings}"
        if job.role == "trunk":
            return f"{what}, trunk of longer runs to step {job.steps:,}"
        varies = any(key in DURATIONS for key in job.varied)
        return f"{what}, {job.examples_seen:,} images seen" if varies else what
    origin = {
        "pretrained": f"of {job.label} to select" if job.to_select else f"of {job.parent}",
        "untrained": f"of {run.model.name} untrained",
        "pixels": "of raw pixels",
    }
    what = f"{name} {run.transfer.protocol} {run.transfer.task} {origin[run.transfer.init]}"
    return ", ".join(filter(None, [what, variant(job)]))


def summary(outcome: dict[str, Any]) -> str:
    """Its measured accuracies in a few words."""
    values: dict[str, list[float]] = {}
    for row in outcome["rows"]:
        if row["metric"] in MEASURED:
            shots = f" {row['shots']}-shot" if row.get("shots") else ""
            values.setdefault(f"{row['task']}{shots}{MEASURED[row['metric']]}", []).append(row["value"])
    if not outcome["rows"]:
        return "imported"
    return ", ".join(f"{name} {sum(v) / len(v):.1%}" for name, v in values.items()) or "trained"


def failure_words(outcome: dict[str, Any]) -> str:
    """The kind of a failure, and what it said."""
    kind, reason = outcome.get("failure"), str(outcome["reason"])
    return reason if not kind or reason.startswith(kind) else f"{kind}: {reason}"


def stuck_words(number: int) -> str:
    """Of jobs that wait for one which has failed, or is refused."""
    return f"{number} cannot begin"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, rounded as one would say them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def clock(seconds: float) -> str:
    """Hours, of which there may be more than a day's, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest:02}"


QUIET = 30.0
"""Seconds without a sign of life that are worth a word."""


def newest(folder: Path, job: Job | None = None) -> dict[str, Any] | None:
    """The last line of numbers of a running attempt; of a fine-tuning over all its trainings."""
    transfer = job.run.transfer if job else None
    steps = eventlog.newest_steps(folder, None if transfer else 1)
    return over_all(steps, transfer) if steps and transfer else next(iter(steps), None)


def over_all(steps: Sequence[dict[str, Any]], transfer: Transfer) -> dict[str, Any]:
    """The newest of these lines, the last first, with the steps and time of all trainings: of rates and repetitions."""
    event = steps[0]
    each = event["steps"]
    total = each * trainings(transfer)
    done = (event.get("training", 1) - 1) * each + event["step"]
    # The first step of a training takes longer; a transfer takes one device.
    spans = [(new, old) for new, old in pairwise(steps) if new["step"] > old["step"]]
    seconds = sum(new["device_seconds"] - old["device_seconds"] for new, old in spans)
    behind = sum(new["step"] - old["step"] for new, old in spans)
    return {
        **event,
        "step": done,
        "steps": total,
        "seconds_left": (total - done) * seconds / behind if behind else None,
    }


def progress(folder: Path, job: Job | None = None) -> str:
    """How far a running one is, in one line; empty before its first step."""
    event = newest(folder, job)
    if event is None:
        return ""
    silent = eventlog.silent_seconds(folder)
    return _and_damage(progress_words(event, silent, eventlog.last_event(folder, "probe")), folder)


def goes_on(folder: Path, job: Job) -> str:
    """Where a run that nobody is at work on goes on from, and how long it takes from there; empty where none was.

    What it had logged behind its last checkpoint is lost. Of a trunk more may be needed than it was told.
    """
    if eventlog.last_event(folder) is None:
        return ""
    rate = eventlog.last_rate(folder)

    def left(images: float) -> str:
        return f", {clock(images / rate)} left" if rate else ""

    step = checkpoints.last(folder)
    if step is None:
        step = job.branch.step if job.branch else 0
    images = max(job.last_step - step, 0) * (job.run.transfer or job.run.recipe).batch_size
    where = f"goes on from step {step:,}/{max(job.last_step, step):,}" if step else "begins again"
    return _and_damage(where + left(images), folder)


def passed_over(folder: Path) -> str:
    """Which checkpoints the newest attempt could not use, in words; empty where it used the last one."""
    damaged = eventlog.of_attempt(folder, "damaged_checkpoint")
    if not damaged:
        return ""
    trunks = sorted({event.get("trunk") or "" for event in damaged})
    words = [_damaged([each for each in damaged if (each.get("trunk") or "") == trunk], trunk) for trunk in trunks]
    begins = damaged[0].get("begins")  # which events of before do not have
    again = "passed over" if begins is None else f"trained again from step {begins}"
    return f"{', '.join(words)} damaged: {again}"


def _damaged(events: Sequence[dict[str, Any]], trunk: str) -> str:
    steps, of = ", ".join(str(event["step"]) for event in events), f" of trunk {trunk}" if trunk else ""
    return f"checkpoint {steps}{of} was" if len(events) == 1 else f"checkpoints {steps}{of} were"


def _and_damage(words: str, folder: Path) -> str:
    return "; ".join(filter(None, [words, passed_over(folder)]))


def progress_words(event: dict[str, Any], silent: float | None = None, probe: dict[str, Any] | None = None) -> str:
    """A step event as one log line; `silent`: seconds since the run's last sign of life; `probe`: its last probe."""
    left = "" if event["seconds_left"] is None else f", {clock(event['seconds_left'])} left"
    loss = "not finite" if event["loss"] is None else f"{event['loss']:.3f}"
    mfu = "" if event.get("mfu") is None else f", MFU {event['mfu']:.1%}"
    quiet = f", last sign of life {silent:,.0f} s ago" if silent is not None and silent > QUIET else ""
    shares = probe["accuracy"].items() if probe else ()
    probed = "".join(f", {task} {PROBE_SHOTS}-shot {share:.1%}" for task, share in shares)
    return (
        f"step {event['step']:,}/{event['steps']:,}, loss {loss}, lr {event['lr']:.2g}, "
        f"{event['images_per_second']:,.0f} images/s{mfu}{probed}{left}{quiet}"
    )


def event_words(event: dict[str, Any]) -> str:
    """A line of `events.jsonl` as one of a log for people."""
    facts = {key: value for key, value in event.items() if key not in ("event", "time")}
    match event["event"]:
        case "step":
            return progress_words(event)
        case "start" if not event.get("began", True):
            return f"attempt {event['attempt']} ended before it began"
        case "start":
            return f"attempt {event['attempt']} begins on {event['device']}"
        case "validate":
            (score,) = (value for key, value in facts.items() if key not in ("step", "device_seconds", "flops_eval"))
            return f"validation at step {event['step']}: {score:.4f}"
        case "failed":
            return f"failed: {failure_words(event)}"
        case "engine":
            extras = [name.replace("_", " ") for name in ("activation_checkpointing", "offload") if event[name]]
            sizes = f"micro-batch {event['micro_batch']}, ZeRO stage {event['zero_stage']}"
            return f"engine: {', '.join([sizes, *extras, event['how']])}"
    told = ", ".join(f"{key} {_plain(value)}" for key, value in facts.items())
    return event["event"].replace("_", " ") + (f": {told}" if told else "")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {_plain(each)}" for key, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
