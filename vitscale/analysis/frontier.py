"""The best error that each compute buys: over a discrete grid of configurations, and as a law of its lower envelope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from jaxtyping import Bool, Float

from vitscale.analysis.facts import Fact
from vitscale.analysis.fits import Fit, Observations
from vitscale.analysis.intervals import RESAMPLES, Sample, fewest_clusters, resampled
from vitscale.analysis.solver import solve

BINS_PER_DECADE = 4


@dataclass(frozen=True, slots=True)
class Configuration:
    """One of the grid: what it costs, and its error (or loss) as the mean over its runs."""

    name: str
    compute: float
    value: float
    runs: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The best configuration within a budget, and the next best."""

    budget: float
    best: Configuration
    second: Configuration | None
    at_edge: bool
    """Nothing dearer was measured within the budget: a better one may lie between it and the budget."""


def configurations(points: Observations, names: Sequence[str]) -> list[Configuration]:
    """Cheapest first. `names`: of each point its configuration; its points may differ in seed, not in compute."""
    labels = np.array(names)
    keys = sorted({(float(c), str(name)) for c, name in zip(points.compute, labels, strict=True)})
    found = []
    for compute, name in keys:
        here = (labels == name) & (points.compute == compute)
        found.append(Configuration(name, compute, float(points.y[here].mean()), int(here.sum())))
    return found


def frontier(grid: Sequence[Configuration]) -> list[Configuration]:
    """Those that no cheaper or equally dear configuration equals or beats."""
    best: list[Configuration] = []
    for one in sorted(grid, key=lambda c: (c.compute, c.value)):
        if not best or one.value < best[-1].value:
            best.append(one)
    return best


def surpassed(grid: Sequence[Configuration]) -> list[Configuration]:
    """Those that one of another name beats, which is no dearer."""
    found: list[Configuration] = []
    rivals: list[Configuration] = []  # the best so far, and the best of another name
    for _, group in groupby(sorted(grid, key=lambda one: one.compute), key=lambda one: one.compute):
        here = list(group)
        best = sorted([*rivals, *here], key=lambda one: one.value)
        rivals = [*best[:1], *[one for one in best if one.name != best[0].name][:1]]
        found += [one for one in here if any(r.name != one.name and r.value < one.value for r in rivals)]
    return found


def choose(grid: Sequence[Configuration], budget: float) -> Choice | None:
    """None where every configuration is dearer than the budget."""
    affordable = sorted((c for c in grid if c.compute <= budget), key=lambda c: (c.value, c.compute))
    if not affordable:
        return None
    best = affordable[0]
    edge = best.compute == max(c.compute for c in affordable)
    return Choice(budget, best, affordable[1] if len(affordable) > 1 else None, edge)


def envelope(points: Observations, present: Bool[np.ndarray, "B points"] | None = None) -> Bool[np.ndarray, "B points"]:
    """The lowest point of each quarter of a decade of compute, if it beats all cheaper bins; of every resample."""
    present = np.ones((1, len(points)), dtype=bool) if present is None else present
    bins = np.floor(BINS_PER_DECADE * np.log10(points.compute) + 1e-9).astype(int)
    kept = np.zeros_like(present)
    record = np.full(len(present), np.inf)
    rows = np.arange(len(present))
    for one in np.unique(bins):
        inside = np.flatnonzero(bins == one)
        values = np.where(present[:, inside], points.y[inside], np.inf)
        lowest = values.argmin(1)
        better = values[rows, lowest] < record
        kept[rows[better], inside[lowest[better]]] = True
        record = np.minimum(record, values[rows, lowest])
    return kept


def envelope_sample(found: Fit, points: Observations, *, resamples: int = RESAMPLES, seed: int = 0) -> Sample | None:
    """What the envelope's law might have been: all points are resampled, and each resample has its own envelope.

    `found`: the fit of the envelope of `points`. None with too few clusters, or if it cannot miss its points.
    """
    parameters = len(found.theta)
    if points.cluster_count < fewest_clusters(parameters) or found.observations.place_count <= parameters:
        return None
    drawn = resampled(points, parameters, resamples, np.random.default_rng(seed))
    weights = envelope(points, drawn > 0).astype(float)
    weights = weights[(weights > 0).sum(1) >= parameters]
    if not len(weights):
        return None
    residuals = points.judged_by_place().residuals
    whole = replace(found.problem, z=found.scaled(points.inputs), residuals=residuals)
    theta = solve(whole, np.repeat(found.theta[None], len(weights), 0), weights, tolerance=1e-6).theta
    return Sample(found, "bootstrap", theta, found.observations.cluster_count - parameters)


def optimism(points: Observations) -> Fact:
    kept = int(envelope(points).sum())
    return Fact(
        "envelope",
        f"{kept} of {len(points)} points make the lower envelope; the luckiest seed of each bin is among them, "
        "so it lies lower than the best configuration does on average.",
    )


def without_law(points: Observations) -> Fact | None:
    """What is said where a single point beats all others, the dearer ones too: a law needs two."""
    if envelope(points).sum() > 1:
        return None
    return Fact("too_few", "Nothing beats the cheapest quarter of a decade: there is no law of the envelope.")


def computes_at(
    fit: Fit, theta: Float[np.ndarray, "B parameters"], values: Float[np.ndarray, " v"], low: float, high: float
) -> Float[np.ndarray, "B v"]:
    """The compute from which on the law is at most each value; infinite where it is not up to `high`."""
    grid = np.geomspace(low, high, 2000)
    curves = np.minimum.accumulate(fit.form.value(theta, fit.scaled(grid[:, None])), axis=1)
    logs = np.log(grid)
    return np.exp(np.stack([np.interp(-values, -curve, logs, right=np.inf) for curve in curves]))
