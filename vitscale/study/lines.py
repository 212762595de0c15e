"""Where in a TOML file a key stands: tomllib tells the values but not the lines."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$")
_PART = r"(?:\"[^\"]*\"|'[^']*'|[\w-]+)"
_KEY = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=(?!=)")


def key_lines(text: str) -> dict[str, int]:
    """Line numbers, from 1, of every header and key of a valid TOML text.

    A key is written out from the top, parts joined by dots; a table of an array has its position in brackets:
    `recipe.lr`, `axes[0].model.name`, `transfer[1]`. Keys of inline tables are found with their table.
    """
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    prefix = ""
    for number, line in _statements(text):
        if header := _HEADER.match(line):
            name = _dotted(header[2])
            if header[1] == "[[":
                prefix = f"{name}[{counts.get(name, 0)}]"
                counts[name] = counts.get(name, 0) + 1
            else:
                prefix = name
            lines.setdefault(prefix, number)
        elif key := _KEY.match(line):
            lines.setdefault(f"{prefix}.{_dotted(key[1])}".lstrip("."), number)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of each statement's first line: arrays and strings over several lines are one statement."""
    pending, start = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        if not pending:
            start = number
        pending += line + "\n"
        try:
            tomllib.loads(pending)
        except tomllib.TOMLDecodeError:
            if "=" in pending and number < start + 2000:
                continue
        yield start, pending.splitlines()[0]
        pending = ""


def _dotted(name: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in re.findall(_PART, name))
