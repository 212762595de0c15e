"""What is under way, on the screen: one live table on a terminal, a line every half minute anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from vitscale.cli.screen import LINE_SECONDS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vitscale.launch.board import Board, Line

EVERY = 1.0
"""Seconds between two looks; where a look takes long, as long as ten looks."""


def view(stream: IO[str]) -> Table | Lines:
    """To `say` lines that stay, and to show how things stand with each `tick`, if it is time."""
    return Table(stream) if stream.isatty() else Lines(stream)


class Lines:
    """For log files: nothing is drawn over."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._said = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)
        self._said = time.monotonic()

    def tick(self, look: Callable[[], Board]) -> None:
        if time.monotonic() - self._said >= LINE_SECONDS:
            found = look()
            self.say("; ".join([found.summary(), *(line.words for line in found.lines)]))


class Table:
    """For terminals: what stays is printed above a table that changes."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(file=stream), auto_refresh=False, transient=True)
        self._next = 0.0

    def __enter__(self) -> Table:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def tick(self, look: Callable[[], Board]) -> None:
        began = time.monotonic()
        if began < self._next:
            return
        self._live.update(drawn(look()), refresh=True)
        ended = time.monotonic()
        self._next = ended + max(EVERY, 10 * (ended - began))


def drawn(board: Board) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not board.lines:
        return Text(board.summary())
    table = Table(box=SIMPLE_HEAD, pad_edge=False, expand=True)
    table.add_column("run", no_wrap=True)
    table.add_column("model", no_wrap=True, overflow="ellipsis", ratio=1, min_width=12)
    for name in ("step", "loss", "images/s", "MFU", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in board.lines:
        table.add_row(*(Text(cell) for cell in _cells(line)))
    return Group(table, Text(board.summary()))


def _cells(line: Line) -> list[str]:
    from vitscale.launch.progress import QUIET, clock, title

    job = line.job
    what = title(job).removeprefix(f"{job.id} ")
    if line.step is None:
        return [job.id, what, line.doing, "", "", "", ""]
    step: Any = line.step
    loss = "not finite" if step["loss"] is None else f"{step['loss']:.3f}"
    mfu = "" if step.get("mfu") is None else f"{step['mfu']:.1%}"
    left = "" if step["seconds_left"] is None else clock(step["seconds_left"])
    if line.silent is not None and line.silent > QUIET:
        left = f"quiet {line.silent:,.0f} s"
    return [job.id, what, f"{step['step']:,}/{step['steps']:,}", loss, f"{step['images_per_second']:,.0f}", mfu, left]
