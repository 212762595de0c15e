"""How many times the compute one family needs to reach the error of another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitscale.analysis.fits import Fit
from vitscale.analysis.frontier import computes_at
from vitscale.analysis.intervals import LEVEL, Interval, Sample

ERRORS = 25  # at which two laws are compared
BEYOND = 1e3  # how far outside the measured computes a law is followed to reach an error


@dataclass(frozen=True, slots=True)
class Multiplier:
    """Compute of `dear` over that of `cheap` at equal error: geometric mean over the errors that both have reached."""

    dear: str
    cheap: str
    value: float
    interval: Interval | None
    """Its end is infinite, or its beginning 0, where resamples of one family never reach such errors."""
    smallest: float
    largest: float
    """Over those errors: `value` where the multiplier is the same everywhere."""
    errors: Interval


def multiplier(dear: Sample, cheap: Sample, names: tuple[str, str]) -> Multiplier | None:
    """None where no error was reached by both within their measured computes.

    The interval is that of two separate sets of runs: the samples must be drawn from different seeds.
    """
    errors = _shared(dear.fit, cheap.fit)
    if errors is None:
        return None
    values = np.geomspace(errors.low, errors.high, ERRORS)
    at_best = _ratios(dear, cheap, values, best=True)[0]
    interval = None
    if "none" not in (dear.method, cheap.method):
        fewer = min((dear, cheap), key=lambda each: each.freedom)
        means = _means(_ratios(dear, cheap, values, best=False))
        interval = _interval(fewer.widened(means, float(_means(at_best[None])[0]), logged=True))
    return Multiplier(
        dear=names[0],
        cheap=names[1],
        value=float(np.exp(np.log(at_best).mean())),
        interval=interval,
        smallest=float(at_best.min()),
        largest=float(at_best.max()),
        errors=errors,
    )


def _means(ratios: np.ndarray) -> np.ndarray:
    """Geometric ones."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.exp(np.log(ratios).mean(1))


def _interval(means: np.ndarray) -> Interval | None:
    means = np.sort(means[~np.isnan(means)])  # where neither family reaches an error, nothing is known
    if not len(means):
        return None
    low, high = (means[round(q * (len(means) - 1))] for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(low), float(high))


def _shared(one: Fit, other: Fit) -> Interval | None:
    """The errors that both laws pass through between their cheapest and dearest points."""
    reached = [np.sort(f.predict(f.observations.inputs)) for f in (one, other)]
    low, high = max(r[0] for r in reached), min(r[-1] for r in reached)
    return Interval(float(low), float(high)) if 0 < low < high else None


def _ratios(dear: Sample, cheap: Sample, values: np.ndarray, *, best: bool) -> np.ndarray:
    sides = []
    count = min(len(dear.theta), len(cheap.theta))
    for each in (dear, cheap):
        compute = each.fit.observations.compute
        theta = each.fit.theta[None] if best else each.theta[:count]
        sides.append(computes_at(each.fit, theta, values, compute.min() / BEYOND, compute.max() * BEYOND))
    with np.errstate(invalid="ignore"):
        return sides[0] / sides[1]
