"""The mistakes of one study file, each with the line that says it and the nearest right name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from vitscale.errors import INVALID_STUDY, MISSING, Problem

OPTION = "--set"
"""A key that begins so was given on the command line."""


class Mistakes:
    """Collects what is wrong, with the line that says it."""

    def __init__(self, path: Path, lines: Mapping[str, int]) -> None:
        self.path, self.lines = path, lines
        self.problems: list[Problem] = []
        self.keys: set[str] = set()
        """Keys of the config that something is wrong with, wherever they stand."""
        self._codes: set[int] = set()

    @property
    def exit_code(self) -> int:
        """5 where nothing is wrong but data that are not there."""
        return MISSING if self._codes == {MISSING} else INVALID_STUDY

    def add(self, key: str, message: str, hint: str, exit_code: int = INVALID_STUDY) -> None:
        self._codes.add(exit_code)
        self.keys.add(re.sub(r"^(axes\[\d+\]\.|--set )", "", key))
        if key.startswith(OPTION):
            self._append(Problem(f"{OPTION}: {message}", hint))
            return
        line = self.lines.get(key)
        parent = key
        while line is None and parent:
            parent = re.sub(r"(\.[^.\[\]]+|\[\d+\]|^[^.\[\]]+)$", "", parent)
            line = self.lines.get(parent)
        where = f"{self.path}:{line}" if line else f"{self.path}"
        self._append(Problem(f"{where}: {message}", hint))

    def _append(self, problem: Problem) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def unknown(self, key: str, shown: str, known: Sequence[str]) -> None:
        close = _same_ending(shown, known) or get_close_matches(shown, known, 1, cutoff=0.5)
        self.add(
            key, f"unknown key '{shown}'", f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
        )


def _same_ending(key: str, known: Sequence[str]) -> list[str]:
    """A key of another section: `lr` or `model.lr` for `recipe.lr`; `recipe.learning_rate` by its initials."""
    last = key.rpartition(".")[2]
    initials = "".join(word[0] for word in last.split("_") if word)
    return [name for name in known if name.rpartition(".")[2] in (last, initials)]
