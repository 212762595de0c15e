"""Branches that are asked of a trunk beside those of its `run.json`: of a study that was extended meanwhile, and those
that will be there if [select] chooses this trunk's settings.

`branches/<step>-<run id>` in the trunk's folder, or `<step>-select-<trial's id>-<study>`; who trains it looks at both.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

FOLDER = "branches"


def ask(trunk: Path, step: int, run_id: str) -> None:
    """Asks for a checkpoint of that step, from which the run will start."""
    with suppress(FileExistsError):
        (trunk / FOLDER).mkdir()
    (trunk / FOLDER / f"{step}-{run_id}").touch()


def asked(trunk: Path) -> frozenset[tuple[int, str]]:
    """(step, run id) of all that were asked for."""
    found = set()
    with suppress(OSError):  # mostly there is no such folder
        for path in (trunk / FOLDER).iterdir():
            step, _, run_id = path.name.partition("-")
            if step.isdecimal():  # whatever else a system leaves in folders
                found.add((int(step), run_id))
    return frozenset(found)
