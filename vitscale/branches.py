"""Branches that are asked of a trunk beside those of its `run.json`: of a study that was extended meanwhile, and those
that will be there if [select] chooses this trunk's settings.

`branches/<step>-<run id>` in the trunk's folder, or `<step>-select-<trial's id>-<study>`; who trains it looks at both.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

FOLDER = "branches"
OF_SELECT = "select-"


def ask(trunk: Path, step: int, run_id: str, *, by: Path | None = None) -> None:
    """Asks for a checkpoint of that step, from which the run will start; `by`: the study's file."""
    with suppress(FileExistsError):
        (trunk / FOLDER).mkdir()
    place = trunk / FOLDER / f"{step}-{run_id}"
    place.write_text("" if by is None else str(by.resolve()))


def is_dropped(trunk: Path, step: int, run_id: str) -> bool:
    """Whether [select] will never choose what was asked for, as the study that asked has been removed, or renamed."""
    if not run_id.startswith(OF_SELECT):
        return False
    with suppress(OSError, UnicodeDecodeError, ValueError):
        said = (trunk / FOLDER / f"{step}-{run_id}").read_text()
        study = Path(said)
        # What is missing here may be there on another host, but for what lies on the same disk as the runs.
        return bool(said) and not study.exists() and study.parent.stat().st_dev == trunk.stat().st_dev
    return False


def asked(trunk: Path) -> frozenset[tuple[int, str]]:
    """(step, run id) of all that were asked for."""
    found = set()
    with suppress(OSError):  # mostly there is no such folder
        for path in (trunk / FOLDER).iterdir():
            step, _, run_id = path.name.partition("-")
            if step.isdecimal():  # whatever else a system leaves in folders
                found.add((int(step), run_id))
    return frozenset(found)
