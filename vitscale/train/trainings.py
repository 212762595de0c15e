"""What a fine-tuning has behind it: the trainings that were scored, and the checkpoint of the one at work.

`checkpoints/` numbers the steps over all trainings of a transfer: those of the third of 500 steps are 1,001 to 1,500.
Beside them `scored.json` has what is known of those that ended, with a checksum. Once the transfer is done both go.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vitscale import checkpoints
from vitscale.checkpoints import SCORED
from vitscale.files import write_whole
from vitscale.train import checkpoint, keeping
from vitscale.train.branching import DAMAGED
from vitscale.train.checkpoint import SCHEMA, Checkpoint
from vitscale.train.rundir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A training that came to its end, and is not needed any more."""

    steps: int
    """That it took: fewer than planned where it diverged."""
    accuracy: float | None
    """On the dev split of a rate, on the test images of a repetition; None where it diverged."""
    images: int
    """That this was measured on."""

    @property
    def value(self) -> float:
        """What rates are compared by: one that diverged loses to every other."""
        return -1.0 if self.accuracy is None else self.accuracy


class Trainings:
    """Of one transfer, each of so many `steps`, in an order that never changes: rates, then repetitions."""

    def __init__(self, rundir: RunDir, steps: int) -> None:
        self.steps = steps
        self._rundir = rundir
        self.scored, self._why = self._read()
        self.damaged: frozenset[int] = frozenset()
        """Checkpoints that cannot be gone on from, by their steps over all trainings."""
        self._at = 0

    @property
    def before(self) -> int:
        """Steps of the trainings before the one at work, as planned."""
        return len(self.scored) * self.steps

    def next(self, train: Callable[[], Scored]) -> Scored:
        """The next one: as it is known, or as `train` finds it, which is then kept."""
        self._at += 1
        if self._at > len(self.scored):
            self._keep([*self.scored, train()])
        return self.scored[self._at - 1]

    def start(self) -> Checkpoint | None:
        """Where the one at work goes on from; None where it begins. What is damaged is told, and passed over.

        Raises:
            ForeignError: there is a checkpoint that does not belong here (exit 5).
        """
        folder, end = self._rundir.folder, self.before + self.steps
        checkpoint.put_back(folder / "checkpoints")
        until = min(checkpoints.last(folder) or 0, end)
        damaged: dict[int, str] = {}
        whole = keeping.whole(folder, until, after=self.before, passed_over=damaged.__setitem__)
        found = next(whole, None)
        begins = checkpoint.step_of(found.folder) if found else self.before
        # Of trainings whose rate was chosen by scores that are not known any more.
        lost = [step for step in checkpoints.steps(folder) if step > end]
        damaged |= dict.fromkeys(lost, f"what was scored before it is not known: {SCORED} {self._why}")
        if lost:
            print(f"{SCORED} {self._why}: the trainings behind it come again", flush=True)
        for step, reason in sorted(damaged.items()):
            self._rundir.log(DAMAGED, {"step": step, "trunk": None, "begins": begins, "reason": reason})
        if lost:
            keeping.prune(folder / "checkpoints", set(checkpoints.steps(folder)) - set(lost))
        self.damaged = frozenset(step for step in checkpoints.steps(folder) if step > begins)
        return found

    def _read(self) -> tuple[list[Scored], str]:
        """What is known; and where nothing is, why."""
        path = self._rundir.folder / "checkpoints" / SCORED
        try:
            state = json.loads(path.read_text())
            if state != checkpoint.sealed(state):
                raise ValueError("does not have its checksum")
            checkpoint.check_origin(state, path)
            return [Scored(**each) for each in state["scored"]], ""
        except FileNotFoundError:
            return [], "is missing"
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            return [], f"is damaged ({error})"

    def _keep(self, scored: list[Scored]) -> None:
        """Once they are on the disk."""
        state = {"schema": SCHEMA, "run": self._rundir.id, "scored": [asdict(each) for each in scored]}
        folder = self._rundir.folder / "checkpoints"
        self._rundir.check_held()
        folder.mkdir(exist_ok=True)  # of one that diverged before its first checkpoint
        write_whole(folder / SCORED, json.dumps(checkpoint.sealed(state), indent=2).encode())
        self.scored = scored


def discard(run: Path) -> None:
    """Removes all of this, of a transfer that is done; what else a person has put there stays."""
    folder = run / "checkpoints"
    with suppress(OSError):  # `vitscale clean` finds what stays
        keeping.prune(folder, ())
        for name in ("latest", SCORED):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
