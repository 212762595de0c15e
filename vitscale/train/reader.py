"""Images are read by a thread while others are worked on, and a reading that hangs does not hold up a signal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from vitscale.train import group
from vitscale.train.stop import Interrupted, Stop

PATIENCE = 5.0
"""Seconds for data that hang before a signal is heeded without them."""

Key = TypeVar("Key")
Batch = TypeVar("Batch")


class Reader(Generic[Key, Batch]):
    """Reads the batch of each key in turn, one ahead."""

    def __init__(self, read: Callable[[Key], Batch], keys: Iterable[Key], stop: Stop) -> None:
        self._read, self._keys, self._stop = read, iter(keys), stop
        self._thread = ThreadPoolExecutor(1, initializer=group.use_own_device)
        self._coming = self._next()

    def _next(self) -> Future[Batch] | None:
        for key in self._keys:
            return self._thread.submit(self._read, key)
        return None

    def take(self) -> Batch:
        """The batch of the next key.

        Raises:
            Interrupted: a signal came, and the data hang. One of several processes waits on: the others wait for it.
        """
        assert self._coming is not None
        patience = PATIENCE if group.world_size() == 1 else None
        while not wait([self._coming], patience).done:
            if self._stop.requested:
                raise Interrupted
        batch, self._coming = self._coming.result(), self._next()
        return batch

    def close(self) -> None:
        """Leaves a reading that hangs to itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)
