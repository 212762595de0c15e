"""What a run's attempts have computed and taken, by the lines of its `events.jsonl`.

A worker that is killed cannot say it, and a transfer has no checkpoint that would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Spent:
    """To the last line; a training logs every five seconds."""

    steps: int
    """Optimizer steps of all its trainings."""
    seconds: float
    """Device-seconds of these, by clocks that nobody sets."""
    flops_eval: float
    """Of their evaluations that came to an end."""


def attempts(events: Iterable[Event]) -> list[list[Event]]:
    """The lines of each attempt, from its `start` on."""
    found: list[list[Event]] = []
    for event in events:
        if event["event"] == "start":
            found.append([])
        if found:
            found[-1].append(event)
    return found


def of_trainings(attempt: Iterable[Event]) -> Spent:
    """Of an attempt at one training after another, each of which begins at step 0."""
    steps, seconds, flops_eval = 0, 0.0, 0.0
    last: Event = {}
    for event in attempt:
        if event["event"] == "engine":
            steps, seconds, last = steps + last.get("step", 0), seconds + last.get("device_seconds", 0.0), {}
        elif event["event"] in ("step", "diverged"):  # which says how far it came, as not every step is logged
            last = {**last, **event}
        elif event["event"] == "scored":
            flops_eval += event["flops_eval"]
    return Spent(steps + last.get("step", 0), seconds + last.get("device_seconds", 0.0), flops_eval)


@dataclass(frozen=True, slots=True)
class Trained:
    """Of a pre-training, over all of its attempts."""

    steps: int
    """That it has come to, those of its trunk left out."""
    reached: int
    """The step that its newest attempt came to, or began at."""
    lost: int
    """Steps computed once more."""
    flops_eval: float
    device_seconds: float

    def as_saved(self, step: int | None) -> Trained:
        """The same, where a checkpoint says that it came to this step."""
        further = max((step or 0) - self.reached, 0)
        return replace(self, steps=self.steps + further, reached=self.reached + further)


def of_pretraining(attempts: Iterable[Iterable[Event]]) -> Trained:
    """Each line says what all attempts before it have taken."""
    reached = first = lost = 0
    flops_eval = seconds = 0.0
    for event in (event for attempt in attempts for event in attempt):
        if event["event"] == "branch":
            first = int(event["step"])
            reached = max(reached, first)  # a second time, where it has lost its own checkpoints
        elif event["event"] == "lost":
            lost += int(event["steps"])
            reached -= int(event["steps"])
        elif event["event"] in ("step", "validate", "probe", "skipped"):
            reached = int(event["step"])
        flops_eval = max(flops_eval, event.get("flops_eval", 0.0))
        seconds = max(seconds, event.get("device_seconds", 0.0))
    return Trained(max(reached - first, 0), reached, lost, flops_eval, seconds)
