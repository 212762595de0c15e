"""Batches of pixels: decoded, cropped, resized and mirrored, as a pure function of the samples and the seed."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from PIL import Image

from vitscale.data.decode import BadImage, decode
from vitscale.data.order import uniform
from vitscale.data.shards import Shards
from vitscale.errors import MISSING, VitscaleError

Store = tuple[UInt8[np.ndarray, "n h w 3"], Bool[np.ndarray, " n"]]  # decoded images, and which of them are good
Squares = tuple[UInt8[np.ndarray, "b r r 3"], Bool[np.ndarray, " b"]]
Batch = tuple[UInt8[np.ndarray, "b 3 r r"], Float32[np.ndarray, " b"]]

TRIES = 10  # random boxes tried before the centre is taken, as in timm and torchvision
RATIO = (3 / 4, 4 / 3)
DRAWS = 1 + 2 + 2 * TRIES  # flip; x and y of the box; area and ratio of each try
SMALL = 64 * 64  # pixels; below it a resize is shorter than handing it to another thread


def crop_boxes(
    draws: Float64[np.ndarray, "b draws"], width: int, height: int, crop_area: float
) -> Int64[np.ndarray, "b 4"]:
    """Inception crops (left, upper, right, lower) of a width x height image, in pixels.

    The first of ten boxes, of `crop_area` to 1 of the area and ratio 3/4 to 4/3, that fits; else the largest centred
    box whose ratio is in the range (arXiv 1409.4842, as timm's RandomResizedCrop).
    """
    area = width * height * (crop_area + (1 - crop_area) * draws[:, 3 : 3 + TRIES])
    low, high = np.log(RATIO[0]), np.log(RATIO[1])
    ratio = np.exp(low + (high - low) * draws[:, 3 + TRIES :])
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w > 0) & (h > 0) & (w <= width) & (h <= height)
    row, first = np.arange(len(draws)), fits.argmax(axis=1)
    w, h = w[row, first], h[row, first]
    left = np.floor(draws[:, 1] * (width - w + 1)).astype(np.int64)
    upper = np.floor(draws[:, 2] * (height - h + 1)).astype(np.int64)
    none = ~fits.any(axis=1)
    if none.any():
        w0 = min(width, max(1, round(height * RATIO[1])))
        h0 = min(height, max(1, round(width / RATIO[0])))
        w[none], h[none], left[none], upper[none] = w0, h0, (width - w0) // 2, (height - h0) // 2
    return np.stack([left, upper, left + w, upper + h], axis=1)


def resize(
    pixels: UInt8[np.ndarray, "h w 3"], resolution: int, box: Int64[np.ndarray, " 4"] | None = None
) -> UInt8[np.ndarray, "r r 3"]:
    """A box of the image as a square, bilinear and antialiased as Pillow does it."""
    image = Image.fromarray(pixels)
    corners = None if box is None else tuple(box.tolist())
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.BILINEAR, box=corners))


@cache
def _pool() -> ThreadPoolExecutor:
    """Shared by all data sets of the process; decoding and resizing release the interpreter lock."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="images")


# A forked child has the pool's memory and none of its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)


@dataclass(frozen=True)
class _Look:
    """How each image of a batch is looked at."""

    resolution: int
    draws: Float64[np.ndarray, "b draws"] | None = None
    """For random crops; None: the whole image."""
    crop_area: float = 1.0
    mirrored: Bool[np.ndarray, " b"] | None = None

    def boxes(self, rows: slice, height: int, width: int) -> Int64[np.ndarray, "r 4"] | None:
        """Crops of some images of the batch that share a size."""
        return None if self.draws is None else crop_boxes(self.draws[rows], width, height, self.crop_area)


class _Batches(ABC):
    """The two kinds of batch over any place that pixels come from."""

    @abstractmethod
    def _decoded(self, index: Int64[np.ndarray, " b"]) -> Store | None:
        """All samples as one array and which of them are good, valid at `index`; None: fetch them one by one."""

    @abstractmethod
    def _fetch(self, i: int) -> UInt8[np.ndarray, "h w 3"] | None:
        """One decoded image; None for one that cannot be decoded."""

    def train_batch(
        self,
        index: Int64[np.ndarray, " b"],
        epoch: Int64[np.ndarray, " b"],
        *,
        seed: int,
        resolution: int,
        crop: Literal["none", "inception"],
        crop_area: float,
        flip: bool,
    ) -> Batch:
        """Augmented images and their weights: 0 (and black) for a sample that cannot be decoded, else 1.

        What is drawn for a sample depends on (seed, epoch, sample) only. Raises `VitscaleError` above `max_bad`.
        """
        draws = uniform(seed, epoch, index, DRAWS) if flip or crop == "inception" else None
        look = _Look(
            resolution,
            draws=draws if crop == "inception" else None,
            crop_area=crop_area,
            mirrored=draws[:, 0] < 0.5 if flip and draws is not None else None,
        )
        return self._batch(index, look)

    def eval_batch(self, index: Int64[np.ndarray, " b"], *, resolution: int) -> Batch:
        """Images resized to a square whatever their ratio, and their weights."""
        return self._batch(index, _Look(resolution))

    def _batch(self, index: Int64[np.ndarray, " b"], look: _Look) -> Batch:
        store = self._decoded(index)
        if store is None:
            out, good = self._each(index, look)
        else:
            out, good = _from_store(store, index, look)
        if look.mirrored is not None:
            out[look.mirrored] = out[look.mirrored, :, ::-1]
        return np.ascontiguousarray(out.transpose(0, 3, 1, 2)), good.astype(np.float32)

    def _each(self, index: Int64[np.ndarray, " b"], look: _Look) -> Squares:
        """Images decoded one by one, each cropped and resized as soon as it is there."""
        out, good = _black(len(index), look.resolution)

        def fill(b: int) -> None:
            pixels = self._fetch(int(index[b]))
            if pixels is not None:
                box = look.boxes(slice(b, b + 1), *pixels.shape[:2])
                out[b] = resize(pixels, look.resolution, None if box is None else box[0])
                good[b] = True

        _for_each(fill, len(index), in_threads=True)
        return out, good


def _from_store(store: Store, index: Int64[np.ndarray, " b"], look: _Look) -> Squares:
    pixels, usable = store
    height, width = pixels.shape[1:3]
    if look.draws is None and height == width == look.resolution:
        return pixels[index], usable[index]
    out, good = _black(len(index), look.resolution)
    boxes = look.boxes(slice(None), height, width)

    def fill(b: int) -> None:
        i = int(index[b])
        if usable[i]:
            out[b] = resize(pixels[i], look.resolution, None if boxes is None else boxes[b])
            good[b] = True

    _for_each(fill, len(index), in_threads=max(height * width, look.resolution**2) > SMALL)
    return out, good


def _black(count: int, resolution: int) -> Squares:
    return np.zeros((count, resolution, resolution, 3), dtype=np.uint8), np.zeros(count, dtype=bool)


def _for_each(work: Callable[[int], None], count: int, *, in_threads: bool) -> None:
    if not in_threads:
        for b in range(count):
            work(b)
        return
    for _ in _pool().map(work, range(count)):
        pass


class Images(_Batches):
    """Pixels of a `Shards`. One that fits into memory is decoded once, as it is asked for; the pixels are the same."""

    def __init__(self, shards: Shards, *, memory_bytes: int = 2 << 30, max_bad: float = 0.001) -> None:
        self.shards = shards
        self.max_bad = max_bad
        self.bad: list[tuple[str, str, str]] = []
        """(shard, key, reason) of each sample that could not be decoded."""
        self._bad_index: set[int] = set()
        self._lock = threading.Lock()
        self._array: UInt8[np.ndarray, "n h w 3"] | None = None
        size = shards.image_size
        if size is not None and len(shards) * size[0] * size[1] * 3 <= memory_bytes:
            # Pages that no sample was decoded into yet cost nothing.
            self._array = np.zeros((len(shards), size[1], size[0], 3), dtype=np.uint8)
        self._seen = np.zeros(len(shards), dtype=bool)
        self._good = np.zeros(len(shards), dtype=bool)

    def __len__(self) -> int:
        return len(self.shards)

    def _decoded(self, index: Int64[np.ndarray, " b"]) -> Store | None:
        if self._array is None:
            return None
        array = self._array

        def keep(b: int) -> None:
            i = int(missing[b])
            pixels = self._fetch(i)
            if pixels is not None and pixels.shape != array.shape[1:]:
                self._report(i, f"{pixels.shape[1]} x {pixels.shape[0]} pixels, unlike the data set's other images")
                pixels = None
            if pixels is not None:
                array[i] = pixels
                self._good[i] = True
            self._seen[i] = True

        missing = np.unique(index[~self._seen[index]])
        if len(missing):
            _for_each(keep, len(missing), in_threads=array[0].size // 3 > SMALL)
        return array, self._good

    def _fetch(self, i: int) -> UInt8[np.ndarray, "h w 3"] | None:
        try:
            return decode(self.shards.read(i))
        except BadImage as error:
            self._report(i, str(error))
            return None

    def _report(self, i: int, reason: str) -> None:
        shard, key = self.shards.shard(i), str(self.shards.keys[i])
        with self._lock:
            if i not in self._bad_index:
                self._bad_index.add(i)
                self.bad.append((shard, key, reason))
            count = len(self.bad)
        if count > self.max_bad * len(self.shards):
            raise VitscaleError(
                f"{shard}: sample {key!r} cannot be decoded ({reason}); {count} of {len(self.shards):,} are too many",
                hint=f"at most {self.max_bad:.2%} may be bad: see `vitscale data verify {self.shards.location}`",
                exit_code=MISSING,
            )


class ArrayImages(_Batches):
    """The same batches over pixels in memory."""

    def __init__(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> None:
        self.pixels = pixels
        self._good = np.ones(len(pixels), dtype=bool)

    def __len__(self) -> int:
        return len(self.pixels)

    def _decoded(self, index: Int64[np.ndarray, " b"]) -> Store:  # noqa: ARG002
        return self.pixels, self._good

    def _fetch(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
        pixels: np.ndarray = self.pixels[i]
        return pixels
