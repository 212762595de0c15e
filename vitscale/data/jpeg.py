"""JPEGs decoded by libjpeg-turbo with as little work as the pixels that are asked for need."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

SOF = {0xC0: True, 0xC1: True, 0xC2: False}  # baseline, extended, progressive: is it read in one go?
ALL_FREQUENCIES = b"\x00\x3f\x00"  # how the header of a scan ends that holds all of its channels' codes
SOI, SOS, EOI = b"\xff\xd8", 0xDA, 0xD9
TABLES = (0xFE, 0xDB, 0xC4, 0xDD)  # comment, DQT, DHT, DRI
APP = range(0xE0, 0xF0)
PLAIN_APP = {0xE0: (b"JFIF\0", 16), 0xEE: (b"Adobe", 14)}  # by marker: how they begin, and how long they are
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # in a scan: anything but an escaped 255, fill and restarts

CONTEXT = 8  # rows; those of chroma (at most 4 of luma each) are interpolated with the next one
WORTH = 16  # rows; decoding fewer than these is not worth a copy of the bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """What the headers of a usual JPEG say: 8 bits, grey or three channels, Huffman codes."""

    width: int
    height: int
    height_at: int
    """Where the height stands in the file, 2 bytes."""
    scan: int | None
    """Where the codes of all pixels begin, if they are written in one go from top to bottom."""
    plain: bool
    """Nothing but tables, JFIF's header and Adobe's: what Pillow reads in a header is all here."""


def read_frame(data: bytes) -> Frame | None:
    """None for anything unusual, which is left to Pillow."""
    if data[:2] != SOI:
        return None
    at, found, plain = 2, None, True
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == SOS:
            return found and _with_scan(data, at, length, *found, plain=plain)
        if marker in APP:
            start, size = PLAIN_APP.get(marker, (b"", 0))
            plain &= size == length and data.startswith(start, at + 4)
        elif marker in SOF and found is None and data[at + 4] == 8 and data[at + 9] in (1, 3):
            found = at + 5, SOF[marker], data[at + 9]
        elif marker not in TABLES:
            return None
        at += 2 + length
    return None


def _with_scan(
    data: bytes, at: int, length: int, height_at: int, sequential: bool, channels: int, *, plain: bool
) -> Frame | None:
    height, width = (int.from_bytes(data[i : i + 2], "big") for i in (height_at, height_at + 2))
    scan = at + 2 + length
    one_pass = sequential and data[at + 4] == channels and data[scan - 3 : scan] == ALL_FREQUENCIES
    return Frame(width, height, height_at, scan if one_pass else None, plain) if width and height else None


def decode_jpeg(
    data: bytes, frame: Frame, *, rows: int, smaller: int = 1, exact: bool = True
) -> UInt8[np.ndarray, "h w 3"] | None:
    """The picture as RGB, of which only the first `rows` rows may be filled; with `smaller`, at 1/2, 1/4 or 1/8.

    At the full size and `exact`, the pixels are those of Pillow; else colours are interpolated less smoothly.
    None where the file is not quite in order: Pillow decides then.
    """
    import simplejpeg  # a tenth of a second that sets without JPEGs need not wait

    height, width = frame.height, frame.width
    if height * width > 64 * 8 * len(data):  # fewer bits than blocks: no memory for what cannot be there
        return None
    cut = rows + CONTEXT * smaller + WORTH <= height and frame.scan is not None and _ends_well(data, frame.scan)
    # The whole height in any case, as Pillow's resize depends on it.
    pixels = np.empty((_ceil(height, smaller), _ceil(width, smaller), 3), dtype=np.uint8)
    if cut:
        height = rows + CONTEXT * smaller
        data = data[: frame.height_at] + height.to_bytes(2, "big") + data[frame.height_at + 2 :]
    shape = (_ceil(height, smaller), _ceil(width, smaller), 3)
    pixels[shape[0] :] = 0
    try:
        found = simplejpeg.decode_jpeg(
            data,
            fastupsample=not exact,
            # Of libjpeg's factors, the smallest that gives so many pixels is taken; without a minimum, 1.
            min_height=shape[0] if smaller > 1 else 0,
            min_width=shape[1] if smaller > 1 else 0,
            min_factor=smaller,
            buffer=pixels,
            # The decoder stops at the height in the header, and complains of the codes that are left over.
            strict=not cut,
        )
    except ValueError:
        return None
    return pixels if found.shape == shape else None


def _ends_well(data: bytes, scan: int) -> bool:
    """Whether only restarts and the end mark stand in the scan: nothing is left then that Pillow could refuse."""
    marker = MARKER.search(data, scan)
    return marker is not None and data[marker.start() + 1] == EOI


def _ceil(length: int, smaller: int) -> int:
    return -(-length // smaller)
