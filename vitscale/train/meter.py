"""What a training run costs as it goes: rates, seconds by part, memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vitscale.train import group
from vitscale.train.device import memory_peak, peak_flops
from vitscale.train.engine import Engine


class Meter:
    """Measures the steps since the last line of the log; of several processes this one's."""

    def __init__(self, engine: Engine, flops_per_step: float) -> None:
        self._engine, self._flops = engine, flops_per_step
        self._peak = peak_flops(engine.recipe.precision)
        self._since, self._steps = time.monotonic(), 0
        self._seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._add({name: time.monotonic() - start})

    def stepped(self, seconds: Mapping[str, float]) -> None:
        self._steps += 1
        self._add(seconds)

    def take(self) -> dict[str, Any]:
        """Facts of a log line: means over the steps since the last one; bytes are those of the whole process so far.

        `mfu` is the share of the devices' peak for matrix products that the model's FLOPs take, if that is known.
        """
        now = time.monotonic()
        rate = self._steps / max(now - self._since, 1e-9)
        peak = self._peak and self._peak * group.world_size()
        facts = {
            "images_per_second": rate * self._engine.recipe.batch_size,
            "mfu": rate * self._flops / peak if peak and self._flops else None,
            "seconds": {name: spent / self._steps for name, spent in self._seconds.items()},
            "memory_peak": memory_peak(),
        }
        self._since, self._steps, self._seconds = now, 0, {}
        return facts

    def _add(self, seconds: Mapping[str, float]) -> None:
        for name, spent in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + spent
