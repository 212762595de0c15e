"""The plain tar inside a compressed one, read in order."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

AT_ONCE = 2**20  # bytes
BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowException)


class Cut(Exception):  # noqa: N818
    """The compressed bytes end early or are damaged; what came before is whole. The message is the reason."""


class _File(io.RawIOBase):
    """Chunks as a file that is read once."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = memoryview(next(self._chunks, b""))
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


def unpacked(name: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """What the chunks of the file `name` hold. Raises `Cut` after all that could be read."""
    with _File(chunks) as file:
        plain = _opened(name, file)
        while True:
            try:
                data = plain.read(AT_ONCE) if isinstance(plain, pa.NativeFile) else plain.read1(AT_ONCE)
            except BROKEN as error:
                raise Cut(f"its compression is cut off or damaged ({str(error) or type(error).__name__})") from error
            if not data:
                return
            yield data


def _opened(name: str, file: _File) -> Any:
    buffered = io.BufferedReader(file, AT_ONCE)
    if name.endswith((".bz2", ".tbz2")):
        return bz2.BZ2File(buffered)
    if name.endswith((".xz", ".txz")):
        return lzma.LZMAFile(buffered)
    if name.endswith(".zst"):
        return pa.CompressedInputStream(pa.PythonFile(buffered, "r"), "zstd")
    return gzip.GzipFile(fileobj=buffered)
