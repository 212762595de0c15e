"""The one exception that reaches a user: what went wrong, what to do, and the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitscale.failures import Failure

DONE = 0
BUG = 1
USAGE = 2
INVALID_STUDY = 3
RUN_FAILED = 4
MISSING = 5  # data, a device or a dependency
HELD = 75  # of a worker: another process has the run (EX_TEMPFAIL)
BEREFT = 76  # of a worker: another process of its run, or that one's host, went first
INTERRUPTED = 130  # a checkpoint was written first


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong and the way out; printed as two lines."""

    message: str
    hint: str

    def __str__(self) -> str:
        return f"error: {self.message}\nhint: {self.hint}"


class VitscaleError(Exception):
    """One or more problems that end the command with `exit_code`, without a traceback."""

    def __init__(self, message: str, *, hint: str, exit_code: int, failure: Failure | None = None) -> None:
        self.problems: tuple[Problem, ...] = (Problem(message, hint),)
        self.exit_code = exit_code
        self.failure = failure  # of a run that it ends; None: see where it was raised
        super().__init__(message)

    @classmethod
    def of(cls, problems: Sequence[Problem], *, exit_code: int) -> VitscaleError:
        """All mistakes of one input at once."""
        error = cls(problems[0].message, hint=problems[0].hint, exit_code=exit_code)
        error.problems = tuple(problems)
        return error

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)
