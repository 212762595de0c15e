"""A study's TOML file, read and checked whole: every mistake at once, each with its line and a way out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from vitscale import models
from vitscale.config import Run, Task, Transfer
from vitscale.errors import INVALID_STUDY, VitscaleError
from vitscale.study import axes, fields, launcher
from vitscale.study.check import check_resolution, check_run, check_size, check_steps, check_transfer
from vitscale.study.datasets import described_once, load_task
from vitscale.study.given import converted, flat, plain, setting
from vitscale.study.identity import ONLY_OF
from vitscale.study.masked import judged_by
from vitscale.study.mistakes import OPTION, Mistakes
from vitscale.study.ranges import Complaint
from vitscale.study.select import Cell, Select, grid, tunable
from vitscale.study.select_table import read_select
from vitscale.study.sharing import LENGTHS
from vitscale.study.toml import parse

SIZE_KEYS = ("width", "depth", "mlp", "heads", "blocks", "channels", "groups")
TOP_KEYS = ("title", "seed", "sizes", "model", "data", "recipe", "axes", "select", "transfer", "launcher")


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
    slurm: Mapping[str, Any] = field(default_factory=dict)
    """What it says in `[launcher.slurm]`."""
    file: Path | None = None
    """Where it was read; None of a single run."""
    settings: tuple[str, ...] = ()
    """Texts of the command line that replace what the file says."""


def load(path: Path, *, base: Path | None = None, settings: Sequence[str] = ()) -> Study:
    """Reads a study; `settings` are `key=value` texts (TOML values) that replace what the file says.

    Raises:
        VitscaleError: there is no such file (exit 5), or it has mistakes (exit 3, all of them).
    """
    document, lines = parse(path)
    mistakes = Mistakes(path, lines)
    _shapes(document, mistakes)
    study = None if mistakes.problems else _read(document, path, base or Path(), settings, mistakes)
    if study is None or mistakes.problems:
        raise VitscaleError.of(mistakes.problems, exit_code=mistakes.exit_code)
    return study


def _shapes(document: Mapping[str, Any], mistakes: Mistakes) -> None:
    """Tables must be tables before anything is read from them."""
    for key in ("model", "data", "recipe", "select", "sizes"):
        if not isinstance(document.get(key, {}), dict):
            mistakes.add(key, f"{key} is not a table", f"write [{key}] on a line of its own")
    for key in ("axes", "transfer"):
        tables = document.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            mistakes.add(key, f"{key} is not an array of tables", f"write [[{key}]] on a line of its own")
    select = document.get("select", {})
    for key in ("over", "at"):
        if isinstance(select, dict) and not isinstance(select.get(key, {}), dict):
            mistakes.add(f"select.{key}", f"select.{key} is not a table", 'for example { "recipe.lr" = [3e-4, 1e-3] }')


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Dotted keys and values of `--set` texts.

    Raises:
        VitscaleError: an unknown key or a wrong type (exit 3, all of them).
    """
    mistakes = Mistakes(Path("command line"), {})
    values = {key: value for text in settings for key, value in setting(text, mistakes).items()}
    if mistakes.problems:
        raise VitscaleError.of(mistakes.problems, exit_code=INVALID_STUDY)
    return values


def _read(document: Mapping[str, Any], path: Path, base: Path, settings: Sequence[str], mistakes: Mistakes) -> Study:
    for key in document:
        if key not in TOP_KEYS:
            mistakes.unknown(key, key, [*TOP_KEYS, *fields.run_keys()])
    title = document.get("title", path.stem)
    if not isinstance(title, str):
        mistakes.add("title", "title is not a text", "put it in quotes")
    sizes = _sizes(document.get("sizes", {}), mistakes)
    defaults = _defaults(document, settings, mistakes)
    overridden = {s.partition("=")[0].strip() for s in settings}
    cells = _cells(document, defaults, mistakes, overridden=overridden)
    transfers = _transfers(document, base, mistakes)
    select = read_select(document, cells, mistakes, overridden=overridden)
    where = partial(_where, document, overridden)
    with described_once():
        _check_cells(cells, [transfer for transfer, _ in transfers], select, sizes, base, mistakes, where)
    return Study(
        name=path.stem,
        title=str(title),
        base=base,
        sizes=sizes,
        cells=tuple(cells),
        transfers=tuple(transfers),
        select=select,
        slurm=launcher.read(document.get("launcher", {}), mistakes),
        file=path,
        settings=tuple(settings),
    )


def _check_cells(
    cells: Sequence[Cell],
    transfers: Sequence[Transfer],
    select: Select | None,
    sizes: models.Sizes,
    base: Path,
    mistakes: Mistakes,
    where: Callable[[Cell, str], str],
) -> None:
    """Every run that the study may make: each cell, its network at each transfer's resolution, each tuning run."""
    # What is unreadable has its default here, and a size with a mistake is unknown: that would be said twice.
    known = set(mistakes.keys) | ({"model.name"} if any(key.startswith("sizes.") for key in mistakes.keys) else set())
    chosen = [key for key in LENGTHS if select and key in select.over]
    alike = {id(cell) for cell in _but_for_seeds(cells)}
    for cell in cells:
        complaints = check_run(cell.run, sizes=sizes, base=base)
        for complaint in complaints:
            if complaint.key == "recipe" and chosen:  # the run has no duration
                message = f"'{chosen[0]}' stands in select.over, and the run has no duration before it is chosen"
                mistakes.add("select.over", message, f"give it one by {chosen[0]}, too: until then plan goes by that")
            elif complaint.key not in known:
                mistakes.add(where(cell, complaint.key), *_words(complaint))
        if complaints:
            continue
        for position, transfer in enumerate(transfers):
            for complaint in check_resolution(cell.run, transfer, sizes):
                mistakes.add(f"transfer[{position}].{complaint.key}", *_words(complaint))
        trials = _trials(cell, select) if id(cell) in alike else []
        for complaint in (c for trial in trials for c in check_run(trial, sizes=sizes, base=base)):
            mistakes.add("select.over", *_words(complaint))
        if len({judged_by(trial, sizes) for trial in trials}) > 1:
            hint = "put what is predicted of a patch on an axis: its scores do not compare"
            mistakes.add("select.over", "select.over varies what the upstream score is a score of", hint)
    # Beside other mistakes, the length of a run is not yet what its author meant.
    for cell in [] if mistakes.problems else tunable(_but_for_seeds(cells)):
        for complaint in (c for run in _trials(cell, select) or [cell.run] for c in check_steps(run, base=base)):
            tuned = select is not None and complaint.key in select.over
            mistakes.add("select.over" if tuned else where(cell, complaint.key), *_words(complaint))


def _but_for_seeds(cells: Iterable[Cell]) -> list[Cell]:
    """Of cells that differ in their seeds alone the first: a grid is as possible at each of them."""
    found: dict[Any, Cell] = {}
    for cell in cells:
        found.setdefault(tuple((key, value) for key, value in cell.values.items() if key != "seed"), cell)
    return list(found.values())


def _trials(cell: Cell, select: Select | None) -> list[Run]:
    """What is trained to choose the cell's settings."""
    return [fields.build({**cell.values, **values}) for values in grid(select)] if select else []


def _words(complaint: Complaint) -> tuple[str, str, int]:
    return complaint.message, complaint.hint, complaint.exit_code


def _sizes(table: Any, mistakes: Mistakes) -> dict[str, dict[str, Any]]:
    good = {}
    for name, numbers in table.items():
        complaints = check_size(name, numbers, SIZE_KEYS)
        for complaint in complaints:
            mistakes.add(complaint.key, *_words(complaint))
        if not complaints:
            good[name] = dict(numbers)
    return good


def _defaults(document: Mapping[str, Any], settings: Sequence[str], mistakes: Mistakes) -> dict[str, Any]:
    given = {}
    for section in fields.SECTIONS:
        table = document.get(section, {})
        given.update({f"{section}.{key}": value for key, value in table.items()})
    if "seed" in document:
        given["seed"] = document["seed"]
    values = converted(given, mistakes, lambda key: key)
    for text in settings:
        values.update(setting(text, mistakes))
    return values


def _cells(
    document: Mapping[str, Any], defaults: Mapping[str, Any], mistakes: Mistakes, *, overridden: set[str]
) -> list[Cell]:
    tables = document.get("axes", [])
    expanded = []
    for position, table in enumerate(tables):
        given = {key: value for key, value in flat(table).items() if key not in overridden}
        zipped = given.pop("zip", False)
        if not isinstance(zipped, bool):
            mistakes.add(f"axes[{position}].zip", f"zip is {zipped!r}", "zip = true, or leave it out")
        good: dict[str, Any] = {"zip": zipped}
        for key, values in given.items():
            each = values if isinstance(values, list) else [values]
            if not each:
                mistakes.add(f"axes[{position}].{key}", f"'{key}' has no values", "an axis needs at least one value")
                continue
            one = [converted({key: value}, mistakes, lambda k, p=position: f"axes[{p}].{k}") for value in each]
            if all(key in part for part in one):
                good[key] = [part[key] for part in one]
        expanded.append(good)
    try:
        varied = axes.expand(expanded)
    except ValueError as error:
        mistakes.add("axes[0]", str(error), "give each key as many values, or leave zip out")
        return []
    return [
        Cell(values=values, run=fields.build(values), varied=cell)
        for cell in varied
        for values in [{**defaults, **cell}]
    ]


def _where(document: Mapping[str, Any], overridden: set[str], cell: Cell, key: str) -> str:
    """What names the line, or the option, that gave a cell the value of `key`."""
    if key in overridden:
        return f"{OPTION} {key}"
    for position, table in enumerate(document.get("axes", [])):
        values = flat(table).get(key)
        if key in cell.varied and cell.varied[key] in (values if isinstance(values, list) else [values]):
            return f"axes[{position}].{key}"
    return key


def _transfers(document: Mapping[str, Any], base: Path, mistakes: Mistakes) -> list[tuple[Transfer, Task]]:
    tables = document.get("transfer", [])
    known = {key: hint for key, hint in fields.types(Transfer).items() if key != "init"}
    found: list[tuple[Transfer, Task]] = []
    for position, table in enumerate(tables):
        values: dict[str, Any] = {}
        for key, value in table.items():
            where = f"transfer[{position}].{key}"
            if key not in known:
                mistakes.unknown(where, key, list(known))
                continue
            try:
                good = fields.convert(known[key], value)
                values[key] = fields.each_once(good) if isinstance(good, tuple) else good
            except ValueError as error:
                mistakes.add(where, f"transfer.{key}: {error}", f"'{key}' takes {plain(known[key])}")
        transfer = Transfer(**values)
        if "protocol" in table and "protocol" not in values:  # what it means is not known
            continue
        others = {key for protocol, keys in ONLY_OF.items() if protocol != transfer.protocol for key in keys}
        for key in (key for key in values if key in others):
            message = f"transfer.{key} means nothing to protocol = '{transfer.protocol}'"
            mistakes.add(f"transfer[{position}].{key}", message, "leave it out, or choose the other protocol")
        try:
            task = load_task(transfer.task, base=base)
        except VitscaleError as error:
            for problem in error.problems:
                mistakes.add(f"transfer[{position}].task", problem.message, problem.hint, error.exit_code)
            continue
        for complaint in check_transfer(transfer, task):
            mistakes.add(f"transfer[{position}].{complaint.key}", *_words(complaint))
        if transfer.protocol == "fewshot" and any(_differ_in_shots(transfer, other) for other, _ in found):
            message = f"another [[transfer]] to {transfer.task} differs in its shots alone"
            mistakes.add(f"transfer[{position}].task", message, "name all shots in one: its features are computed once")
        found.append((transfer, task))
    return found


def _differ_in_shots(one: Transfer, other: Transfer) -> bool:
    return one != other and replace(one, shots=()) == replace(other, shots=())
