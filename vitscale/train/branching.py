"""Where a run starts: at its own last checkpoint, else at one of the trunk that it shares with others."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

from vitscale import checkpoints, lease
from vitscale.errors import VitscaleError
from vitscale.train import checkpoint, keeping
from vitscale.train.checkpoint import Checkpoint, ForeignError, Progress
from vitscale.train.keeping import Keep
from vitscale.train.rundir import RunDir

DAMAGED = "damaged_checkpoint"
"""The event of one that was passed over."""
LOOKS = 3
"""At a trunk that trains on, a second apart."""


def start_of(rundir: RunDir) -> Path | None:
    """The checkpoint from which the run goes on; None where it starts with nothing."""
    own: dict[int, str] = {}
    of_trunk: dict[int, str] = {}
    start = keeping.newest(rundir.folder, with_best=_keeps_best(rundir), passed_over=own.__setitem__)
    start = start or _branched_off(rundir, of_trunk)
    begins = checkpoint.step_of(start) if start else 0
    trunk = rundir.branch[0].id if rundir.branch else None
    for damaged, of in ((own, None), (of_trunk, trunk)):
        for step, reason in damaged.items():
            rundir.log(DAMAGED, {"step": step, "trunk": of, "begins": begins, "reason": reason})
    return start


def damaged_at_start(rundir: RunDir) -> frozenset[int]:
    """The checkpoints that this attempt could not read, as `start_of` has told."""
    events = rundir.events()
    begun = max((at for at, event in enumerate(events) if event["event"] == "start"), default=0)
    damaged = (event for event in events[begun:] if event["event"] == DAMAGED)
    return frozenset(event["step"] for event in damaged if not event["trunk"])


def _branched_off(rundir: RunDir, damaged: dict[int, str]) -> Path | None:
    """The trunk's last checkpoint that this run passes too, made its own: the trunk's may go.

    `damaged`: takes those that cannot be used, by their steps, and why.
    """
    if rundir.branch is None:
        return None
    trunk, leaves_at = rundir.branch
    adopted: Path | None = None
    own = checkpoints.steps(rundir.folder)  # damaged, else they would be gone on from
    for looks_left in reversed(range(LOOKS)):
        damaged.clear()
        adopted = _adopted(rundir, damaged)
        exact = adopted is not None and checkpoint.step_of(adopted) == leaves_at
        if exact or not looks_left or lease.holder(trunk.folder) is None:
            break
        # Who trains it may just have told that checkpoint its score, and let go of the best one before it.
        if adopted is not None:
            keeping.prune(adopted.parent, own)
        time.sleep(1.0)
    if adopted is not None:
        rundir.log("branch", {"trunk": trunk.id, "step": checkpoint.step_of(adopted)})
    return adopted


def _adopted(rundir: RunDir, damaged: dict[int, str]) -> Path | None:
    """One look at what the trunk has."""
    assert rundir.branch is not None
    trunk, leaves_at = rundir.branch
    found = keeping.whole(trunk.folder, leaves_at, with_best=_keeps_best(rundir), passed_over=damaged.__setitem__)
    for start in found:
        try:
            # First, as the best alone would do as a start, too, should the process end in between.
            marked = Keep(every=rundir.machine.get("keep_every")).marks(start.progress.step)
            counted = _counted_from_here(start.progress)
            adopted = checkpoint.adopt(start, rundir.folder, counted, milestone=marked)
            _adopt_best(start, rundir)
        except FileNotFoundError:  # the trunk trains on, and has let go of it meanwhile
            shutil.rmtree(checkpoint.folder_of(rundir.folder, start.progress.step), ignore_errors=True)
            continue
        return adopted
    return None


def _keeps_best(rundir: RunDir) -> bool:
    return rundir.run.recipe.keep == "best"


def _counted_from_here(progress: Progress) -> Progress:
    """What the trunk took is in its own result."""
    return replace(progress, branched_at=progress.step, device_seconds=0.0, flops_lost=0.0, flops_eval=0.0)


def _adopt_best(start: Checkpoint, rundir: RunDir) -> None:
    """The best checkpoint before, where the run keeps that: nothing after it may be better.

    Raises:
        FileNotFoundError: the trunk has let go of it meanwhile.
    """
    best = start.progress.best_step
    if best is None or best == start.progress.step or not _keeps_best(rundir):
        return
    folder = checkpoint.folder_of(start.folder.parent.parent, best)
    try:
        found = checkpoint.load(folder, verify=False)
    except ForeignError:
        raise
    except VitscaleError as error:  # it was whole a moment ago, and its files go one after another
        raise FileNotFoundError(f"{folder} is gone: {error.problems[0].message}") from None
    checkpoint.adopt(found, rundir.folder, _counted_from_here(found.progress))
