"""Batches of pixels: decoded, cropped, resized and mirrored, as a pure function of the samples and the seed."""

from __future__ import annotations

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from vitscale.data.decode import BadImage, Picture, decode
from vitscale.data.order import uniform
from vitscale.data.preprocess import DRAWS, Box, InceptionCrops, Preprocess, center_box
from vitscale.data.randaugment import augment, draw
from vitscale.data.readers import Readers
from vitscale.data.resize import lowest_row, resize, whole_factor
from vitscale.data.shards import Shards
from vitscale.errors import MISSING, VitscaleError
from vitscale.processes import cores

Store = tuple[UInt8[np.ndarray, "n h w 3"], Bool[np.ndarray, " n"]]  # decoded images, and which of them are good
Squares = tuple[UInt8[np.ndarray, "b 3 r r"], Bool[np.ndarray, " b"]]
Batch = tuple[UInt8[np.ndarray, "b 3 r r"], Float32[np.ndarray, " b"]]
Square = UInt8[np.ndarray, "r r 3"]

FIRST = 10  # samples of which one should be readable
SMALL = 64 * 64  # pixels; below it a resize is shorter than handing it to another thread


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Shared by all data sets of the process; decoding and resizing release the interpreter lock."""
    return ThreadPoolExecutor(workers, thread_name_prefix="images")


# A forked child has the pools' memory and none of their threads.
os.register_at_fork(after_in_child=_pool.cache_clear)


@dataclass(frozen=True)
class Look:
    """How each image of a batch is looked at."""

    how: Preprocess
    training: bool
    crops: InceptionCrops | None = None
    mirrored: Bool[np.ndarray, " b"] | None = None
    augmented: Float64[np.ndarray, "b augmentations"] | None = None

    @property
    def whole(self) -> bool:
        """Whether all of each image is looked at."""
        return (self.how.crop if self.training else self.how.eval_crop) == "none"

    def box(self, b: int, width: int, height: int) -> Box:
        """Where image `b` is looked at."""
        if self.crops is not None:
            return self.crops.box(b, width, height)
        if self.whole:
            return 0, 0, width, height
        return center_box(width, height, self.how.resolution, self.how.eval_crop_ratio)

    def square(self, b: int, picture: Picture) -> Square:
        """Image `b`, decoded as far as its box goes."""
        box, resolution = self.box(b, picture.width, picture.height), self.how.resolution
        scaled = self.how.decode == "scaled"
        smaller = whole_factor(box, resolution) if scaled else 1
        pixels = picture.rows(lowest_row(box, resolution, smaller), smaller=smaller, exact=not scaled)
        if pixels.shape[1] < picture.width:
            left, upper, right, lower = box
            box = left / smaller, upper / smaller, right / smaller, lower / smaller
        return resize(pixels, resolution, box, self.how.resize)

    def square_of(self, b: int, pixels: UInt8[np.ndarray, "h w 3"]) -> Square:
        """Image `b` of which all pixels are at hand."""
        height, width = pixels.shape[:2]
        return resize(pixels, self.how.resolution, self.box(b, width, height), self.how.resize)

    def part(self, part: slice) -> Look:
        """How these of the images are looked at."""
        return Look(
            self.how,
            self.training,
            self.crops and self.crops.part(part),
            None if self.mirrored is None else self.mirrored[part],
            None if self.augmented is None else self.augmented[part],
        )

    def put(self, out: UInt8[np.ndarray, "3 r r"], b: int, square: Square) -> None:
        """Finishes image `b` and writes it to its slot, in one copy."""
        if self.mirrored is not None and self.mirrored[b]:
            square = square[:, ::-1]
        if self.augmented is not None:
            square = augment(square, self.augmented[b], self.how.randaugment_magnitude)
        out[:] = square.transpose(2, 0, 1)


class _Batches(ABC):
    """The two kinds of batch over any place that pixels come from."""

    workers: int
    """Threads that decode and resize; no pixel depends on how many there are."""

    @abstractmethod
    def _squares(self, index: Int64[np.ndarray, " b"], look: Look) -> Squares:
        """Finished images, and which of them are good; the others are black."""

    def train_batch(
        self, index: Int64[np.ndarray, " b"], epoch: Int64[np.ndarray, " b"], how: Preprocess, *, seed: int
    ) -> Batch:
        """Augmented images and their weights: 0 (and black) for a sample that cannot be decoded, else 1.

        What is drawn for a sample depends on (seed, epoch, sample) only. Raises `VitscaleError` above `max_bad`.
        """
        layers = how.randaugment_layers
        draws = uniform(seed, epoch, index, DRAWS) if how.flip or how.crop == "inception" else None
        look = Look(
            how,
            training=True,
            crops=InceptionCrops(draws, how.crop_area) if how.crop == "inception" and draws is not None else None,
            mirrored=draws[:, 0] < 0.5 if how.flip and draws is not None else None,
            augmented=draw(seed, epoch, index, layers) if layers else None,
        )
        return self._batch(index, look)

    def eval_batch(self, index: Int64[np.ndarray, " b"], how: Preprocess) -> Batch:
        """Images as they are evaluated, and their weights."""
        return self._batch(index, Look(how, training=False))

    def _batch(self, index: Int64[np.ndarray, " b"], look: Look) -> Batch:
        pixels, good = self._squares(index, look)
        return pixels, good.astype(np.float32)

    def _from_store(self, store: Store, index: Int64[np.ndarray, " b"], look: Look) -> Squares:
        pixels, usable = store
        height, width = pixels.shape[1:3]
        resolution = look.how.resolution
        if look.whole and height == width == resolution and look.augmented is None:
            return _taken(pixels[index], look.mirrored), usable[index]
        out, good = _black(len(index), resolution)

        def fill(b: int) -> None:
            i = int(index[b])
            if usable[i]:
                look.put(out[b], b, look.square_of(b, pixels[i]))
                good[b] = True

        _for_each(fill, len(index), self.workers if max(height * width, resolution**2) > SMALL else 1)
        return out, good


def _taken(
    images: UInt8[np.ndarray, "b r r 3"], mirrored: Bool[np.ndarray, " b"] | None
) -> UInt8[np.ndarray, "b 3 r r"]:
    if mirrored is not None:
        images[mirrored] = images[mirrored, :, ::-1]
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _black(count: int, resolution: int) -> Squares:
    return np.zeros((count, 3, resolution, resolution), dtype=np.uint8), np.zeros(count, dtype=bool)


def _for_each(work: Callable[[int], None], count: int, workers: int) -> None:
    """Each of the workers takes the next image as soon as it is free."""
    waiting = iter(range(count))  # which threads may share: taking a number is one step of the interpreter

    def drain() -> None:
        for b in waiting:
            work(b)

    if min(workers, count) < 2:
        return drain()
    futures = [_pool(workers).submit(drain) for _ in range(min(workers, count))]
    wait(futures)
    for future in futures:
        future.result()
    return None


class Images(_Batches):
    """Pixels of a `Shards`. One that fits into memory is decoded once, as it is asked for; the pixels are the same.

    `on_bad(shard, key, reason)` is told of each sample that cannot be used, when it is first met. More than `max_bad`
    of the `used` samples (all, where nothing is said) are an error. With `apart`, what is decoded each time anew is so
    by processes of their own, instead of threads; the pixels are the same.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        memory_bytes: int = 2 << 30,
        max_bad: float = 0.001,
        used: int | None = None,
        workers: int | None = None,
        on_bad: Callable[[str, str, str], None] | None = None,
        apart: bool = False,
    ) -> None:
        self.shards = shards
        self.max_bad = max_bad
        self.used = len(shards) if used is None else used
        self.workers = workers or cores()
        self.on_bad = on_bad
        self._problems: Mapping[int, str] = getattr(shards, "problems", {})
        self.bad: set[int] = set()
        """Samples that cannot be used, of those that were met."""
        self.told: set[int] = set()
        """Those of them that all processes know of."""
        self._lock = threading.Lock()
        self.memory_bytes = self._room = memory_bytes
        self._pictures: dict[int, np.ndarray] = {}
        """Decoded images of a set whose index does not know their sizes."""
        self._array: UInt8[np.ndarray, "n h w 3"] | None = None
        size = shards.image_size
        if size is not None and len(shards) * size[0] * size[1] * 3 <= memory_bytes:
            # Pages that no sample was decoded into yet cost nothing.
            self._array = np.zeros((len(shards), size[1], size[0], 3), dtype=np.uint8)
        self._seen = np.zeros(len(shards), dtype=bool)
        self._good = np.zeros(len(shards), dtype=bool)
        self._apart = apart
        self._starting = threading.Lock()
        self._readers: Readers | None = None

    def __len__(self) -> int:
        return len(self.shards)

    def _squares(self, index: Int64[np.ndarray, " b"], look: Look) -> Squares:
        if self._array is None or look.how.decode == "scaled":  # whose pixels depend on the box
            return self._each(index, look)
        missing = np.unique(index[~self._seen[index]])
        large = self._array[0].size // 3 > SMALL
        _for_each(lambda b: self._keep(int(missing[b])), len(missing), self.workers if large else 1)
        return self._from_store((self._array, self._good), index, look)

    def _each(self, index: Int64[np.ndarray, " b"], look: Look) -> Squares:
        """Images decoded one by one, each cropped and resized as soon as it is there."""
        keeps = look.how.decode == "full" and self._fits
        if self._apart and not keeps:
            return self._by_readers(index, look)
        out, good = _black(len(index), look.how.resolution)

        def fill(b: int) -> None:
            i = int(index[b])
            try:
                square = look.square_of(b, self._kept(i)) if keeps else look.square(b, Picture(self._read(i)))
                look.put(out[b], b, square)
                good[b] = True
            except BadImage as error:
                self._report(i, str(error))

        _for_each(fill, len(index), self.workers)
        return out, good

    def readers(self) -> Readers:
        """Processes that read this set, started when they are needed first."""
        with self._starting:
            if self._readers is None:
                self._readers = Readers(self.shards.access, self.workers)
            return self._readers

    def _by_readers(self, index: Int64[np.ndarray, " b"], look: Look) -> Squares:
        """As `_each`, by processes. What they do not get is read here once more, where it can be said why."""
        out, failed = self.readers().squares(self.shards.places[index], look)
        good = np.ones(len(index), dtype=bool)
        for b in {*failed, *(b for b, i in enumerate(index.tolist()) if i in self._problems)}:
            try:
                look.put(out[b], b, look.square(b, Picture(self._read(int(index[b])))))
            except BadImage as error:
                out[b], good[b] = 0, False
                self._report(int(index[b]), str(error))
        return out, good

    @cached_property
    def _fits(self) -> bool:
        """Whether all images would fit into memory, were they as large as the first one that can be read."""
        for i in range(min(len(self.shards), FIRST)):
            with contextlib.suppress(BadImage):
                first = Picture(self._read(i))
                return len(self.shards) * first.width * first.height * 3 <= self.memory_bytes
        return False

    def _kept(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
        """All pixels of a sample, decoded once for as long as there is room. Raises `BadImage`."""
        pixels = self._pictures.get(i)
        if pixels is None:
            pixels = decode(self._read(i))
            with self._lock:
                if self._room >= pixels.nbytes and i not in self._pictures:
                    self._room -= pixels.nbytes
                    self._pictures[i] = pixels
        return pixels

    def _keep(self, i: int) -> None:
        """Decodes a sample into its place in memory."""
        assert self._array is not None
        try:
            pixels = decode(self._read(i))
            height, width = pixels.shape[:2]
            if pixels.shape != self._array.shape[1:]:
                raise BadImage(f"{width} x {height} pixels, unlike the data set's other images")
            self._array[i] = pixels
            self._good[i] = True
        except BadImage as error:
            self._report(i, str(error))
        self._seen[i] = True

    def _read(self, i: int) -> bytes:
        if i in self._problems:
            raise BadImage(self._problems[i])
        return self.shards.read(i)

    def _report(self, i: int, reason: str) -> None:
        shard, key = self.shards.shard(i), str(self.shards.keys[i])
        with self._lock:
            if i not in self.bad:
                self.bad.add(i)
                if self.on_bad is not None:
                    self.on_bad(shard, key, reason)
        self.check(f"{shard}: sample {key!r} cannot be used ({reason})")

    def check(self, what: str) -> None:
        """Raises `VitscaleError` (exit 5), which begins with `what`, where too many samples are bad."""
        if len(self.bad) > self.max_bad * self.used:
            raise VitscaleError(
                f"{what}; {len(self.bad)} of {self.used:,} are too many",
                hint=f"at most {self.max_bad:.2%} may be bad: see `vitscale data verify {self.shards.location}`",
                exit_code=MISSING,
            )


class ArrayImages(_Batches):
    """The same batches over pixels in memory."""

    def __init__(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> None:
        self.pixels = pixels
        self.workers = cores()
        self._good = np.ones(len(pixels), dtype=bool)

    def __len__(self) -> int:
        return len(self.pixels)

    def _squares(self, index: Int64[np.ndarray, " b"], look: Look) -> Squares:
        return self._from_store((self.pixels, self._good), index, look)
