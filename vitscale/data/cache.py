"""Pieces of shards on the disk, up to a bound. Each is there whole or not at all, fetched by whoever is first."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vitscale.errors import MISSING, VitscaleError
from vitscale.files import FULL, sync

PIECE = 16 * 2**20
"""Bytes. A block of 256 samples of ImageNet is 28 MB: larger pieces fetch more that is not read soon, smaller ones wait
for more answers."""
SLACK = 0.9  # of the bound: an eviction goes down to it, so that not each piece begins another one
PARTIAL = ".partial"


class Cache:
    """Entries have a key, which stands for one version of one shard, and a number.

    Raises `VitscaleError` (exit 5) for a folder that is full or cannot be written to. An entry that is there is read
    from a read-only folder all the same.
    """

    def __init__(self, folder: Path, bound: int) -> None:
        self.folder = folder / "shards"
        self.bound = bound

    def open(self, key: str, number: int, length: int, make: Callable[[], bytes]) -> int:
        """A descriptor of the entry of `length` bytes, which `make` gives where it is not there.

        Of all threads and processes that want it at once, one makes it and the others wait. It may be evicted at any
        time: its bytes are there for as long as the descriptor is open.
        """
        path = self._path(key) / str(number)
        while True:
            with self._disk_errors():
                descriptor = _opened(path, length)
            if descriptor is not None:
                return descriptor
            self._make(path, length, make)

    def holds(self, key: str, number: int, length: int) -> bool:
        try:
            return (self._path(key) / str(number)).stat().st_size == length
        except OSError:
            return False

    def size(self) -> int:
        """Bytes of all entries, those that are being made included."""
        return sum(size for _, size, _ in self._entries())

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """For one thread of all processes at a time."""
        with self._disk_errors():
            self._path(key).mkdir(parents=True, exist_ok=True)
            file = (self._path(key) / "lock").open("ab")
            fcntl.flock(file, fcntl.LOCK_EX)
        with file:
            yield

    def _path(self, key: str) -> Path:
        return self.folder / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def _make(self, path: Path, length: int, make: Callable[[], bytes]) -> None:
        partial = path.with_name(path.name + PARTIAL)
        with self._disk_errors():
            descriptor = _claimed(partial)
        try:
            # Whoever held it before may have made the entry.
            if not path.exists():
                with self._disk_errors():
                    self._make_room(descriptor, length)
                data = make()
                with self._disk_errors():
                    _fill(descriptor, data, length)
                    partial.replace(path)
                    sync(path.parent)
                return
            partial.unlink(missing_ok=True)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def _make_room(self, descriptor: int, length: int) -> None:
        """Evicts what was not used for longest. The partial file has its length from now on: an eviction counts it."""
        with (self.folder / "size").open("a+") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            ledger.seek(0)
            text = ledger.read().strip()
            # What a killed process had entered is too much, and found out here.
            total = int(text) if text.isdigit() else self.bound
            if total + length > self.bound:
                total = self._evict(length)
            if total + length > self.bound:
                hint = "set VITSCALE_CACHE_SIZE to some gigabytes, or leave it out"
                message = f"{self.folder}: {self.bound:,} bytes are too few for the pieces that are read at once"
                raise VitscaleError(message, hint=hint, exit_code=MISSING)
            os.ftruncate(descriptor, length)
            ledger.truncate(0)
            ledger.write(str(total + length))

    def _evict(self, length: int) -> int:
        """Bytes that are left."""
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        if total + length <= self.bound:
            return total
        for _, size, path in entries:
            if total <= max(self.bound * SLACK - length, 0):
                break
            if path.suffix != PARTIAL:
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # not empty
                    path.parent.rmdir()
                total -= size
        return total

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """(last use, bytes, path). What a process that died had begun is removed."""
        for path in (path for folder in _listed(self.folder) for path in _listed(folder)):
            with contextlib.suppress(FileNotFoundError):
                if path.suffix == PARTIAL:
                    with contextlib.suppress(FileNotFoundError):
                        _remove_abandoned(path)
                if path.name != "lock":
                    entry, facts = _present(path)
                    yield facts.st_mtime, facts.st_size, entry

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in FULL
            what = "no space left to write to" if full else error.strerror or str(error)
            hint = "set VITSCALE_CACHE to a folder that you may write to"
            if full:
                hint = "free some space, lower VITSCALE_CACHE_SIZE, or set VITSCALE_CACHE to a folder elsewhere"
            raise VitscaleError(f"the cache {self.folder}: {what}", hint=hint, exit_code=MISSING) from error


def _opened(path: Path, length: int) -> int | None:
    """The whole entry, marked as used; one of another length is removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size != length:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        return None
    with contextlib.suppress(OSError):  # a read-only cache
        os.utime(descriptor)
    return descriptor


def _claimed(partial: Path) -> int:
    """A descriptor of the file that is to become an entry, locked by us.

    The kernel unlocks it when a process dies; what that had written is then written anew.
    """
    while True:
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the folder was empty, and an eviction has removed it
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), partial.stat()):
                return descriptor
        except FileNotFoundError:  # whoever held it has renamed it
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _listed(folder: Path) -> list[Path]:
    """None for a folder that is gone, or is none: others evict too."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _present(path: Path) -> tuple[Path, os.stat_result]:
    """The file, or the entry that it has become since it was listed: one that nobody counts would break the bound."""
    try:
        return path, path.stat()
    except FileNotFoundError:
        if path.suffix != PARTIAL:
            raise
        return path.with_suffix(""), path.with_suffix("").stat()


def _remove_abandoned(partial: Path) -> None:
    with partial.open("rb") as file, contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), partial.stat()):
            partial.unlink()


def _fill(descriptor: int, data: bytes, length: int) -> None:
    assert len(data) == length
    view, offset = memoryview(data), 0
    while offset < length:
        offset += os.pwrite(descriptor, view[offset:], offset)
    os.fsync(descriptor)
