"""Open files that threads share, closed when they have not been read for long."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

MOST = 128  # a process may have 1,024, and a set as many shards; an evicted piece takes up room until it is closed


class Descriptor:
    """Closed when the last thread that reads from it lets it go. `os.pread` moves no file position."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.facts = os.fstat(number)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.number, size, offset)

    def __del__(self) -> None:
        os.close(self.number)


class Descriptors:
    """The descriptors that were used last; safe in threads and after a fork."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._open: OrderedDict[Hashable, Descriptor] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return Descriptors, (self.most,)

    def get(self, key: Hashable, opened: Callable[[], int]) -> Descriptor:
        """That of `key`; `opened` gives it where there is none, outside of the lock."""
        if self._process != os.getpid():  # a thread that is not in this process may hold the lock
            self._lock, self._process = threading.Lock(), os.getpid()
        with self._lock:
            found = self._open.get(key)
            if found is not None:
                self._open.move_to_end(key)
                return found
        found = Descriptor(opened())
        with self._lock:
            found = self._open.setdefault(key, found)
            while len(self._open) > self.most:
                self._open.popitem(last=False)
        return found

    def close(self) -> None:
        self._open.clear()
