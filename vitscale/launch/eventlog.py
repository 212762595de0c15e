"""What a run says as it goes: its `events.jsonl` and its heartbeat, read by whoever watches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitscale import lease


def events(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of `events.jsonl`, the oldest first."""
    found = []
    for line in _lines_from_the_end(folder / "events.jsonl"):
        with suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and "event" in event:
                found.append(event)
    return found[::-1]


def last_event(folder: Path, kind: str = "step") -> dict[str, Any] | None:
    """The newest whole line of this kind in `events.jsonl`."""
    wanted = f'"event": "{kind}"'.encode()
    for line in _lines_from_the_end(folder / "events.jsonl"):
        if wanted in line:
            try:
                event: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            return event
    return None


def last_rate(folder: Path) -> float | None:
    """Images per second of the newest line of numbers that an attempt's start-up is no part of."""
    for line in _lines_from_the_end(folder / "events.jsonl"):
        if b'"event": "step"' in line and b'"seconds_left": null' not in line:
            with suppress(ValueError):
                return float(json.loads(line)["images_per_second"])
    return None


def newest_steps(folder: Path, most: int | None = None) -> list[dict[str, Any]]:
    """Lines of numbers of the newest attempt, the last first: by their order, as a clock may jump."""
    found: list[dict[str, Any]] = []
    for line in _lines_from_the_end(folder / "events.jsonl"):
        if b'"event": "start"' in line or len(found) == most:
            break
        if b'"event": "step"' in line:
            with suppress(ValueError):
                found.append(json.loads(line))
    return found


def of_attempt(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of this kind that the newest attempt has written, the oldest first."""
    wanted, found = f'"event": "{kind}"'.encode(), []
    for line in _lines_from_the_end(folder / "events.jsonl"):
        if b'"event": "start"' in line:
            break
        if wanted in line:
            with suppress(ValueError):
                found.append(json.loads(line))
    return found[::-1]


def _lines_from_the_end(path: Path, block: int = 2**16) -> Iterator[bytes]:
    """The last line first; a run of days has logged megabytes, and who watches looks every second."""
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        left, rest = file.seek(0, 2), b""
        while left:
            size = min(block, left)
            left = file.seek(left - size)
            first, *lines = (file.read(size) + rest).split(b"\n")
            yield from reversed(lines)
            rest = first
        yield rest


_moved: dict[Path, tuple[int, float]] = {}
"""Of runs that this process has looked at: the heartbeat's time, and when by our monotonic clock it moved last."""


def silent_seconds(folder: Path) -> float | None:
    """Since the run last moved, by its heartbeat; None where it has none.

    No wall clock is read: who looks again counts from when he saw it move. At the first look it is how far the lease,
    which its holder moves every 10 s by the same clock, has gone on without it.
    """
    try:
        moved = (folder / "heartbeat").stat().st_mtime_ns
    except OSError:
        return None
    now = time.monotonic()
    before, since = _moved.get(folder, (None, now))
    if before is None:
        since = now - max((lease.moved(folder) or moved) - moved, 0) / 1e9
    elif moved != before:
        since = now
    _moved[folder] = moved, since
    return now - since
