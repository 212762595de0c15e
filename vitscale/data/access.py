"""Bytes of a data set's shards: from the disk, or through the cache where they lie on a server or are compressed."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.data import remote
from vitscale.data.cache import PIECE, Cache
from vitscale.data.descriptors import Descriptors
from vitscale.data.remote import NoRanges, Stat
from vitscale.data.tars import broken
from vitscale.data.unpack import Cut, unpacked
from vitscale.errors import MISSING, VitscaleError
from vitscale.locations import cache_folder, cache_size, is_compressed, is_url, path_of

FETCHERS = 4
WAITING = 64  # pieces; what is asked for beyond them is asked for again when its time is nearer


@dataclass(frozen=True, slots=True)
class Facts:
    """What the index knows of a shard: bytes as stored and as a plain tar, and what tells this shard from another."""

    stored: int
    size: int
    version: str = ""
    sha256: str = ""

    @classmethod
    def of(cls, shard: Mapping[str, Any]) -> Facts:
        """From its entry in `dataset.json`."""
        size = shard.get("unpacked", shard["bytes"])
        return cls(shard["bytes"], size, shard.get("version", ""), shard["sha256"] or "")

    @property
    def packed(self) -> bool:
        """Whether vitscale wrote the shard, and can write it again."""
        return bool(self.sha256)


class Plain:
    """A tar on the disk. Reading raises `VitscaleError` where it is gone, cut or replaced; so it does in `Cached`."""

    def __init__(self, place: str, facts: Facts, descriptors: Descriptors) -> None:
        self.place = place
        self.facts = facts
        self._descriptors = descriptors
        self._first: tuple[int, ...] | None = None

    def read(self, offset: int, size: int) -> bytes:
        """Fewer bytes than `size` at the end of the tar."""
        try:
            file = self._descriptors.get(self.place, lambda: os.open(self.place, os.O_RDONLY))
            self._check(os.fstat(file.number))
            return file.read(offset, size)
        except OSError as error:
            raise broken(self.place, error.strerror or str(error), packed=self.facts.packed) from error

    def _check(self, facts: os.stat_result) -> None:
        """That it is the shard that was indexed, and the one that was read before."""
        if facts.st_size != self.facts.stored:
            what = "is truncated" if facts.st_size < self.facts.stored else "has changed"
            sizes = f"{facts.st_size:,} bytes, and the index says {self.facts.stored:,}"
            raise broken(self.place, f"the shard {what}: {sizes}", packed=self.facts.packed)
        now = (facts.st_ino, facts.st_mtime_ns)
        first = self._first is None and self.facts.version in ("", str(facts.st_mtime_ns))
        if first:
            self._first = now
        elif self._first != now:
            raise broken(self.place, "the shard was replaced while it was read", packed=self.facts.packed)


class Cached:
    """A shard that is fetched or unpacked into the cache in pieces."""

    def __init__(self, place: str, facts: Facts, descriptors: Descriptors, cache: Cache) -> None:
        self.place = place
        self.facts = facts
        self.in_order = is_compressed(place)
        self.key = f"{place}\0{facts.stored}\0{facts.version or facts.sha256}\0{PIECE}"
        self._descriptors = descriptors
        self._cache = cache

    def read(self, offset: int, size: int) -> bytes:
        size = max(min(size, self.facts.size - offset), 0)
        parts = []
        while size > 0:
            number, start = divmod(offset, PIECE)
            piece = self._descriptors.get((self.key, number), lambda: self.piece(number))  # noqa: B023
            parts.append(piece.read(start, min(size, PIECE - start)))
            assert parts[-1], "the cache holds entries of the right length only"
            offset, size = offset + len(parts[-1]), size - len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def piece(self, number: int) -> int:
        """A descriptor of a piece, which is fetched where the cache lacks it."""
        start, end = number * PIECE, min((number + 1) * PIECE, self.facts.size)

        def ranged() -> bytes:
            return remote.read(self.place, start, end, Stat(self.facts.stored, self.facts.version))

        if not self.in_order:
            try:
                return self._cache.open(self.key, number, end - start, ranged)
            except NoRanges:
                self.in_order = True
        return self._piece_in_order(number, end - start)

    def _piece_in_order(self, number: int, length: int) -> int:
        with self._cache.alone(self.key):
            if not self._cache.holds(self.key, number, length):
                self.store()
        return self._cache.open(self.key, number, length, self._does_not_fit)

    def _does_not_fit(self) -> bytes:
        raise VitscaleError(
            f"{self.place}: can only be read in order, and the cache has no room for all of it",
            hint="set VITSCALE_CACHE_SIZE to several times the size of an unpacked shard",
            exit_code=MISSING,
        )

    def store(self) -> tuple[int, str]:
        """Puts all of the shard into the cache; its bytes as a plain tar, and why they end early if they do."""
        number, waiting, damage = 0, bytearray(), ""
        try:
            for data in self._plain():
                waiting += data
                while len(waiting) >= PIECE:
                    self._put(number, bytes(waiting[:PIECE]))
                    del waiting[:PIECE]
                    number += 1
        except Cut as error:
            damage = str(error)
        if waiting:
            self._put(number, bytes(waiting))
        return number * PIECE + len(waiting), damage

    def _plain(self) -> Iterator[bytes]:
        expected = Stat(self.facts.stored, self.facts.version)
        chunks = remote.stream(self.place, expected) if is_url(self.place) else _chunks(self.place, expected)
        return unpacked(path_of(self.place), chunks) if is_compressed(self.place) else chunks

    def _put(self, number: int, data: bytes) -> None:
        if number * PIECE > self._cache.bound:
            self._does_not_fit()
        os.close(self._cache.open(self.key, number, len(data), lambda: data))


def _chunks(path: str, expected: Stat) -> Iterator[bytes]:
    """All of a local file. Raises `VitscaleError` where it is not the expected one: its time is its version."""
    try:
        with Path(path).open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_size != expected.size or expected.version not in ("", str(found.st_mtime_ns)):
                raise broken(path, "the shard was replaced: it is not the one that was indexed", packed=False)
            while data := file.read(remote.CHUNK):
                yield data
    except OSError as error:
        raise broken(path, error.strerror or str(error), packed=False) from error


def shard(place: str, facts: Facts, descriptors: Descriptors) -> Plain | Cached:
    """A shard by its path or URL."""
    if not is_url(place) and not is_compressed(place):
        return Plain(place, facts, descriptors)
    return cached(place, facts, descriptors)


def cached(place: str, facts: Facts, descriptors: Descriptors) -> Cached:
    return Cached(place, facts, descriptors, Cache(cache_folder(), cache_size()))


class Access:
    """Shards by number, from their places and entries in `dataset.json`; safe in threads and after a fork."""

    def __init__(self, shards: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self.shards = shards
        self._descriptors = Descriptors()
        self._shards = [shard(place, Facts.of(entry), self._descriptors) for place, entry in shards]
        self.local = all(isinstance(one, Plain) for one in self._shards)
        self._ahead: _Ahead | None = None

    def place(self, number: int) -> str:
        return self._shards[number].place

    def packed(self, number: int) -> bool:
        return self._shards[number].facts.packed

    def size(self, number: int) -> int:
        """Bytes of the shard as a plain tar."""
        return self._shards[number].facts.size

    def read(self, number: int, offset: int, size: int) -> bytes:
        return self._shards[number].read(offset, size)

    def prefetch(self, pieces: Iterable[tuple[int, int]]) -> None:
        """Has (shard, piece) fetched in the background, where they are not local. Returns at once."""
        if self._ahead is None or self._ahead.process != os.getpid():
            self._ahead = _Ahead(self._shards)
        self._ahead.ask(pieces)

    def close(self) -> None:
        self._descriptors.close()


class _Ahead:
    """Threads that fetch pieces. They end with the process: what one had begun is begun anew by whoever needs it."""

    def __init__(self, shards: Sequence[Plain | Cached]) -> None:
        self.process = os.getpid()
        self._shards = shards
        self._waiting: queue.Queue[tuple[int, int]] = queue.Queue(WAITING)
        self._asked: set[tuple[int, int]] = set()
        for _ in range(FETCHERS):
            threading.Thread(target=self._fetch, daemon=True).start()

    def ask(self, pieces: Iterable[tuple[int, int]]) -> None:
        for piece in pieces:
            if piece in self._asked:
                continue
            try:
                self._waiting.put_nowait(piece)
            except queue.Full:
                return
            self._asked.add(piece)

    def _fetch(self) -> None:
        while True:
            number, piece = self._waiting.get()
            one = self._shards[number]
            if isinstance(one, Cached):
                # Whoever reads the piece meets the error again, and says it.
                with contextlib.suppress(VitscaleError):
                    os.close(one.piece(piece))
            self._asked.discard((number, piece))
