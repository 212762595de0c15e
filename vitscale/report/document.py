"""The HTML page, which opens from disk and needs nothing else. All text of a study is escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from vitscale.report.interactive import chart, loss_curve, scripts
from vitscale.report.lines import GREY, INK, KNOWN, OTHERS
from vitscale.report.notes import Note
from vitscale.report.table import Cell

# What the page's own colours replace, so that a figure can be read on dark paper.
COLORS = {
    **{INK: "ink", "#404040": "ink", GREY: "soft", "#8c8c8c": "soft", "#e2e2e2": "rule", "#ffffff": "paper"},
    **{KNOWN[family][0].lower(): family for family in ("vit", "hybrid", "resnet")},
    **{color.lower(): f"other{number}" for number, (color, _) in enumerate(OTHERS, 1)},
}
PAINT = re.compile(rf"((?:fill|stroke): )({'|'.join(COLORS)})\b", re.IGNORECASE)
# A hundredth of a point is finer than any screen; the scale of a letter's outline needs all of its digits.
PLACE = re.compile(r"scale\([^)]*\)|(-?\d+\.\d{3,})\b")
SCRIPTS = ("ticks.js", "beside.js", "print.js", "page.js")  # the last begins
FONT = "(?:DejaVu|Cmsy|Cmr|Cmmi)"  # what ids of letters begin with


@dataclass(frozen=True, slots=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def html(
    title: str,
    about: str,
    remarks: Sequence[Note],
    pictures: Mapping[str, tuple[str, str]],
    tables: tuple[Table, Table],
    records: Mapping[str, Any],
) -> str:
    """`pictures`: (title, SVG document) by the figure's name. `tables`: of cells, and of runs."""
    letters: set[str] = set()
    paints: dict[str, str] = {}
    figures = "\n".join(
        f'<h2>{escape(heading)}</h2>\n<p class="wide">Wider than this screen: scroll it sideways.</p>\n'
        f'<figure tabindex="0" aria-label="{escape(heading)}">{inline(svg, heading, name, letters, paints)}</figure>'
        for name, heading, svg in ((f"f{number}", *picture) for number, picture in enumerate(pictures.values()))
    )
    library, script = scripts(), "".join(map(_text, SCRIPTS))
    cells, runs = tables
    return Template(_text("page.html")).substitute(
        policy=_policy(library, script),
        style=_text("page.css") + "\n".join(f".{name}{{{paint}}}" for paint, name in paints.items()),
        title=escape(title),
        facts=escape(about),
        notes=_box(remarks),
        figures=figures,
        cells=_table("cells", cells),
        runs=_table("runs", runs),
        data=_data(records),
        library=library,
        script=script,
    )


def inline(svg: str, label: str, name: str, defined: set[str], paints: dict[str, str]) -> str:
    """A matplotlib SVG for use inside a page: ink in the page's colours, transparent paper, ids that begin with `name`.

    Outlines of letters are those of the page's first figure that has them: `defined`, which grows. So do `paints`, the
    classes of what thousands of markers have in common.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r'<g id="patch_1">.*?</g>\s*', "", body, count=1, flags=re.DOTALL)  # the figure's white ground
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    body = re.sub(rf'(\bid="|href="#|url\(#)(?!{FONT})', rf"\g<1>{name}-", body)
    body = PAINT.sub(lambda match: match[1] + _variable(match[2]), body)
    body = re.sub(r'style="([^"]*)"', lambda match: f'class="{paints.setdefault(match[1], f"p{len(paints)}")}"', body)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)

    def once(glyph: re.Match[str]) -> str:
        new = glyph[1] not in defined
        defined.add(glyph[1])
        return glyph[0] if new else ""

    body = re.sub(rf'<path id="({FONT}[^"]*)"[^>]*/>\s*', once, body)
    body = re.sub(r"<!--.*?-->|<defs>\s*</defs>|<g [^>]*/>", "", body, flags=re.DOTALL)
    body = PLACE.sub(lambda match: match[0] if match[1] is None else _short(match[1]), body)
    body = re.sub(r"\s*\n\s*", "\n", body).replace("xlink:href", "href")
    return body.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def _short(place: str) -> str:
    return f"{float(place):.2f}".rstrip("0").rstrip(".")


def _data(records: Mapping[str, Any]) -> str:
    """Charts and records as JSON in which no tag can end the script element that holds it."""
    series = [
        {**one, "color": (color := _variable(one["color"])), "tint": _tint(color, one["shade"])}
        for one in records["series"]
    ]
    bars = [{**one, "color": _variable(one["color"])} for one in records["baselines"]]
    document = {
        **records,
        "series": series,
        "baselines": bars,
        "chart": chart(series, sized=records["sized"]),
        "losses": loss_curve(),
    }
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _variable(color: str) -> str:
    return f"var(--{COLORS[color.lower()]})" if color.lower() in COLORS else color


def _tint(color: str, shade: float | None) -> str:
    """Of a family of several models: half as strong as its colour for the smallest, half ink for the largest."""
    if shade is None:
        return color
    share = 1 - abs(shade - 0.5)
    return f"color-mix(in oklab, {color} {share:.0%}, var(--{'paper' if shade < 0.5 else 'ink'}))"


def _policy(*scripts: str) -> str:
    """Only the page's own scripts run, and nothing is fetched: a second lock behind the escaping."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text("utf-8")


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


def _table(name: str, table: Table) -> str:
    head = "".join(f'<th scope="col"><button type="button">{escape(text)}</button></th>' for text in table.header)
    body = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in table.rows)
    return f'<table id="{name}"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'


def _digits(number: float) -> str:
    """Whole numbers with all of theirs; of others as many as any measurement here has."""
    return str(int(number)) if float(number).is_integer() and abs(number) < 2**53 else f"{number:.9g}"


def _cell(cell: Cell) -> str:
    number = "" if cell.number is None else f' data-value="{_digits(cell.number)}"'
    text = escape(cell.text)
    if cell.run is not None:
        text = f'<button type="button" data-run="{escape(cell.run)}">{text}</button>'
    return f"<td{number}>{text}</td>"
