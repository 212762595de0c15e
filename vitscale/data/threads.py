"""Work in several threads that an interrupt need not wait for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def unordered(function: Callable[[T], R], items: Sequence[T], *, threads: int) -> Iterator[R]:
    """`function` of each item, as they are ready. The first exception is raised here, and no further item begun.

    The threads end with the process: ThreadPoolExecutor would have Ctrl-C wait for a silent server's time-out.
    """
    todo: queue.SimpleQueue[T] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[R | None, BaseException | None]] = queue.SimpleQueue()
    stopped = threading.Event()
    for item in items:
        todo.put(item)

    def work() -> None:
        while not stopped.is_set():
            try:
                item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((function(item), None))
            except BaseException as error:
                stopped.set()
                done.put((None, error))

    for _ in range(min(threads, len(items))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in items:
            result, error = done.get()
            if error is not None:
                raise error
            yield result
    finally:
        stopped.set()
