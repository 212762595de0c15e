"""What a run failed of, and what a sweep does about it by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Failure(StrEnum):
    """The kinds that results and `vitscale status` tell apart."""

    OUT_OF_MEMORY = "out of memory"
    """Of a device, or an allocation of the machine's; the kernel's own killer is `KILLED`."""
    NOT_FINITE = "not finite"
    """The loss or the gradients."""
    BAD_DATA = "bad data"
    """Missing, damaged, or other than planned."""
    KILLED = "killed"
    """By a signal, or with its host or another process of its run."""
    TIME = "time"
    """Nothing moved for too long."""
    SETUP = "setup"
    """A device, a port, a checkpoint or a setting does not allow it."""
    CODE = "code"
    """An error of the program: the log has its traceback."""


FROM_CHECKPOINT = "from its last checkpoint"


@dataclass(frozen=True, slots=True)
class Policy:
    retries: int
    """How often sweeps try again, all together; what is final waits for --retry-failed, which counts anew."""
    change: str
    """What is different then."""

    def again(self, *, saved: bool) -> str:
        """The same, of a run that has `saved` nothing, too: a few-shot transfer has no checkpoints."""
        return self.change if saved else self.change.replace(FROM_CHECKPOINT, "from its beginning")


POLICIES = {
    Failure.OUT_OF_MEMORY: Policy(4, "with fewer images at once"),
    Failure.NOT_FINITE: Policy(0, ""),  # the same numbers come again
    Failure.BAD_DATA: Policy(0, ""),
    Failure.KILLED: Policy(2, FROM_CHECKPOINT),
    Failure.TIME: Policy(1, FROM_CHECKPOINT),
    Failure.SETUP: Policy(0, ""),
    Failure.CODE: Policy(0, ""),
}


def policy(outcome: Mapping[str, Any]) -> Policy:
    """What the outcome of a run is worth: nothing more is tried of one that is done, or would fail in the same way."""
    if outcome["status"] != "failed" or not outcome.get("retry", True):
        return Policy(0, "")
    return POLICIES[Failure(outcome.get("failure") or Failure.CODE)]
