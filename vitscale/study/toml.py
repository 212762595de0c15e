"""A TOML file as it was written: its values, and the lines that they stand in."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from vitscale.errors import INVALID_STUDY, MISSING, VitscaleError
from vitscale.study.lines import key_lines


def text_of(path: Path) -> str:
    """A file in UTF-8, without the mark that some editors put before it.

    Raises:
        UnicodeDecodeError, OSError: as `Path.read_text`.
    """
    return path.read_text("utf-8-sig")


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


def _nearby(path: Path) -> str:
    """Studies beside it, and in `studies/` of the folder that it was looked for in."""
    folders = [folder for folder in (path.parent, path.parent / "studies") if folder.is_dir()]
    there = sorted(str(p) for folder in folders for p in folder.glob("*.toml") if p.name != "pyproject.toml")
    return f"there are: {', '.join(there)}" if there else "give the path of a study's TOML file"
