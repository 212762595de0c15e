"""A TOML file as it was written: its values, and the lines that they stand in."""

from __future__ import annotations

import re
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vitscale.errors import INVALID_STUDY, MISSING, VitscaleError
from vitscale.files import text_of
from vitscale.study.lines import key_lines


def parse(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The document, and the line of each key.

    Raises:
        VitscaleError: there is no such file (exit 5), or it is no TOML (exit 3).
    """
    try:
        text = text_of(path)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise VitscaleError(f"no study file {path}", hint=_nearby(path), exit_code=MISSING) from None
    except UnicodeDecodeError as error:
        raise VitscaleError(
            f"{path}: not a text in UTF-8 ({error})", hint="save the file as UTF-8", exit_code=INVALID_STUDY
        ) from None
    try:
        return tomllib.loads(text), key_lines(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        where = f"{path}:{line[1]}" if line else str(path)
        raise VitscaleError(
            f"{where}: not TOML: {error}", hint="see https://toml.io for the syntax", exit_code=INVALID_STUDY
        ) from None


NAMED = 5
"""Studies that a hint names at most."""


def _nearby(path: Path) -> str:
    """Studies in the folder that it was looked for in, or that it is, and in `studies/` there; of many the nearest."""
    place = path if path.is_dir() else path.parent
    folders = [folder for folder in (place, place / "studies") if folder.is_dir()]
    there = sorted(p for folder in folders for p in folder.glob("*.toml") if p.name != "pyproject.toml")
    if not there:
        return "give the path of a study's TOML file"
    if len(there) <= NAMED:
        return f"there are: {', '.join(map(str, there))}"
    near = get_close_matches(path.name, {p.name for p in there}, NAMED)
    found = [str(p) for name in near for p in there if p.name == name][:NAMED]
    if found:
        return f"did you mean {' or '.join(found)}?"
    return f"there are {len(there)}, such as {there[0]}; give the path of one"
