"""Checkpoints that nothing needs any more: of finished runs all but the one that is transferred, of transfers all.

A trunk keeps those from which runs that are not done will start, and the one that a longer run could start from.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitscale import checkpoints
from vitscale.branches import asked, is_dropped
from vitscale.checkpoints import is_milestone, is_own
from vitscale.errors import VitscaleError
from vitscale.files import disk_errors
from vitscale.launch import folders


@dataclass(frozen=True, slots=True)
class Surplus:
    """A checkpoint folder, and why nothing needs it."""

    folder: Path
    bytes: int
    why: str


def surplus(runs: Path, *, milestones: bool = False) -> list[Surplus]:
    """What can be freed of all runs in a folder, run by run; with `milestones` also what `--keep-every` has kept.

    Runs that are stopped, running, failed or refused keep everything.
    """
    found = list(_unneeded(runs, milestones))
    freed = _freed([folder for folder, _ in found])
    return [Surplus(folder, freed[folder], why) for folder, why in found]


def _unneeded(runs: Path, milestones: bool) -> Iterator[tuple[Path, str]]:
    """(folder of a checkpoint, why nothing needs it)"""
    for run in sorted(path.parent for path in runs.glob("*/run.json")):
        try:
            outcome, told = folders.result(run), folders.document(run)
        except VitscaleError:
            continue
        if folders.check(run) is not None:  # it is not the run of its name
            continue
        transfer = told["kind"] == "transfer"  # which keeps none, unless it was killed as it removed them
        if outcome is None or outcome["status"] != "done" or folders.is_held(run):
            continue
        if not outcome.get("checkpoint") and not transfer:
            continue
        branches = {(step, id_) for step, id_ in [*told.get("branches", []), *asked(run)]}
        starts = {outcome["checkpoint"], *(_before(run, step) for step in _awaited(run, branches))} - {None}
        kept = starts | {name for start in starts if branches for name in _best(run / "checkpoints" / start)}
        every = told["machine"].get("keep_every")
        for folder in sorted(path for path in (run / "checkpoints").glob("*") if path.is_dir()):
            milestone = is_milestone(folder) or bool(every and _step(folder) % every == 0)
            stays = milestone and not (milestones or transfer)
            if is_own(folder.name) and folder.name not in kept and not stays:
                what = f"run {run.name} is done and kept {outcome['checkpoint']}"
                yield folder, f"{run.name} is a transfer that is done" if transfer else what


def _awaited(trunk: Path, branches: Collection[tuple[int, str]]) -> list[int]:
    """Steps at which runs will leave it that are not done."""
    runs = trunk.parent
    return [step for step, id_ in branches if not (is_dropped(trunk, step, id_) or _is_done(runs / id_))]


def _before(trunk: Path, step: int) -> str | None:
    """The name of the checkpoint from which a run starts that leaves a finished trunk there."""
    at = max((saved for saved in checkpoints.steps(trunk) if saved <= step), default=None)
    return None if at is None else f"step-{at:08d}"


def _best(checkpoint: Path) -> list[str]:
    """The name of the best checkpoint until then, from which a longer run goes on as well."""
    try:
        best = json.loads((checkpoint / "state.json").read_text())["progress"]["best_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [] if best is None else [f"step-{best:08d}"]


def _freed(folders: Sequence[Path]) -> dict[Path, int]:
    """Bytes that each gives back. Branches have links to their trunk's files: these are freed once, if all links go."""
    files = {folder: [path.stat() for path in folder.rglob("*") if path.is_file()] for folder in folders}
    links = Counter((stat.st_dev, stat.st_ino) for stats in files.values() for stat in stats)
    freed = dict.fromkeys(folders, 0)
    for folder, stats in files.items():
        for stat in stats:
            if links.pop((stat.st_dev, stat.st_ino), 0) == stat.st_nlink:
                freed[folder] += stat.st_size
    return freed


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


def _step(folder: Path) -> int:
    """What is no whole checkpoint is no milestone either."""
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdecimal() else 1
