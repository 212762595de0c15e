"""What a run's attempts have computed and taken, by the lines of its `events.jsonl`.

To the last one, and a training logs every five seconds: a worker that is killed cannot say more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Event = Mapping[str, Any]


def attempts(events: Iterable[Event]) -> list[list[Event]]:
    """The lines of each attempt, from its `start` on."""
    found: list[list[Event]] = []
    for event in events:
        if event["event"] == "start":
            found.append([])
        if found:
            found[-1].append(event)
    return found


@dataclass(frozen=True, slots=True)
class Trained:
    """Over all attempts at a run."""

    steps: int
    """That it has come to, those of its trunk left out."""
    reached: int
    """The step that its newest attempt came to, or began at; of a fine-tuning over all its trainings."""
    lost: int
    """Steps computed once more."""
    flops_eval: float
    device_seconds: float
    """By clocks that nobody sets."""

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


def of_trainings(attempts: Iterable[Sequence[Event]]) -> Trained:
    """Of one training after another: of rates and repetitions. A later attempt goes on from what was saved, if any."""
    reached: dict[int, int] = {}
    lost, flops_eval, seconds, earlier = 0, 0.0, 0.0, 0.0
    for attempt in attempts:
        number, saves = 0, any(event["event"] == "training" for event in attempt)
        for event in attempt:
            begins = None
            if event["event"] == "training":
                number, begins, earlier = int(event["number"]), int(event["step"]), 0.0
            elif event["event"] == "engine" and not saves:  # without checkpoints each began anew, its clock as well
                number, begins, earlier = number + 1, 0, seconds
            if begins is not None:
                again = [each for each in reached if each >= number]
                lost += sum(reached.pop(each) for each in again if each > number)
                lost += max(reached.get(number, 0) - begins, 0)
                reached[number] = begins
            elif event["event"] in ("step", "diverged"):  # which says how far it came, as not every step is logged
                reached[number] = int(event["step"])
            elif event["event"] == "scored":
                flops_eval += event["flops_eval"]
            seconds = max(seconds, earlier + event.get("device_seconds", 0.0))
    steps = sum(reached.values())
    return Trained(steps, steps, lost, flops_eval, seconds)
