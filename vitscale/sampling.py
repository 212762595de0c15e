"""Which classes, and how many images of each: what planning and reading must agree on, in plain integers.

Every random number is a counter hash (splitmix64's finaliser) and not a generator, so that any of them can be asked for
on its own, in any process, and no library's version can change it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: splitmix64's step

# What a number is drawn for. Two purposes never share a stream, whatever the seed.
BLOCKS, SAMPLES, DRAWS, SUBSET, CLASSES, SUPPORT, PACK, FRACTALS, INSTANCES, CHAINS, MIXUP, CHOICE, DROPOUT, MASKS = (
    range(1, 15)
)

VALIDATION_SEED = 2010_11929  # fixed for everybody: the validation images depend on the data set only


def stream_key(*numbers: int) -> int:
    """The 64-bit key of a tuple of integers (purpose, seed, epoch, ...)."""
    state = 0
    for number in numbers:
        state = scrambled(state + (number & MASK) + GOLDEN)
    return state


def scrambled(x: int) -> int:
    """splitmix64's finaliser (Steele et al. 2014) of the lower 64 bits."""
    x &= MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def hashed(key: int, counter: int) -> int:
    """The hash of a counter under a key; `order.hashes` gives the same for arrays."""
    return scrambled(key + ((counter + 1) & MASK) * GOLDEN)


def choose_classes(classes: Sequence[int], count: int, *, seed: int) -> list[int]:
    """`count` of the classes, sorted; of one seed, every smaller choice lies inside every larger one."""
    key = stream_key(CHOICE, seed)
    return sorted(sorted(classes, key=lambda c: hashed(key, c))[:count])


def quotas(counts: Sequence[int], classes: Sequence[int], *, examples: int, seed: int) -> list[int]:
    """How many of `examples` fall to each class: its share of the whole, rounded up or down.

    `counts` are of the classes that `classes` numbers, all above 0. Growing `examples` never takes one away from a
    class, so that subsets nest (largest remainder itself does not: the Alabama paradox).
    """
    key = stream_key(CLASSES, seed)
    taken = [0] * len(counts)
    for c in _sequence(counts, [hashed(key, c) for c in classes], examples):
        taken[c] += 1
    return taken


def fraction_of(examples: int, fraction: float) -> int:
    """A share of the images, to the nearest whole one; never none."""
    return max(1, round(examples * fraction))


def _sequence(counts: Sequence[int], ties: Sequence[int], seats: int) -> list[int]:
    """The first `seats` of a sequence of classes whose every prefix gives each class its quota, rounded up or down.

    The j-th seat of a class with share w may come no sooner than its quota exceeds j-1, slot floor((j-1) / w) + 1, and
    must come by ceil(j / w). Earliest deadline first meets all of them: it is proportional-fair scheduling on one
    processor (Baruah et al. 1996). Exact in integers.
    """
    total = sum(counts)
    taken = [0] * len(counts)
    waiting = [(1, c) for c in range(len(counts))]
    ready: list[tuple[int, int, int]] = []
    sequence = []
    for slot in range(1, seats + 1):
        while waiting and waiting[0][0] <= slot:
            _, c = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(taken[c] + 1) * total // counts[c]), ties[c], c))
        _, _, c = heapq.heappop(ready)
        sequence.append(c)
        taken[c] += 1
        if taken[c] < counts[c]:
            heapq.heappush(waiting, (taken[c] * total // counts[c] + 1, c))
    return sequence
