"""Between a process that works and whoever watches it: it hears that it should stop, and tells what it is doing."""

from __future__ import annotations

import signal
import time
from types import FrameType

from vitscale.processes import STOP_SIGNALS
from vitscale.train import group


class Interrupted(Exception):  # noqa: N818
    """A signal asked the run to stop, and its checkpoint is written."""


class Stop:
    """Whether a signal has asked this process to stop, and the last movement of its work."""

    def __init__(self) -> None:
        self.requested = False
        self.at("starting", slow=True)

    def listen(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        # The launcher starts workers with these blocked: one that came while Python was starting arrives now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def at(self, doing: str, *, slow: bool = False, together: bool = False) -> None:
        """Notes a movement: what comes next; whether it may take minutes (connections, compilation), and whether it
        waits for other processes."""
        self.doing, self.slow, self.together, self.moved = doing, slow, together, time.monotonic()

    def asked(self) -> bool:
        """Whether some process of the run has been asked to stop; a movement, and a call that every process makes."""
        self.moved = time.monotonic()
        return group.any_of(self.requested)

    def raise_if_requested(self) -> None:
        """For work of a single process that has no checkpoint of its own; a movement.

        Raises:
            Interrupted: a signal has come.
        """
        self.moved = time.monotonic()
        if self.requested:
            raise Interrupted

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True
