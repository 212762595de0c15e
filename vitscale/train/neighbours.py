"""Whether the other hosts of a run are alive: each beats at the store where they met, and all listen.

A host that is cut off closes no connection: a collective would wait for it until its timeout, and could not name it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta

from torch import distributed

BEAT = 2.0
"""Seconds between two beats of a host; one of its processes gives them."""
SILENCE = 30.0
"""Seconds without a beat after which a host is given up."""


class Neighbours:
    """The hosts of the run, as this process hears them over a connection of its own."""

    def __init__(self, store: distributed.Store) -> None:
        """`store` is a connection that nobody else uses: a call that finds no answer holds it."""
        self.store, self.node = store, int(os.environ["GROUP_RANK"])
        places: list[tuple[int, str]] = [(0, "")] * distributed.get_world_size()
        distributed.all_gather_object(places, (self.node, socket.gethostname()))
        self.names = {node: _name(host, node, places) for node, host in places}
        now = time.monotonic()
        self.answered = now
        self.heard = dict.fromkeys(self.names, (b"", now))
        self.over = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def lost(self) -> str | None:
        """The host that has gone silent, by name and ranks; None while all beat."""
        now = time.monotonic()
        if now - self.answered > SILENCE:
            return f"{self.names[0]} gave {self.names[self.node]} no answer for {SILENCE:g} s"
        silent = [self.names[node] for node, (_, when) in self.heard.items() if now - when > SILENCE]
        return f"{', '.join(silent)} gave no sign of life for {SILENCE:g} s" if silent else None

    def close(self) -> None:
        self.over.set()

    def _listen(self) -> None:
        beat = 0
        # Without a store nobody is heard, and `lost` says so.
        with suppress(distributed.DistError, RuntimeError):
            while not self.over.wait(BEAT if beat else 0):
                beat += 1
                if os.environ["LOCAL_RANK"] == "0":
                    self.store.set(f"beat/{self.node}", str(beat))
                values = self.store.multi_get([f"beat/{node}" for node in self.heard])
                now = time.monotonic()
                self.answered = now
                for node, value in zip(self.heard, values, strict=True):
                    if value != self.heard[node][0]:
                        self.heard[node] = (value, now)


def connect(address: str, port: int) -> distributed.Store:
    """A further connection to the store at which the processes met."""
    client = distributed.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=60), wait_for_workers=False)
    return distributed.PrefixStore("vitscale", client)


def _name(host: str, node: int, places: list[tuple[int, str]]) -> str:
    ranks = [str(rank) for rank, (its_node, _) in enumerate(places) if its_node == node]
    return f"host {host} (rank{'s' if len(ranks) > 1 else ''} {' and '.join(ranks)})"
