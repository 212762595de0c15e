"""Which patches are corrupted, and how (arXiv 2010.11929, B.1.2): a pure function of (seed, epoch, sample)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from vitscale.data.order import hashes, stream, unit
from vitscale.sampling import MASKS

REPLACED = 0.8
"""Share of the corrupted patches whose embedding becomes the mask token."""
SWAPPED = 0.1
"""Share that gets the embedding of another patch of the image. The rest is kept, and predicted all the same."""
MASK = -1


@dataclass(frozen=True, slots=True)
class Corruption:
    places: Int64[np.ndarray, "b corrupted"]
    """The corrupted patches of each image, ascending."""
    sources: Int64[np.ndarray, "b patches"]
    """At each place the place whose embedding stands there, or `MASK`."""


def corruption(
    epoch: Int64[np.ndarray, " b"],
    sample: Int64[np.ndarray, " b"],
    *,
    patches: int,
    corrupted: int,
    seed: int | None,
) -> Corruption:
    """What happens to each image of a batch, the same in whatever batch it is; without a seed, as in evaluation.

    What happens to a patch is drawn for it alone, so that 80, 10 and 10 % are expectations; how many are corrupted is
    exact. Another patch is the next one on a round trip through all patches, drawn for the image: any of the others is
    as likely, and no two places take the same one. So at most two gradients meet in an embedding, and their sum does
    not depend on an order.
    """
    key = hashes(hashes(stream(MASKS) if seed is None else stream(MASKS, seed), epoch), sample)
    draws = hashes(key[:, None], np.arange(3 * patches))
    chosen, trip, kind = draws[:, :patches], draws[:, patches : 2 * patches], unit(draws[:, 2 * patches :])
    places = np.sort(np.argsort(chosen, axis=1, kind="stable")[:, :corrupted], axis=1)
    rows = np.arange(len(sample))[:, None]
    fate = kind[rows, places]
    sources = np.broadcast_to(np.arange(patches), (len(sample), patches)).copy()
    others = _next_on_trip(trip)[rows, places]
    sources[rows, places] = np.select([fate < REPLACED, fate < REPLACED + SWAPPED], [MASK, others], places)
    return Corruption(places, sources)


def _next_on_trip(draws: np.ndarray) -> Int64[np.ndarray, "b patches"]:
    """Of each patch the one that follows on the round trip in the order of the draws."""
    trip = np.argsort(draws, axis=1, kind="stable")
    following = np.empty_like(trip)
    np.put_along_axis(following, trip, np.roll(trip, -1, axis=1), axis=1)
    return following
