"""Seconds by part of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Measures parts of a step; on a GPU there, by events, as what is asked of it returns at once."""

    def __init__(self, device: torch.device) -> None:
        self._events = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._pairs: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if self._events:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._pairs.append((name, begin, end))
        else:
            start = time.perf_counter()
            yield
            self._add(name, time.perf_counter() - start)

    def take(self) -> dict[str, float]:
        """What was measured since the last call; on a GPU the work must be done by now, as after reading its result."""
        for name, begin, end in self._pairs:
            end.synchronize()
            self._add(name, begin.elapsed_time(end) / 1000)
        seconds, self._seconds, self._pairs = self._seconds, {}, []
        return seconds

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
