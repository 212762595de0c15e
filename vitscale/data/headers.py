"""The headers of a tar: where each file in it lies.

Python's tarfile takes a damaged header for the archive's end, and follows damaged sizes backwards, into memory without
bound, or down a recursion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

BLOCK = 512
LONGEST_NAME = 4096  # PATH_MAX of Linux, in bytes; all keys of a set have room for its longest one
LONGEST_HEADER = 1 << 20  # of a name or of pax records; nothing that writes shards comes near

Read = Callable[[int, int], bytes]
"""(offset, size) -> bytes; fewer than `size` where the tar ends."""


class Damage(Exception):  # noqa: N818
    """Nothing after this place of a tar can be read; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file: `offset` and `size` are of its data, in bytes. In a tar that was cut they reach beyond it."""

    name: str
    offset: int
    size: int


def members(read: Read, end: int) -> Iterator[Member]:
    """The regular files of a tar of `end` bytes in order: old, ustar, GNU and pax. Links, devices and folders are
    passed over.

    Raises `Damage` where the tar is cut off or no header follows.
    """
    offset, name, size = 0, None, None
    while True:
        block = read(offset, BLOCK) if offset < end else b""
        if len(block) < BLOCK:
            raise Damage(f"the shard is truncated after {end:,} bytes")
        if not block.strip(b"\0"):
            return
        kind, length, data = block[156:157], _check(block, offset), offset + BLOCK
        if kind in b"LKxXg":
            if data + length > end:
                raise Damage(f"the shard is truncated after {end:,} bytes")
            name, size = _extended(kind, read, data, length, name, size)
            offset = data + _padded(length)
            continue
        length = length if size is None else size
        named = _name(block) if name is None else name
        if kind in b"0\x007" and not named.endswith("/"):
            yield Member(named, data, length)
        # Links, devices, folders and pipes state sizes without having data.
        offset = data if kind in b"123456" else data + _padded(length)
        name, size = None, None


def _check(block: bytes, offset: int) -> int:
    """The size that a header states, once its checksum is right."""
    try:
        stated = _number(block[148:156])
        length = _number(block[124:136])
    except ValueError:
        raise Damage(f"the shard is damaged at byte {offset:,}") from None
    head = block[:148] + b" " * 8 + block[156:]
    # Some old tars summed signed bytes.
    if stated != sum(head) and stated != sum(head) - 256 * sum(byte > 127 for byte in head):
        raise Damage(f"the shard is damaged at byte {offset:,}")
    if block[156:157] == b"S":
        raise Damage(f"the shard has a sparse file at byte {offset:,}, which is not read")
    return length


def _number(field: bytes) -> int:
    """Octal digits; or, where the first bit is set, binary as GNU writes what octal has no room for."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    if not digits:
        return 0
    if digits.strip(b"01234567"):
        raise ValueError(digits)
    return int(digits, 8)


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "backslashreplace")


def _name(block: bytes) -> str:
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _extended(
    kind: bytes, read: Read, offset: int, length: int, name: str | None, size: int | None
) -> tuple[str | None, int | None]:
    """Name and size of the next file after a header that only serves to tell them."""
    if length > LONGEST_HEADER:
        raise Damage(f"the shard is damaged at byte {offset - BLOCK:,}: a header of {length:,} bytes")
    if kind in b"Kg":  # the target of a link; records for all files, which hold no names or sizes
        return name, size
    data = read(offset, length)
    if kind == b"L":
        name = _text(data)
    else:
        for keyword, value in _records(data, offset):
            if keyword == b"path":
                name = _text(value)
            elif keyword == b"size":
                size = int(value) if value.isdigit() and len(value) < 20 else None
            elif keyword.startswith(b"GNU.sparse"):
                raise Damage(f"the shard has a sparse file at byte {offset:,}, which is not read")
    if name is not None and len(name) > LONGEST_NAME:
        raise Damage(f"the shard is damaged at byte {offset:,}: a name of {len(name):,} letters")
    return name, size


def _records(data: bytes, offset: int) -> Iterator[tuple[bytes, bytes]]:
    """The records of a pax header, each "length keyword=value\\n"."""
    start = 0
    while start < len(data) and data[start]:
        digits = data[start : start + 20].partition(b" ")[0]
        end = start + (int(digits) if digits.isdigit() else 0)
        keyword, equals, value = data[start + len(digits) + 1 : end].partition(b"=")
        if end <= start or end > len(data) or not equals or not value.endswith(b"\n"):
            raise Damage(f"the shard is damaged at byte {offset:,}: its pax header cannot be read")
        yield keyword, value[:-1]
        start = end
