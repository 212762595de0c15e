"""Which sample, when: pure functions of (seed, position), and which images a subset holds.

Every random number here is a counter hash (splitmix64's finaliser) and not a generator, so that any position can be
asked for on its own, in any process, and no library's version can change it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt64
from numpy.typing import NDArray

from vitscale.errors import MISSING, VitscaleError
from vitscale.sampling import BLOCKS, DRAWS, GOLDEN, SAMPLES, SUBSET, VALIDATION_SEED, quotas, stream_key

Indices = NDArray[np.int64]


def scramble(x: UInt64[np.ndarray, " ..."]) -> UInt64[np.ndarray, " ..."]:
    """splitmix64's finaliser (Steele et al. 2014): a bijection of 64 bits that passes BigCrush on counters."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    out: np.ndarray = x ^ (x >> np.uint64(31))
    return out


def stream(*numbers: int) -> UInt64[np.ndarray, " 1"]:
    """The 64-bit key of a tuple of integers (purpose, seed, epoch, ...), as an array of one."""
    return np.array([stream_key(*numbers)], dtype=np.uint64)


def hashes(key: UInt64[np.ndarray, " ..."], counter: NDArray[Any]) -> UInt64[np.ndarray, " ..."]:
    """One hash for each counter under a key; the two broadcast."""
    return scramble(key + (counter.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN))


def unit(bits: UInt64[np.ndarray, " ..."]) -> Float64[np.ndarray, " ..."]:
    """The upper 53 bits as a number in [0, 1)."""
    return (bits >> np.uint64(11)) * 2.0**-53


def uniform(
    seed: int, epoch: Int64[np.ndarray, " b"], sample: Int64[np.ndarray, " b"], draws: int
) -> Float64[np.ndarray, "b draws"]:
    """Numbers in [0, 1) for augmentation: a sample's row is the same in whatever batch it is drawn."""
    key = hashes(hashes(stream(DRAWS, seed), epoch), sample)
    return unit(hashes(key[:, None], np.arange(draws)))


def global_batch(
    step: int, *, batch_size: int, n: int, seed: int, block: int
) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"]]:
    """Samples and epochs of an optimizer step: stream positions from step * batch_size, position p in epoch p // n.

    In each epoch blocks of `block` consecutive samples are permuted, and each 16 of them that follow one another are
    shuffled together: reading stays within so many open places, and a sample moves anywhere.
    """
    if n < 1:
        raise ValueError("a batch needs at least one sample to draw from")
    first, end = step * batch_size, (step + 1) * batch_size
    parts = []
    for epoch in range(first // n, (end - 1) // n + 1):
        start = epoch * n
        parts.append(_stretch(n, seed, epoch, block, max(first - start, 0), min(end - start, n)))
    epochs = np.arange(first, end, dtype=np.int64) // n
    return np.concatenate(parts), epochs


def device_slots(batch_size: int, *, device: int, devices: int) -> slice:
    """Which places of the global batch a device takes: a stretch of it, of equal length on all devices."""
    part = batch_size // devices
    return slice(device * part, (device + 1) * part)


def _stretch(n: int, seed: int, epoch: int, block: int, start: int, end: int, mix: int = 16) -> Indices:
    """Positions start .. end-1 of an epoch's order; only the groups that they touch are computed."""
    starts = _group_starts(n, seed, epoch, block, mix)
    first = int(np.searchsorted(starts, start, side="right")) - 1
    last = int(np.searchsorted(starts, end, side="left"))
    order = _groups(n, seed, epoch, block, mix, first, last)
    return order[start - int(starts[first]) : end - int(starts[first])]


def _group_count(n: int, block: int, mix: int) -> int:
    return -(-n // (block * mix))


@lru_cache(maxsize=4)
def _blocks(n: int, seed: int, epoch: int, block: int) -> Indices:
    """The epoch's permutation of blocks."""
    count = -(-n // block)
    return np.argsort(hashes(stream(BLOCKS, seed, epoch), np.arange(count)), kind="stable")


@lru_cache(maxsize=4)
def _group_starts(n: int, seed: int, epoch: int, block: int, mix: int) -> Indices:
    """Where each group of `mix` blocks begins in the epoch; the short last block may be in any of them."""
    starts = np.arange(_group_count(n, block, mix), dtype=np.int64) * (block * mix)
    missing = -n % block
    where = int(np.flatnonzero(_blocks(n, seed, epoch, block) == (n - 1) // block)[0])
    starts[where // mix + 1 :] -= missing
    return starts


@lru_cache(maxsize=4)
def _groups(n: int, seed: int, epoch: int, block: int, mix: int, first: int, last: int) -> Indices:
    """Groups first .. last-1 of an epoch's order, each shuffled within itself."""
    blocks = _blocks(n, seed, epoch, block)[first * mix : last * mix]
    samples = (blocks[:, None] * block + np.arange(block)).reshape(-1)
    group = np.repeat(np.arange(len(blocks)) // mix, block)
    inside = samples < n
    samples, group = samples[inside], group[inside]
    order = samples[np.lexsort((hashes(stream(SAMPLES, seed, epoch), samples), group))]
    order.setflags(write=False)  # the cache hands the same array to every caller
    return order


def key_hashes(keys: np.ndarray, key: UInt64[np.ndarray, " 1"]) -> UInt64[np.ndarray, " n"]:
    """One hash for each string, from its characters only: the width of the array that holds it does not matter."""
    if not len(keys):
        return np.zeros(0, dtype=np.uint64)
    text = np.ascontiguousarray(keys.astype(keys.dtype.newbyteorder("<")))
    points = text.view("<u4").reshape(len(keys), -1)
    total = np.zeros(len(keys), dtype=np.uint64)
    for place in range(points.shape[1]):
        column = points[:, place].astype(np.uint64)
        total += np.where(column > 0, scramble(column + np.uint64((place + 1) << 32)), np.uint64(0))
    return scramble(key ^ scramble(total))


def subset(
    keys: np.ndarray, labels: Int64[np.ndarray, " n"], *, examples: int, seed: int
) -> Int64[np.ndarray, " examples"]:
    """Sorted indices of `examples` samples, chosen by their keys: re-packing in another order picks the same images.

    Each class holds its exact quota rounded up or down, as with the largest remainder, and every smaller subset of one
    seed lies inside every larger one (largest remainder itself does not nest: the Alabama paradox).
    Raises `VitscaleError` where there are fewer samples than asked for.
    """
    if not 0 <= examples <= len(labels):
        raise VitscaleError(
            f"{examples:,} examples were asked for and the data set has {len(labels):,}",
            hint=f"ask for at most {len(labels):,}, or pack more images",
            exit_code=MISSING,
        )
    if not examples:
        return np.zeros(0, dtype=np.int64)
    values, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    seats = np.array(quotas(counts.tolist(), values.tolist(), examples=examples, seed=seed))
    order = np.lexsort((key_hashes(_as_found(keys), stream(SUBSET, seed)), codes))
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen: Indices = np.sort(order[rank < seats[codes[order]]])
    return chosen


def _as_found(keys: np.ndarray) -> np.ndarray:
    """Keys before packing escaped the dots in them."""
    escaped = np.char.find(keys, "%2E") >= 0
    if not escaped.any():
        return keys
    return np.where(escaped, np.char.replace(keys, "%2E", "."), keys)


def split_validation(
    keys: np.ndarray, labels: Int64[np.ndarray, " n"], *, examples: int
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " examples"]]:
    """Training and validation indices, stratified; the same for every run on this data set, whatever its seed."""
    if len(labels) <= examples:
        raise VitscaleError(
            f"{examples:,} validation images leave nothing to train on: the data set has {len(labels):,}",
            hint="lower data.val_examples",
            exit_code=MISSING,
        )
    held_out = subset(keys, labels, examples=examples, seed=VALIDATION_SEED)
    train = np.ones(len(labels), dtype=bool)
    train[held_out] = False
    return np.flatnonzero(train), held_out
