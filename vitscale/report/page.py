"""The report of a study: its figures as files, its numbers as CSV, and one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from vitscale.analysis.curves import Curves, counted, curves, of_plan, one_version, summary
from vitscale.files import write_whole
from vitscale.report import paper
from vitscale.report.document import Table, html
from vitscale.report.doubts import doubts
from vitscale.report.drawing import drawing
from vitscale.report.figures import FIGURES, NOTHING, OF_FITS, title_of
from vitscale.report.fitted import fitted
from vitscale.report.folder import PAGE, TABLE, begin, forget
from vitscale.report.interactive import scripts
from vitscale.report.notes import Note, notes, plan_notes
from vitscale.report.records import Sources, records
from vitscale.report.table import run_table, table
from vitscale.results.store import Held
from vitscale.wording import count


@dataclass(frozen=True, slots=True)
class Report:
    page: Path
    figures: tuple[Path, ...]
    notes: tuple[Note, ...]
    cells: Table


def write(
    everything: pd.DataFrame,
    out: Path,
    title: str,
    plan: Held | None = None,
    sources: Sources | None = None,
    first: Sequence[Note] = (),
    *,
    overlay: bool = False,
    published: bool = False,
) -> Report:
    """Draw what `everything` (as `store.read` gives it) holds of the runs in `plan` into `out`, over an earlier report.

    `first`: what the honesty box begins with. `overlay`: the paper's own numbers on the study's tasks are drawn, too.
    `published`: a table that others printed has no cells to finish, and no baselines to run.

    Raises:
        VitscaleError: two runs claim one point, or a task has two versions (exit 5); nothing is written then.
    """
    frame = of_plan(everything, plan)
    found = curves(frame)
    one_version(found)
    sources = sources or Sources()
    if sources.planned is not None:
        found = replace(found, planned=sources.planned)
    if overlay:
        found = replace(found, theirs=paper.overlay(found.points))
        first = [*first, paper.overlay_note(found.theirs)]
    begin(out)
    with drawing(out) as figures:
        figures.begin({name: draw for name, draw in FIGURES.items() if name not in OF_FITS}, found)
        found = replace(found, fitted=fitted(found))  # which takes as long as some figures
        figures.begin({name: draw for name, draw in FIGURES.items() if name in OF_FITS}, found)
        remarks = [
            *first,
            *plan_notes(everything, plan),
            *([] if published else notes(frame, found, plan)),
            *doubts(found),
        ]
        write_whole(out / TABLE, summary(frame).to_csv(index=False).encode())
        told = records(found, sources)
        cells, runs = Table(*table(found)), Table(*run_table(told))
        scripts()  # which takes as long as a figure the first time
        files = figures.wait()
    drawn = {name: files[name] for name in FIGURES if files[name]}
    for name in FIGURES.keys() - drawn.keys():
        forget(out, name)
    missing = {} if published else {name: why for name, why in NOTHING.items() if name not in drawn}
    remarks += [Note(f"Not drawn: {title_of(name).lower()} ({why}).") for name, why in missing.items()]
    pictures = {name: (title_of(name), (out / f"{name}.svg").read_text("utf-8")) for name in drawn}
    page = out / PAGE
    write_whole(page, html(title, facts(frame, found), remarks, pictures, (cells, runs), told).encode())
    return Report(page, tuple(path for paths in drawn.values() for path in paths), tuple(remarks), cells)


def facts(frame: pd.DataFrame, found: Curves) -> str:
    """One line: how much was run, where, by which code."""
    runs = counted(frame).drop_duplicates("run_id")
    runs = runs[runs["attempt"] != 0]  # never tried
    hours = runs["device_seconds"].sum() / 3600
    devices = ", ".join(sorted(set(runs["device"].dropna().astype(str))))
    commits = ", ".join(sorted({str(commit)[:10] for commit in found.rows["git_commit"].dropna()}))
    parts = [count(len(runs), "run"), count(len(frame), "row")]
    parts += [f"{hours:.1f} device-hours" + (f" on {devices}" if devices else "")] if hours else []
    return ", ".join(parts) + (f"; code at {commits}" if commits else "") + "."
