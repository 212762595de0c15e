"""One attempt at a time holds a run: files `lease-<generation>` in its folder, of which the highest counts.

Who holds a generation moves a counter in its file. A generation is over when its file says so; when its process has
died, which whoever runs on the same kernel sees at once by the lock on the file; or when somebody has watched the
counter stand still for three intervals of his own monotonic clock. No lock has to reach another host, and no wall
clock is read.

The next generation takes its name by link(2), which one of several contenders wins, and removes the file before it. So
a holder that was taken for dead no longer finds its own file, and from then on must not write.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO
from uuid import uuid4

from vitscale.errors import HELD, MISSING, VitscaleError

BEAT = 10.0
"""Seconds between two movements of the counter."""
STILL = 3
"""Intervals without a movement after which a holder is taken for dead."""
PREFIX = "lease-"


class Lost(VitscaleError):  # noqa: N818
    """Somebody has taken the run over, or away; this process may not write to it any more."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a lease file says."""

    host: str
    pid: int
    kernel: str
    """Where the lock on the file can be seen; empty where the file system has no locks."""
    token: str
    """Of this holder alone."""
    interval: float
    over: bool = False
    beat: str = "000000000000"

    def written(self) -> bytes:
        """Always as long: a write in place leaves no rest, and a full disk does not refuse it."""
        return json.dumps(asdict(self)).encode().ljust(512)


UNKNOWN = Record(host="another host", pid=0, kernel="", token="", interval=BEAT)
"""A file that is just being replaced or cannot be read: somebody may hold it."""


@dataclass(frozen=True)
class Claim:
    """A generation of a run, as the processes that work under it know it."""

    path: Path
    token: str

    def holds(self) -> bool:
        """Whether nobody has taken the run over. It opens the file: what several hosts share is looked at anew then."""
        with suppress(OSError, ValueError, KeyError):
            return bool(json.loads(self.path.read_bytes())["token"] == self.token)
        return False

    def check(self) -> None:
        """Before anything is written.

        Raises:
            Lost: the run was taken over (exit 75), or its folder is gone (exit 5).
        """
        if not self.path.parent.is_dir():
            raise gone(self.path.parent)
        if not self.holds():
            raise Lost(
                f"run {self.path.parent.name} was taken over: this process had not moved for {STILL * BEAT:g} s",
                hint="nothing to do: whoever took it over goes on from the last checkpoint",
                exit_code=HELD,
            )


def gone(folder: Path) -> Lost:
    """Of a run whose folder was removed, or moved away, while it trained."""
    hint = "put it back, or start the same command again: the run is then trained anew"
    return Lost(f"{folder}: the run's folder is gone", hint=hint, exit_code=MISSING)


@cache
def kernel() -> str:
    """The same for all processes that see each other's locks, until the next boot."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def holder(folder: Path) -> Record | None:
    """Of whoever may be working on the run; None where it is certain that nobody is."""
    return _look(folder)[1]


def moved(folder: Path) -> int | None:
    """When the newest holder last moved its counter, in ns of its file system's clock; None where there was none."""
    try:
        return _path(folder, max(_generations(folder))).stat().st_mtime_ns
    except (OSError, ValueError):
        return None


@contextmanager
def hold(folder: Path) -> Iterator[Claim]:
    """Holds the run, and shows it.

    Raises:
        VitscaleError: another process holds it (exit 75).
    """
    generation, other = _look(folder)
    mine = None if other else _take(folder, generation + 1)
    if mine is None:
        raise held_by(folder.name, other)
    claim, record, file = mine
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(file, record, over), daemon=True, name="lease")
    thread.start()
    try:
        yield claim
    finally:
        over.set()
        thread.join()
        with suppress(OSError), file:
            _write(file, replace(record, over=True))


def held_by(run: str, other: Record | None) -> VitscaleError:
    who = f"process {other.pid} on {other.host}" if other and other.pid else "another process"
    return VitscaleError(
        f"run {run} is being worked on by {who}", hint="wait for it, or stop that process", exit_code=HELD
    )


class Watch:
    """Runs that others hold, watched by whoever wants them."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[Record, float]] = {}

    def is_held(self, folder: Path) -> bool:
        """Whether somebody works on the run; one who has stood still for too long loses it."""
        generation, record = _look(folder)
        if record is None:
            self._seen.pop(folder, None)
            return False
        before, since = self._seen.get(folder, (None, 0.0))
        if record != before:
            self._seen[folder] = record, time.monotonic()
            return True
        if time.monotonic() - since < STILL * record.interval:
            return True
        try:
            taken = _take(folder, generation + 1, over=True)
        except OSError:  # who starts to work here will be told what the disk says
            return False
        if taken is not None:
            taken[2].close()
        return taken is None


def _look(folder: Path) -> tuple[int, Record | None]:
    """(newest generation, or 0; who may hold it)."""
    generation = max(_generations(folder), default=0)
    if not generation:
        return 0, None
    try:
        with _path(folder, generation).open("rb") as file:
            record = Record(**json.loads(file.read()))
            free = record.over or (record.kernel == kernel() and not _is_locked(file))
            return generation, None if free else record
    except FileNotFoundError:  # the next one has just come; another host's list of the folder may be old
        newer = max(_generations(folder), default=0) != generation
        return _look(folder) if newer else (generation, UNKNOWN)
    except (ValueError, TypeError):
        return generation, UNKNOWN


def _take(folder: Path, generation: int, *, over: bool = False) -> tuple[Claim, Record, IO[bytes]] | None:
    """Makes a generation's file, locked and whole before anybody sees it; None where another process was quicker."""
    token = uuid4().hex
    record = Record(host=socket.gethostname(), pid=os.getpid(), kernel="", token=token, interval=BEAT, over=over)
    path, unseen = _path(folder, generation), folder / f".lease.{token}"
    file = unseen.open("w+b")
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            record = replace(record, kernel=kernel())
        _write(file, record)
        os.link(unseen, path)
    except BaseException as error:
        file.close()
        if isinstance(error, FileExistsError):
            return None
        raise
    finally:
        unseen.unlink(missing_ok=True)
    found = _generations(folder)
    if max(found, default=0) > generation:  # what was seen free has had later holders since, and its name was free
        path.unlink(missing_ok=True)
        file.close()
        return None
    for older in found:
        if older < generation:
            _path(folder, older).unlink(missing_ok=True)
    return Claim(path, token), record, file


def _beat(file: IO[bytes], record: Record, over: threading.Event) -> None:
    beat = 0
    while not over.wait(record.interval):
        beat += 1
        with suppress(OSError):  # the disk is the work's to notice
            _write(file, replace(record, beat=f"{beat:012d}"))


def _write(file: IO[bytes], record: Record) -> None:
    os.pwrite(file.fileno(), record.written(), 0)
    os.fsync(file.fileno())


def _is_locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _generations(folder: Path) -> list[int]:
    numbers = [path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*")]
    return [int(number) for number in numbers if number.isdecimal()]


def _path(folder: Path, generation: int) -> Path:
    return folder / f"{PREFIX}{generation}"
