"""Checkpoints that nothing needs any more: of finished runs all but the one that is transferred.

A trunk keeps all while runs that branch off it are not done, and then the one that a longer run could start from.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitscale.errors import VitscaleError
from vitscale.files import disk_errors
from vitscale.launch import folders


@dataclass(frozen=True, slots=True)
class Surplus:
    """A checkpoint folder, and why nothing needs it."""

    folder: Path
    bytes: int
    why: str


def surplus(runs: Path, *, milestones: bool = False) -> Iterator[Surplus]:
    """What can be freed of all runs in a folder, run by run; with `milestones` also what `--keep-every` has kept.

    Runs that are stopped, running, failed or cannot be read keep everything.
    """
    for run in sorted(path.parent for path in runs.glob("*/run.json")):
        try:
            outcome, told = folders.result(run), folders.document(run)
        except VitscaleError:
            continue
        if outcome is None or outcome["status"] != "done" or not outcome.get("checkpoint") or folders.is_held(run):
            continue
        if any(not _is_done(runs / id_) for _, id_ in told.get("branches", [])):
            continue
        every = None if milestones else told["machine"].get("keep_every")
        for folder in sorted(path for path in (run / "checkpoints").glob("*") if path.is_dir()):
            if folder.name != outcome["checkpoint"] and not (every and _step(folder) % every == 0):
                yield Surplus(folder, size(folder), f"run {run.name} is done and kept {outcome['checkpoint']}")


def _is_done(run: Path) -> bool:
    try:
        return (folders.result(run) or {}).get("status") == "done"
    except VitscaleError:
        return False


def free(found: Surplus) -> None:
    """Removes it; its name goes first, so that half of it is never taken for a checkpoint."""
    gone = found.folder.with_name(f".{found.folder.name}.freed")
    with disk_errors(found.folder):
        found.folder.rename(gone)
        shutil.rmtree(gone)


def size(folder: Path) -> int:
    """Bytes of the files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _step(folder: Path) -> int:
    """What is no whole checkpoint is no milestone either."""
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdecimal() else 1
