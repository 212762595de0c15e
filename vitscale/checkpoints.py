"""What a run has saved, by name: for whoever launches it, too, and without torch."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

SCORED = "scored.json"
"""Beside the checkpoints of a fine-tuning: what is known of its trainings that ended."""


def holds_work(folder: Path) -> bool:
    """Whether a run that is not done has anything that it goes on from."""
    return bool(steps(folder)) or (folder / "checkpoints" / SCORED).exists()


def steps(folder: Path) -> list[int]:
    """The steps of which a run has checkpoints."""
    found = [path.name.removeprefix("step-") for path in (folder / "checkpoints").glob("step-*")]
    return [int(name) for name in found if name.isdecimal()]


def last(folder: Path) -> int | None:
    """The step of the checkpoint that a run wrote last, or has latest; None without any.

    Later ones are there where it went back to before a damaged one. They are not gone on from once it has written
    others: what it computed meanwhile would count as lost twice.
    """
    there = steps(folder)
    with suppress(OSError, ValueError):
        latest = int((folder / "checkpoints" / "latest").read_text().removeprefix("step-"))
        if latest in there:
            return latest
    return max(there, default=None)


def way_on(folder: Path) -> str:
    """What a run does when it is started again, in words."""
    step = last(folder)
    return "begins again" if step is None else f"goes on from step {step:,}"


def branched_at(folder: Path) -> int | None:
    """The step of the trunk's checkpoint that a run has begun with, 0 without a trunk; None where it has none of its
    own."""
    for step in sorted(steps(folder), reverse=True):
        with suppress(OSError, ValueError, KeyError, TypeError):  # damaged: the one before is gone on from
            state = json.loads((folder / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())
            return int(state["progress"].get("branched_at", 0))
    return None


def is_due(folder: Path, step: int) -> bool:
    """Whether that checkpoint has yet to be told what the validation of its step said."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        state = json.loads((folder / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())
        return state["progress"].get("validation_due") is True
    return False


def is_milestone(checkpoint: Path) -> bool:
    """Whether a whole checkpoint is kept for good, as its own state says: later commands may have other options."""
    state = checkpoint / "state.json"
    with suppress(OSError, ValueError, AttributeError, RecursionError):  # damaged: it is kept for nothing
        return (
            checkpoint.name.startswith("step-")
            and state.is_file()
            and json.loads(state.read_text()).get("milestone") is True
        )
    return False


def is_own(name: str) -> bool:
    """Whether a folder among a run's checkpoints is one, or a beginning of one: others are a person's."""
    return re.fullmatch(r"step-\d+|\.step-\d+\..+", name) is not None


def names(folder: Path) -> frozenset[str]:
    """All that a run has saved; a few-shot transfer saves nothing."""
    return frozenset(str(path.relative_to(folder)) for path in folder.rglob("step-*"))
