"""Drawing figures side by side: each is a second or two of pure Python, and none needs another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from vitscale.analysis.curves import Curves
from vitscale.errors import MISSING, VitscaleError
from vitscale.report.panels import save

Figures = Mapping[str, Callable[[Curves], Figure | None]]
Drawn = dict[str, tuple[Path, ...]]


@contextmanager
def drawing(figures: Figures, found: Curves, out: Path) -> Iterator[Callable[[], Drawn]]:
    """Begins to draw into `out`; gives what waits for all files, by the figure's name, none where nothing is drawn."""
    workers = min(_processors(), len(figures))
    if workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield lambda: {name: _draw(draw, name, found, out) for name, draw in figures.items()}
        return
    # Forked: a fresh process would first import for as long as it draws.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, context, initializer=_leave_interrupts_to_the_parent)
    try:
        with warnings.catch_warnings():
            # That other threads exist: those of NumPy and Arrow, which are idle here and start anew in a child.
            warnings.simplefilter("ignore", DeprecationWarning)
            begun = {name: pool.submit(_draw, draw, name, found, out) for name, draw in figures.items()}
        yield lambda: _results(begun)
    finally:
        pool.shutdown(cancel_futures=True)


def _results(begun: Mapping[str, Future[tuple[Path, ...]]]) -> Drawn:
    try:
        return {name: future.result() for name, future in begun.items()}
    except BrokenProcessPool as error:
        message = "a process that drew figures was killed"
        hint = "was there memory enough? a process takes some 200 MB, and there are as many as processors"
        raise VitscaleError(message, hint=hint, exit_code=MISSING) from error


def _draw(draw: Callable[[Curves], Figure | None], name: str, found: Curves, out: Path) -> tuple[Path, ...]:
    figure = draw(found)
    if figure is None:
        return ()
    paths = tuple(save(figure, out, name))
    plt.close(figure)
    return paths


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
