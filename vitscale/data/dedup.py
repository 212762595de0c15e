"""Near-duplicates of test images among training images, by a perceptual hash that is confirmed on the pixels.

The paper de-duplicates its pre-training sets against the tests of the downstream tasks (arXiv 2010.11929, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt64
from PIL import Image

from vitscale.data.decode import BadImage, decode
from vitscale.data.shards import Shards

THUMB = 32  # pixels along a side of what is hashed and compared
BITS = 8  # along a side of the hash: the 64 lowest frequencies
CHUNK = 256
MAX_DISTANCE = 10  # of 64 bits; recompressed and resized copies of photographs stay below it
# Of the thumbnails: the hash alone takes small, smooth images for one another. Recompressed and resized copies of
# photographs lie above 0.99; of different Fashion-MNIST pictures, all alike in outline, 0.4 % have such a twin.
MIN_CORRELATION = 0.99
FLAT = 2.0  # standard deviation in grey levels below which a picture has no pattern to correlate

# The lowest basis functions of the DCT-II.
WAVES = np.cos(np.pi / THUMB * np.outer(np.arange(BITS), np.arange(THUMB) + 0.5)).astype(np.float32)

Thumbs = UInt8[np.ndarray, "n side side"]
Progress = Callable[[int, int], None]


@runtime_checkable
class Pictures(Protocol):
    """A numbered set of decoded images."""

    def __len__(self) -> int: ...

    def picture(self, i: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """None for one that cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Match:
    """Training image `image` is nearly test image `of`: `distance` in bits, `correlation` of the thumbnails."""

    image: int
    of: int
    distance: int
    correlation: float


@dataclass(frozen=True)
class HashedImages:
    """Test images, hashed once as they are and once mirrored."""

    hashes: UInt64[np.ndarray, " m"]
    thumbs: Thumbs
    numbers: Int64[np.ndarray, " m"]

    @classmethod
    def of(cls, sets: Sequence[Pictures], progress: Progress | None = None) -> HashedImages:
        """All sets as one, numbered through in their order."""
        parts = [(start + kept, thumbs) for start, kept, thumbs in _all_thumbs(sets, progress)]
        numbers = np.concatenate([np.zeros(0, np.int64), *(kept for kept, _ in parts)])
        thumbs = np.concatenate([np.zeros((0, THUMB, THUMB), np.uint8), *(found for _, found in parts)])
        both = np.concatenate([thumbs, thumbs[:, :, ::-1]])
        return cls(perceptual_hashes(both), both, np.concatenate([numbers, numbers]))


def near_duplicates(
    train: Pictures,
    tests: HashedImages,
    *,
    max_distance: int = MAX_DISTANCE,
    min_correlation: float = MIN_CORRELATION,
    progress: Progress | None = None,
) -> list[Match]:
    """The best match of each training image that has one, in the order of the training images."""
    found = []
    for _, kept, thumbs in _all_thumbs([train], progress):
        for row, column in _candidates(perceptual_hashes(thumbs), tests.hashes, max_distance):
            similar = correlations(thumbs[row], tests.thumbs[column])
            best = int(similar.argmax())
            if similar[best] >= min_correlation:
                other = int(column[best])
                distance = int(np.bitwise_count(perceptual_hashes(thumbs[row : row + 1])[0] ^ tests.hashes[other]))
                found.append(Match(int(kept[row]), int(tests.numbers[other]), distance, float(similar[best])))
    return found


def perceptual_hashes(thumbs: Thumbs) -> UInt64[np.ndarray, " n"]:
    """64 bits a picture: which of the lowest 8 x 8 DCT coefficients lie above their median (pHash, Zauner 2010)."""
    if not len(thumbs):
        return np.zeros(0, np.uint64)
    low = (WAVES @ thumbs.astype(np.float32) @ WAVES.T).reshape(len(thumbs), -1)
    bits: Bool[np.ndarray, "n 64"] = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def correlations(thumb: UInt8[np.ndarray, "side side"], others: Thumbs) -> Float32[np.ndarray, " m"]:
    """Pearson's, over pixels. Of two flat pictures 1 if they are equally bright, of a flat one and another 0."""
    a = thumb.reshape(1, -1).astype(np.float32)
    b = others.reshape(len(others), -1).astype(np.float32)
    brightness = np.abs(a.mean() - b.mean(axis=1))
    flat_a, flat_b = a.std() < FLAT, b.std(axis=1) < FLAT
    a, b = a - a.mean(), b - b.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(a) * np.linalg.norm(b, axis=1)
    pearson = (b @ a[0]) / np.maximum(norms, 1e-6)
    flat = np.where(flat_a & flat_b & (brightness < FLAT), 1.0, 0.0)
    return np.where(flat_a | flat_b, flat, pearson).astype(np.float32)


def _candidates(
    hashes: UInt64[np.ndarray, " n"], others: UInt64[np.ndarray, " m"], max_distance: int
) -> Iterator[tuple[int, Int64[np.ndarray, " c"]]]:
    """Rows of `hashes` with the places of all `others` within the distance.

    Every pair is compared: for 50,000 test images that is a tenth of what decoding the training image costs.
    """
    for row, value in enumerate(hashes):
        near = np.flatnonzero(np.bitwise_count(others ^ value) <= max_distance)
        if len(near):
            yield row, near


def _all_thumbs(
    sets: Sequence[Pictures], progress: Progress | None
) -> Iterator[tuple[int, Int64[np.ndarray, " k"], Thumbs]]:
    """(number of the set's first image, images that could be decoded, their thumbnails), some hundreds at a time."""
    total, start = sum(map(len, sets)), 0
    with ThreadPoolExecutor(thread_name_prefix="dedup") as pool:
        for pictures in sets:
            for first in range(0, len(pictures), CHUNK):
                numbers = range(first, min(first + CHUNK, len(pictures)))
                thumbs = list(pool.map(lambda i, of=pictures: _thumb(of, i), numbers))
                kept = [i for i, thumb in zip(numbers, thumbs, strict=True) if thumb is not None]
                if kept:
                    stacked = np.stack([thumb for thumb in thumbs if thumb is not None])
                    yield start, np.array(kept, dtype=np.int64), stacked
                if progress is not None:
                    progress(start + numbers.stop, total)
            start += len(pictures)


def _thumb(pictures: Pictures, i: int) -> UInt8[np.ndarray, "side side"] | None:
    pixels = pictures.picture(i)
    if pixels is None:
        return None
    grey = Image.fromarray(pixels).convert("L")
    return np.asarray(grey.resize((THUMB, THUMB), Image.Resampling.BILINEAR))


class ShardPictures:
    """Images of shards, decoded as they are asked for."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def picture(self, i: int) -> UInt8[np.ndarray, "h w 3"] | None:
        try:
            return decode(self.shards.read(i))
        except BadImage:
            return None


class ArrayPictures:
    """Images in memory."""

    def __init__(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def picture(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
        pixels: np.ndarray = self.pixels[i]
        return pixels
