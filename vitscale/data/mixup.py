"""Mixup (arXiv 1710.09412): how much of each image its neighbour in the batch replaces."""

from __future__ import annotations

import numpy as np

from vitscale.data.order import hashes, stream, unit
from vitscale.sampling import MIXUP


def mixing_share(seed: int, step: int, alpha: float) -> float:
    """The share that an image keeps, Beta(alpha, alpha), one for the whole batch of a step; 1 where alpha is 0."""
    if not alpha:
        return 1.0
    from scipy.special import betaincinv  # a quarter of a second that most runs need not wait

    u = unit(hashes(stream(MIXUP, seed), np.array([step])))
    return float(betaincinv(alpha, alpha, u)[0])
