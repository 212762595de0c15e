"""The report of a study: its figures as files, its numbers as CSV, and one HTML page that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

import matplotlib.pyplot as plt
import pandas as pd

from vitscale.analysis.curves import Curves, counted, curves, of_plan, summary
from vitscale.report.figures import FIGURES, save
from vitscale.report.lines import GREY, INK, KNOWN
from vitscale.report.notes import Note, notes, plan_notes
from vitscale.report.table import table
from vitscale.results.store import Held

TITLES = {
    "accuracy_by_set_size": "Accuracy against pre-training-set size",
    "accuracy_by_flops": "Accuracy against training compute",
    "upstream_vs_downstream": "Upstream against downstream",
}
NOTHING = {
    "accuracy_by_set_size": "no finished cell",
    "accuracy_by_flops": "no set size was trained at two budgets",
    "upstream_vs_downstream": "no cell has both an upstream and a downstream accuracy",
}
# What the page's own colours replace, so that a figure can be read on dark paper.
COLORS = {
    **{INK: "ink", "#404040": "ink", GREY: "soft", "#8c8c8c": "soft", "#e2e2e2": "rule", "#ffffff": "paper"},
    **{KNOWN[family][0]: family for family in ("vit", "hybrid", "resnet")},
}


@dataclass(frozen=True, slots=True)
class Report:
    page: Path
    figures: tuple[Path, ...]
    notes: tuple[Note, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write(everything: pd.DataFrame, out: Path, title: str, plan: Held | None = None) -> Report:
    """Draw what `everything` (as `store.read` gives it) holds of the runs in `plan` into `out`, over an earlier report.

    Raises:
        VitscaleError: two runs claim one point (exit 5); nothing is written then.
    """
    frame = of_plan(everything, plan)
    found = curves(frame)
    out.mkdir(parents=True, exist_ok=True)
    remarks = [*plan_notes(everything, plan), *notes(frame, found)]
    drawn: dict[str, list[Path]] = {}
    for name, draw in FIGURES.items():
        figure = draw(found)
        if figure is None:
            remarks.append(Note(f"Not drawn: {TITLES[name].lower()} ({NOTHING[name]})."))
            _forget(out, name)
            continue
        drawn[name] = save(figure, out, name)
        plt.close(figure)
    header, rows = table(found)
    summary(frame).to_csv(out / "table.csv", index=False)
    pictures = {name: (out / f"{name}.svg").read_text("utf-8") for name in drawn}
    page = out / "report.html"
    page.write_text(html(title, facts(frame, found), remarks, pictures, header, rows), "utf-8")
    files = tuple(path for paths in drawn.values() for path in paths)
    return Report(page, files, tuple(remarks), tuple(header), tuple(map(tuple, rows)))


def facts(frame: pd.DataFrame, found: Curves) -> str:
    """One line: how much was run, where, by which code."""
    runs = counted(frame).drop_duplicates("run_id")
    runs = runs[runs["attempt"] != 0]  # never tried
    hours = runs["device_seconds"].sum() / 3600
    devices = ", ".join(sorted(set(runs["device"].dropna().astype(str))))
    commits = ", ".join(sorted({str(commit)[:10] for commit in found.rows["git_commit"].dropna()}))
    parts = [f"{len(runs):,} runs", f"{len(frame):,} rows"]
    parts += [f"{hours:.1f} device-hours" + (f" on {devices}" if devices else "")] if hours else []
    return ", ".join(parts) + (f"; code at {commits}" if commits else "") + "."


def html(
    title: str,
    about: str,
    remarks: Sequence[Note],
    pictures: dict[str, str],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> str:
    """The page. All text is escaped; `pictures` are SVG documents by figure name."""
    template = Template((Path(__file__).parent / "page.html").read_text("utf-8"))
    figures = "\n".join(
        f"<h2>{escape(TITLES[name])}</h2>\n<figure>{inline(svg, TITLES[name], name)}</figure>"
        for name, svg in pictures.items()
    )
    return template.substitute(
        title=escape(title), facts=escape(about), notes=_box(remarks), figures=figures, table=_table(header, rows)
    )


def inline(svg: str, label: str, name: str) -> str:
    """A matplotlib SVG for use inside a page: ink in the page's colours, ids of its own, transparent paper."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r'<g id="patch_1">.*?</g>\s*', "", body, count=1, flags=re.DOTALL)  # the figure's white ground
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for color, variable in COLORS.items():
        body = re.sub(rf"((?:fill|stroke): ){color}\b", rf"\g<1>var(--{variable})", body, flags=re.IGNORECASE)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    return body.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def _box(remarks: Sequence[Note]) -> str:
    if not remarks:
        return '<section class="notes none"><h2>Nothing to hold back</h2>No run failed, no cell is missing.</section>'
    items = []
    for note in remarks:
        details = "".join(f"<li>{escape(detail)}</li>" for detail in note.details)
        text = escape(note.text)
        items.append(
            f"<li><details><summary>{text}</summary><ul>{details}</ul></details></li>"
            if details
            else f"<li>{text}</li>"
        )
    return f'<section class="notes"><h2>Before you believe it</h2><ul>{"".join(items)}</ul></section>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _forget(out: Path, name: str) -> None:
    """A figure of an earlier report that these rows do not support any more."""
    for path in out.glob(f"{name}.*"):
        path.unlink()
