"""A thread beside the training: it shows that the run moves, and ends a process whose run does not."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vitscale.errors import BEREFT, RUN_FAILED
from vitscale.failures import Failure
from vitscale.train import group
from vitscale.train.stop import Stop

HEARTBEAT = "heartbeat"
"""A file of the run folder; its time is that of the run's last movement."""
STALL = 300.0
"""Seconds without a movement that end a run for which nothing else was said."""
SLOW = 6
"""How many times longer what may take minutes can stand still: the first step, with its compilation."""
LOOK = 1.0
STDERR = 2  # the log: what sys.stderr is may be a test's
HINT = "log.txt shows where each thread stood; the same command goes on from the last checkpoint"
RECORDING = 10.0
"""Seconds for the failure to be written: the disk may be what the run waits for."""


Fail = Callable[[Failure, str, str, bool], object]
"""Records a failure: (kind, reason, hint, whether somebody else may know better)."""


@dataclass(frozen=True, kw_only=True)
class Watchdog:
    """Touches the heartbeat while the work moves; ends the process when it does not, or when a host is lost.

    The process that `writes` touches the heartbeat. The others wait for it in a collective while it saves or records,
    so they have not stalled while it beats.
    """

    folder: Path
    stop: Stop
    stall: float
    """Seconds; 0: never."""
    writes: bool
    lost: Callable[[], str | None]
    fail: Fail

    @contextmanager
    def watching(self) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over,), daemon=True)
        self.stop.at("starting", slow=True)
        if self.writes:
            (self.folder / HEARTBEAT).touch()
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, over: threading.Event) -> None:
        beats, shown = self.folder / HEARTBEAT, 0.0
        last, seen = _touched(beats), time.monotonic()
        while not over.wait(LOOK):
            moved = self.stop.moved
            if (touched := _touched(beats)) != last:  # its time says nothing: clocks differ, and jump
                last, seen = touched, time.monotonic()
            if self.writes and moved > shown:
                shown = moved
                with suppress(OSError):  # a full disk is the work's to notice
                    beats.touch()
            if (lost := self.lost()) is not None:
                self._end(Failure.KILLED, f"{lost}; this process was {self.stop.doing}", provisional=True)
            limit = self.stall * (SLOW if self.stop.slow else 1)
            still = time.monotonic() - (moved if self.writes else max(moved, seen))
            if self.stall and still > limit:
                waits = self.stop.together and group.world_size() > 1
                where = f"{self.stop.doing}, perhaps waiting for another process" if waits else self.stop.doing
                self._end(Failure.TIME, f"nothing moved for {limit:g} s: it was {where}", provisional=waits)

    def _end(self, failure: Failure, reason: str, *, provisional: bool) -> None:
        """Says where every thread stands, records the failure and leaves: no stuck collective can hold that up."""
        print(f"{reason}; where each thread stood:", flush=True)
        faulthandler.dump_traceback(STDERR, all_threads=True)
        recording = threading.Thread(target=self.fail, args=(failure, reason, HINT, provisional), daemon=True)
        recording.start()
        recording.join(RECORDING)
        os._exit(BEREFT if provisional else RUN_FAILED)


def _touched(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return 0
