"""The folder of a report: what of it is ours to write over."""

from __future__ import annotations

from pathlib import Path

from vitscale.errors import MISSING, VitscaleError
from vitscale.files import write_whole
from vitscale.report.figures import FIGURES
from vitscale.report.panels import FORMATS

PAGE, TABLE = "report.html", "table.csv"
FILES = (PAGE, TABLE, *(f"{name}.{kind}" for name in FIGURES for kind in FORMATS))
# The page's own first; the second is in pages that were written before there was a first.
MARKS = (b'<meta name="generator" content="vitscale', b'<script type="application/json" id="report">')
UNFINISHED = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="generator" content="vitscale">
<title>A report that was not finished</title>
<p>This report is being drawn, or was interrupted: <code>vitscale report</code> finishes it.</p>
</html>
"""


def refuse_others(out: Path) -> None:
    """A folder that somebody named may hold a table or figure of theirs, under a name that a report writes.

    Raises:
        VitscaleError: it does, and no report of ours is there (exit 5).
    """
    there = [out / name for name in FILES if (out / name).exists()]
    if there and not _ours(out / PAGE):
        theirs = next((path for path in there if path.name == PAGE), there[0])
        raise VitscaleError(
            f"{theirs} is there, and no report of vitscale made it",
            hint="name an empty folder with --out",
            exit_code=MISSING,
        )


def begin(out: Path) -> None:
    """Mark the folder as ours before anything else is in it: a report that is interrupted can be drawn again."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / PAGE).exists():
        write_whole(out / PAGE, UNFINISHED.encode())


def forget(out: Path, name: str) -> None:
    """Remove a figure of an earlier report that the rows do not support any more."""
    for kind in FORMATS:
        (out / f"{name}.{kind}").unlink(missing_ok=True)


def _ours(page: Path) -> bool:
    if not page.is_file():
        return False
    written = page.read_bytes()
    return any(mark in written for mark in MARKS)
