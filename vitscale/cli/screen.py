"""How an answer and an error reach the screen: stdout is the answer, stderr is progress and hints."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from vitscale.errors import MISSING, Problem, VitscaleError

if TYPE_CHECKING:
    from vitscale.study.job import Job

JSON_SCHEMA = 1
LINE_SECONDS = 30.0  # between two lines of progress where stderr is no terminal

P = ParamSpec("P")
R = TypeVar("R")


def say(text: str) -> None:
    """One line of progress or advice, to stderr: behind what was answered before it, where both go to one file."""
    with contextlib.suppress(OSError):  # `Answer` has noted it
        if sys.stdout is not None:
            sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


class Answer(io.TextIOWrapper):
    """stdout, with what kept it from being written: an error that is told apart from those of other files."""

    lost: OSError | None = None

    @classmethod
    def on_stdout(cls) -> Answer:
        """In the place of `sys.stdout`, also where that is closed."""
        old: Any = sys.stdout
        if old is None:  # the bytes alone: a text file would close them as soon as nobody holds it
            sys.stdout = made = cls(Path(os.devnull).open("wb"), "utf-8")  # noqa: SIM115
        else:
            sys.stdout = made = cls(old.buffer, old.encoding, old.errors, line_buffering=old.line_buffering)
        return made

    def write(self, text: str) -> int:
        with self._noted():
            return super().write(text)

    def flush(self) -> None:
        with self._noted():
            super().flush()

    def end(self) -> OSError | None:
        """What is left is written, or given up: Python would try when it ends, and complain in its own words."""
        with contextlib.suppress(OSError):
            self.flush()
        if self.lost is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        return self.lost

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = error
            raise


def tell_refused(jobs: Iterable[Job], states: Mapping[str, str], runs: Path) -> None:
    """Two lines for each run whose folder is damaged, or holds another run."""
    from vitscale.launch import folders

    for job in jobs:
        ended = folders.outcome_of(job, runs) if states.get(job.id) == "refused" else None
        if ended is not None:
            say(str(Problem(ended["reason"], ended["hint"])))


def print_json(document: dict[str, Any]) -> None:
    """The whole answer as one JSON document with its `schema` number."""
    print(json.dumps({"schema": JSON_SCHEMA, **document}, indent=2, default=str))


def print_table(rows: Sequence[Sequence[Any]], header: Sequence[str], spare: Sequence[str] = ()) -> None:
    """A table on a terminal; tab-separated lines, with the header, anywhere else.

    `spare`: columns that a narrow terminal does without, the least important first; a line says so.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [header, *cells]:
            print("\t".join(row))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vitscale.cli.columns import fitted, total

    room = Console().width
    widths = fitted(header, cells, room, spare)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column, width in widths.items():
        numeric = bool(cells) and all(_is_number(row[column]) for row in cells)
        justify: Literal["left", "right"] = "right" if numeric else "left"
        table.add_column(header[column], justify=justify, overflow="fold", width=width)
    for row in cells:
        table.add_row(*(Text(row[column]) for column in widths))
    Console(width=max(room, total(widths.values()))).print(table)
    if left_out := [name for column, name in enumerate(header) if column not in widths]:
        say(f"no room for: {', '.join(left_out)}; a wider terminal shows them, and so does --json")


def _is_number(cell: str) -> bool:
    """Or that there is none."""
    try:
        float(cell.replace(",", "").rstrip("%").removesuffix("-") or 0)
    except ValueError:
        return False
    return True


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """A verb whose `VitscaleError` becomes two lines on stderr and its exit code."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        import typer

        try:
            return command(*args, **kwargs)
        except VitscaleError as error:
            say(str(error))
            raise typer.Exit(error.exit_code) from None
        except PermissionError as error:
            say(f"error: {error.filename}: {error.strerror}\nhint: change its permissions, or name another file")
            raise typer.Exit(MISSING) from None

    return wrapped


@contextlib.contextmanager
def progress_of(what: str, unit: str = "images") -> Iterator[Callable[[int, int], None]]:
    """A bar with a count on a terminal, a line every half minute elsewhere; both on stderr."""
    if not sys.stderr.isatty():
        yield _lines(what, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(what: str, unit: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            say(f"{what}: {done:,} of {total:,} {unit}")

    return line
