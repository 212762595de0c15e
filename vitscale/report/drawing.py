"""Drawing figures side by side, and beside whoever asks for them: each is a second or two of pure Python."""

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
from vitscale.processes import cores
from vitscale.report.panels import save

BEHIND = 5  # the parent fits laws meanwhile, and the last figures wait for them
Draw = Callable[[Curves], Figure | None]


class Drawing:
    """Figures that are being drawn into a folder."""

    def __init__(self, out: Path, pool: ProcessPoolExecutor | None) -> None:
        """`pool`: None where figures are drawn one by one, each as it is asked for."""
        self._out, self._pool = out, pool
        self._begun: dict[str, Future[tuple[Path, ...]]] = {}

    def begin(self, figures: Mapping[str, Draw], found: Curves) -> None:
        with warnings.catch_warnings():
            # That other threads exist: those of NumPy and Arrow, which are idle here and start anew in a child.
            warnings.simplefilter("ignore", DeprecationWarning)
            for name, draw in figures.items():
                self._begun[name] = self._submit(draw, name, found)

    def wait(self) -> dict[str, tuple[Path, ...]]:
        """The files of each figure that was begun; none where there was nothing to draw.

        Raises:
            VitscaleError: a process that drew was killed.
        """
        try:
            return {name: future.result() for name, future in self._begun.items()}
        except BrokenProcessPool as error:
            message = "a process that drew figures was killed"
            hint = "was there memory enough? a process takes some 200 MB, and there are as many as processors"
            raise VitscaleError(message, hint=hint, exit_code=MISSING) from error

    def _submit(self, draw: Draw, name: str, found: Curves) -> Future[tuple[Path, ...]]:
        done: Future[tuple[Path, ...]] = Future()
        try:
            if self._pool is not None:
                return self._pool.submit(_draw, draw, name, found, self._out)
            done.set_result(_draw(draw, name, found, self._out))
        except Exception as error:  # raised by `wait`, as that of a figure which a process draws
            done.set_exception(error)
        return done


@contextmanager
def drawing(out: Path) -> Iterator[Drawing]:
    """What draws into `out`, a process for each processor."""
    workers = cores()
    if workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield Drawing(out, None)
        return
    # Forked: a fresh process would first import for as long as it draws.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin)
    try:
        yield Drawing(out, pool)
    finally:
        pool.shutdown(cancel_futures=True)


def _draw(draw: Draw, name: str, found: Curves, out: Path) -> tuple[Path, ...]:
    with warnings.catch_warnings():
        # A box is drawn for a letter that the font lacks; the page has the name in the reader's own fonts.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        figure = draw(found)
        if figure is None:
            return ()
        paths = tuple(save(figure, out, name))
    plt.close(figure)
    return paths


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the parent hears, too
    os.nice(BEHIND)
