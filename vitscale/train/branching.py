"""Where a run starts: at its own last checkpoint, else at one of the trunk that it shares with others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vitscale.errors import VitscaleError
from vitscale.train import checkpoint
from vitscale.train.checkpoint import Checkpoint, Progress
from vitscale.train.rundir import RunDir


def start_of(rundir: RunDir) -> Path | None:
    """The checkpoint from which the run goes on; None where it starts with nothing."""
    return checkpoint.newest(rundir.folder) or _branched_off(rundir)


def _branched_off(rundir: RunDir) -> Path | None:
    """The trunk's last checkpoint that this run passes too, made its own: the trunk's may go."""
    if rundir.branch is None:
        return None
    trunk, leaves_at = rundir.branch
    folder = checkpoint.newest(trunk.folder, until=leaves_at)
    if folder is None:
        return None
    start = checkpoint.load(folder, verify=False)
    _adopt_best(start, rundir)  # first: it would do as a start, too, should the process end here
    adopted = checkpoint.adopt(start, rundir.folder, _counted_from_here(start.progress))
    rundir.log("branch", {"trunk": trunk.id, "step": start.progress.step})
    return adopted


def _counted_from_here(progress: Progress) -> Progress:
    """What the trunk took is in its own result."""
    return replace(progress, branched_at=progress.step, device_seconds=0.0, flops_lost=0.0, flops_eval=0.0)


def _adopt_best(start: Checkpoint, rundir: RunDir) -> None:
    """The best checkpoint before, where the run keeps that: nothing after it may be better."""
    best = start.progress.best_step
    if best in (None, start.progress.step) or rundir.run.recipe.keep != "best":
        return
    folder = start.folder.with_name(checkpoint.folder_of(rundir.folder, best).name)
    try:
        found = checkpoint.load(folder)
    except VitscaleError as error:
        raise VitscaleError(
            error.problems[0].message,
            hint=f"move {start.folder.parent.parent} away: the trunk is then trained again",
            exit_code=error.exit_code,
        ) from None
    checkpoint.adopt(found, rundir.folder, _counted_from_here(found.progress))
