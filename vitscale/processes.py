"""Processes that must not outlive who started them."""

from __future__ import annotations

import ctypes
import signal
import sys

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def signal_at_parent_death(number: signal.Signals) -> None:
    """Has the kernel send this signal to the calling process when its parent dies, however it dies; Linux only."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(number))
