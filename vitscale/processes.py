"""Signals that end a run with a checkpoint, processes that must not outlive who started them, and cores for both."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from vitscale.errors import BEREFT, DONE, INTERRUPTED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Each asks for a checkpoint and an end: of a person, of a scheduler, or before a time limit."""

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def cores() -> int:
    """Of the processor, as far as this process may use them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def signal_at_parent_death(number: signal.Signals) -> None:
    """Has the kernel send this signal to the calling process when its parent dies, however it dies; Linux only."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(number))


@contextmanager
def left_at_a_signal(requested: Callable[[], bool]) -> Iterator[None]:
    """While this process waits in a library for others and has nothing to save: a stop signal ends it at once.

    Python's own handlers would run when the main thread is back from there. `requested`: whether one came before.
    """
    heard, told = socket.socketpair()
    told.setblocking(False)
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    thread = Thread(target=_leave_at_a_signal, args=(heard,), daemon=True)
    thread.start()
    try:
        if requested():
            os._exit(INTERRUPTED)
        yield
    finally:
        signal.set_wakeup_fd(before)
        told.close()
        thread.join()
        heard.close()


def _leave_at_a_signal(heard: socket.socket) -> None:
    while numbers := heard.recv(1):
        if numbers[0] in STOP_SIGNALS:
            os._exit(INTERRUPTED)


class Together:
    """Processes that stop together and end together: the first failure leaves the others little time."""

    GRACE = 10.0
    """Seconds for the others to notice and to say so; by then they wait for one that is gone."""

    def __init__(self, processes: Mapping[int, subprocess.Popen[Any]]) -> None:
        self.processes = processes
        self.killed = False
        self.silent: tuple[int, ...] = ()
        """Those that did not end with the others, and were killed for it."""
        self._ended: SimpleQueue[tuple[int, int]] = SimpleQueue()
        for number, process in processes.items():
            Thread(target=self._await, args=(number, process), daemon=True).start()

    def _await(self, number: int, process: subprocess.Popen[Any]) -> None:
        self._ended.put((number, process.wait()))

    def stop(self) -> None:
        """Asks all for a checkpoint and an end."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends all, without a checkpoint."""
        self.killed = True
        for process in self.processes.values():
            process.kill()

    def wait(self) -> dict[int, int]:
        """The exit codes of all, in the order in which they ended; without those that `kill` ended."""
        codes: dict[int, int] = {}
        left, end = len(self.processes), None
        while left:
            try:
                number, code = self._ended.get(timeout=None if end is None else max(end - time.monotonic(), 0.0))
            except Empty:
                self.silent = tuple(number for number, process in self.processes.items() if process.poll() is None)
                self.kill()
                end = None
                continue
            left -= 1
            if not self.killed:
                codes[number] = code
                if code == INTERRUPTED:  # in training all stop together; while they meet one may be told alone
                    self.stop()
                if code not in (DONE, INTERRUPTED) and end is None:
                    end = time.monotonic() + self.GRACE
        return codes


def first_failure(codes: Mapping[int, int]) -> tuple[int, int] | None:
    """(number, exit code) of the process that ended the others, rather than of one that missed it; None: none failed.

    Where all were only interrupted it is one of those.
    """
    blame = {BEREFT: 1, INTERRUPTED: 2}
    failures = [(number, code) for number, code in codes.items() if code != DONE]
    return min(failures, key=lambda failure: blame.get(failure[1], 0), default=None)
