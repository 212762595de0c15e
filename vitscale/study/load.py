"""A study's TOML file, read and checked whole: every mistake at once, each with its line and a way out."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vitscale.config import Run, Task, Transfer
from vitscale.errors import INVALID_STUDY, MISSING, Problem, VitscaleError
from vitscale.study import axes, fields
from vitscale.study.check import Complaint, check_run, check_size, check_transfer
from vitscale.study.datasets import load_task
from vitscale.study.lines import key_lines

SIZE_KEYS = ("width", "depth", "mlp", "heads", "blocks", "channels", "groups")
TOP_KEYS = ("title", "seed", "sizes", "model", "data", "recipe", "axes", "select", "transfer")
SELECT_KEYS = {"over", "by", "per", "at"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Select:
    """Settings tuned on held-out training data: the best of `over` by `by`, for each group of cells."""

    over: Mapping[str, tuple[Any, ...]]
    by: str = "upstream_val"
    per: tuple[str, ...] = ()
    at: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values of `per` keys at which it is tuned; a cell elsewhere takes the nearest one's choice (on a log scale)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One pre-training run of the study, before anything is selected."""

    values: Mapping[str, Any]
    """All settings that were given, by dotted key."""
    run: Run
    varied: Mapping[str, Any]
    """The settings among them that an axis names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    name: str
    title: str
    base: Path
    """Relative paths of the study start here: the folder where the command runs."""
    sizes: Mapping[str, Mapping[str, Any]]
    cells: tuple[Cell, ...]
    transfers: tuple[tuple[Transfer, Task], ...]
    select: Select | None


class _Mistakes:
    """Collects what is wrong, with the line that says it."""

    def __init__(self, path: Path, lines: Mapping[str, int]) -> None:
        self.path, self.lines = path, lines
        self.problems: list[Problem] = []

    def add(self, key: str, message: str, hint: str) -> None:
        line = self.lines.get(key)
        parent = key
        while line is None and parent:
            parent = re.sub(r"(\.[^.\[\]]+|\[\d+\]|^[^.\[\]]+)$", "", parent)
            line = self.lines.get(parent)
        where = f"{self.path}:{line}" if line else f"{self.path}"
        problem = Problem(f"{where}: {message}", hint)
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


def load(path: Path, *, base: Path | None = None, settings: Sequence[str] = ()) -> Study:
    """Reads a study; `settings` are `key=value` texts (TOML values) that replace what the file says.

    Raises:
        VitscaleError: there is no such file (exit 5), or it has mistakes (exit 3, all of them).
    """
    try:
        text = path.read_text()
    except (FileNotFoundError, IsADirectoryError):
        raise VitscaleError(f"no study file {path}", hint=_nearby(path), exit_code=MISSING) from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        where = f"{path}:{line[1]}" if line else str(path)
        raise VitscaleError(
            f"{where}: not TOML: {error}", hint="see https://toml.io for the syntax", exit_code=INVALID_STUDY
        ) from None
    mistakes = _Mistakes(path, key_lines(text))
    study = _read(document, path, base or Path(), settings, mistakes)
    if mistakes.problems:
        raise VitscaleError.of(mistakes.problems, exit_code=INVALID_STUDY)
    return study


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Dotted keys and values of `--set` texts.

    Raises:
        VitscaleError: an unknown key or a wrong type (exit 3, all of them).
    """
    mistakes = _Mistakes(Path("--set"), {})
    values = {key: value for text in settings for key, value in _setting(text, mistakes).items()}
    if mistakes.problems:
        raise VitscaleError.of(mistakes.problems, exit_code=INVALID_STUDY)
    return values


def _nearby(path: Path) -> str:
    there = sorted(str(p) for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
    return f"there are: {', '.join(there)}" if there else "give the path of a study's TOML file"


def _read(document: Mapping[str, Any], path: Path, base: Path, settings: Sequence[str], mistakes: _Mistakes) -> Study:
    for key in document:
        if key not in TOP_KEYS:
            mistakes.unknown(key, key, [*TOP_KEYS, *fields.run_keys()])
    title = document.get("title", path.stem)
    if not isinstance(title, str):
        mistakes.add("title", "title is not a text", "put it in quotes")
    sizes = _sizes(document.get("sizes", {}), mistakes)
    defaults = _defaults(document, settings, mistakes)
    cells = _cells(document, defaults, mistakes, overridden={s.partition("=")[0].strip() for s in settings})
    for cell in cells:
        where = _where(document, cell)
        for complaint in check_run(cell.run, sizes=sizes, base=base):
            mistakes.add(where(complaint.key), *_words(complaint))
    return Study(
        name=path.stem,
        title=str(title),
        base=base,
        sizes=sizes,
        cells=tuple(cells),
        transfers=tuple(_transfers(document, base, mistakes)),
        select=_select(document, mistakes),
    )


def _words(complaint: Complaint) -> tuple[str, str]:
    return complaint.message, complaint.hint


def _sizes(table: Any, mistakes: _Mistakes) -> dict[str, dict[str, Any]]:
    if not isinstance(table, dict):
        mistakes.add("sizes", "sizes is not a table", "write [sizes.NAME]")
        return {}
    good = {}
    for name, numbers in table.items():
        complaints = check_size(name, numbers, SIZE_KEYS)
        for complaint in complaints:
            mistakes.add(complaint.key, *_words(complaint))
        if not complaints:
            good[name] = dict(numbers)
    return good


def _defaults(document: Mapping[str, Any], settings: Sequence[str], mistakes: _Mistakes) -> dict[str, Any]:
    given = {}
    for section in fields.SECTIONS:
        table = document.get(section, {})
        if not isinstance(table, dict):
            mistakes.add(section, f"{section} is not a table", f"write [{section}]")
            continue
        given.update({f"{section}.{key}": value for key, value in table.items()})
    if "seed" in document:
        given["seed"] = document["seed"]
    values = _converted(given, mistakes, lambda key: key)
    for text in settings:
        values.update(_setting(text, mistakes))
    return values


def _setting(text: str, mistakes: _Mistakes) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        mistakes.add("", f"--set {text}: not of the form key=value", "for example --set recipe.lr=3e-4")
        return {}
    try:
        parsed = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value
    return _converted({key.strip(): parsed}, mistakes, lambda key: f"--set {key}")


def _converted(given: Mapping[str, Any], mistakes: _Mistakes, where: Any) -> dict[str, Any]:
    known = fields.run_keys()
    good = {}
    for key, value in given.items():
        if key not in known:
            mistakes.unknown(where(key), key, list(known))
            continue
        try:
            good[key] = fields.convert(known[key], value)
        except ValueError as error:
            mistakes.add(where(key), f"{key}: {error}", f"the type of '{key}' is {_plain(known[key])}")
    return good


def _plain(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) else str(hint)
    return text.replace("typing.", "").replace("None", "nothing").replace(" | ", " or ")


def _cells(
    document: Mapping[str, Any], defaults: Mapping[str, Any], mistakes: _Mistakes, *, overridden: set[str]
) -> list[Cell]:
    tables = document.get("axes", [])
    if not isinstance(tables, list):
        mistakes.add("axes", "axes is not an array of tables", "write [[axes]]")
        return []
    converted = []
    for position, table in enumerate(tables):
        flat = {key: value for key, value in _flat(table).items() if key not in overridden}
        zipped = flat.pop("zip", False)
        good: dict[str, Any] = {"zip": zipped}
        for key, values in flat.items():
            each = values if isinstance(values, list) else [values]
            if not each:
                mistakes.add(f"axes[{position}].{key}", f"'{key}' has no values", "an axis needs at least one value")
            one = [_converted({key: value}, mistakes, lambda k, p=position: f"axes[{p}].{k}") for value in each]
            if all(key in part for part in one):
                good[key] = [part[key] for part in one]
        converted.append(good)
    try:
        varied = axes.expand(converted)
    except ValueError as error:
        mistakes.add("axes[0]", str(error), "give each key as many values, or leave zip out")
        return []
    return [
        Cell(values=values, run=fields.build(values), varied=cell)
        for cell in varied
        for values in [{**defaults, **cell}]
    ]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _where(document: Mapping[str, Any], cell: Cell) -> Any:
    tables = [set(_flat(table)) for table in document.get("axes", [])]

    def where(key: str) -> str:
        if key in cell.varied:
            for position, keys in enumerate(tables):
                if key in keys:
                    return f"axes[{position}].{key}"
        return key

    return where


def _transfers(document: Mapping[str, Any], base: Path, mistakes: _Mistakes) -> list[tuple[Transfer, Task]]:
    tables = document.get("transfer", [])
    if not isinstance(tables, list):
        mistakes.add("transfer", "transfer is not an array of tables", "write [[transfer]]")
        return []
    known = {key: hint for key, hint in fields.types(Transfer).items() if key != "init"}
    found = []
    for position, table in enumerate(tables):
        values = {}
        for key, value in table.items():
            where = f"transfer[{position}].{key}"
            if key not in known:
                mistakes.unknown(where, key, list(known))
                continue
            try:
                values[key] = fields.convert(known[key], value)
            except ValueError as error:
                mistakes.add(where, f"transfer.{key}: {error}", f"the type of '{key}' is {_plain(known[key])}")
        transfer = Transfer(**values)
        try:
            task = load_task(transfer.task, base=base)
        except VitscaleError as error:
            for problem in error.problems:
                mistakes.add(f"transfer[{position}].task", problem.message, problem.hint)
            continue
        for complaint in check_transfer(transfer, task):
            mistakes.add(f"transfer[{position}].{complaint.key}", *_words(complaint))
        found.append((transfer, task))
    return found


def _select(document: Mapping[str, Any], mistakes: _Mistakes) -> Select | None:
    table = document.get("select")
    if table is None:
        return None
    for key in table:
        if key not in SELECT_KEYS:
            mistakes.unknown(f"select.{key}", f"select.{key}", [f"select.{k}" for k in sorted(SELECT_KEYS)])
    grids = {}
    for name in ("over", "at"):
        flat = _flat(table.get(name, {}))
        good = {}
        for key, values in flat.items():
            each = values if isinstance(values, list) else [values]
            parts = [_converted({key: value}, mistakes, lambda _, n=name: f"select.{n}") for value in each]
            good[key] = tuple(part[key] for part in parts if key in part)
        grids[name] = good
    if not grids["over"]:
        mistakes.add(
            "select", "[select] has nothing to choose from", 'write over = { "recipe.lr" = [3e-4, 1e-3, 3e-3] }'
        )
    by = table.get("by", "upstream_val")
    if by != "upstream_val":
        mistakes.add("select.by", f"cannot select by {by!r}", "by = 'upstream_val': test labels never choose anything")
    per = table.get("per", [])
    for key in per:
        if key not in fields.run_keys():
            mistakes.unknown("select.per", key, list(fields.run_keys()))
    for key in grids["at"]:
        if key not in per:
            mistakes.add("select.at", f"'{key}' stands in select.at but not in select.per", "name it in per, too")
    if not _validates(document):
        mistakes.add("select", "[select] needs an upstream validation set", "set data.val_examples")
    return Select(over=grids["over"], by=by, per=tuple(per), at=grids["at"])


def _validates(document: Mapping[str, Any]) -> bool:
    data = document.get("data", {})
    axes_keys = {key for table in document.get("axes", []) if isinstance(table, dict) for key in _flat(table)}
    return bool(isinstance(data, dict) and data.get("val_examples")) or "data.val_examples" in axes_keys
