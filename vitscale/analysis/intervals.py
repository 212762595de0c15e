"""How sure a fit is: a bootstrap over what is independent, or Student's t where too little is, and the joint region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import chdtri, ndtri, stdtrit

from vitscale.analysis.fits import Fit, Observations
from vitscale.analysis.residuals import EXACT, scale
from vitscale.analysis.solver import distinct, solve
from vitscale.analysis.spread import freedom_between, spread

LEVEL = 0.95
FEWEST_CLUSTERS = 5  # with fewer, resamples of them are too alike to show a spread
CLUSTERS_A_PARAMETER = 2  # with fewer, many resamples are fitted without a miss
MANY = 30  # degrees of freedom from which on a new run's noise is that of the residuals themselves
RESAMPLES = 1000
TRADE_OFF = 0.9  # size of a correlation from which two parameters must be read together
DRAWS = 100
AT_ONCE = 2 * 10**7  # points of all resamples that are refitted together: some hundreds of megabytes

Method = Literal["bootstrap", "t", "none"]


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


@dataclass(frozen=True, slots=True)
class Sample:
    """What the fit might have been. `theta`: fits of resampled clusters, or where they are few of simulated noise."""

    fit: Fit
    method: Method
    theta: Float[np.ndarray, "B parameters"]
    freedom: int
    """As `freedom_of`."""

    def parameters(self) -> dict[str, Interval]:
        """Of each parameter alone; empty where there is no interval."""
        if self.method == "none":
            return {}
        form = self.fit.form
        values = form.natural(self.theta, self.fit.log_x0)
        best = form.natural(self.fit.theta[None], self.fit.log_x0)
        for i, name in enumerate(form.parameters):
            values[:, i] = self.widened(values[:, i], best[0, i], logged=name in (*form.logged, *form.places))
        return {name: quantiles(values[:, i]) for i, name in enumerate(form.parameters)}

    def predictions(self, inputs: np.ndarray) -> tuple[list[Interval], list[Interval]] | None:
        """At each of the inputs: of the law, and of one more run, which has a spread of its own."""
        if self.method == "none":
            return None
        values = self.fit.form.value(self.theta, self.fit.scaled(inputs))
        best = self.fit.predict(inputs)
        highest = np.maximum(self.fit.problem.residuals.highest, best)
        values = np.minimum(self.widened(values, best, logged=True), highest)
        new = self.fit.problem.residuals.noisy(values, self.noise(values.shape))
        return [quantiles(column) for column in values.T], [quantiles(column) for column in new.T]

    def noise(self, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
        """Residuals of new runs: those of the fit, or where they are few Student's t of their size.

        Those of errors are no smaller than their test images make them, whose size is known.
        """
        rng = np.random.default_rng(seed)
        size = spread(self.fit)
        if size.known:
            return rng.standard_normal(shape)
        if self.freedom < MANY:
            return size.whole * rng.standard_t(max(self.freedom, 1), shape)
        points, parameters = len(self.fit.observations), len(self.fit.theta)
        return rng.choice(self.fit.r * np.sqrt(points / max(points - parameters, 1)), shape)

    def widened(self, values: np.ndarray, best: np.ndarray | float, *, logged: bool) -> np.ndarray:
        """As far from the best again as Student's t lies beyond the normal: few clusters say little of their spread.

        `logged`: of positive values, by their logarithms.
        """
        factor = float(stdtrit(max(self.freedom, 1), (1 + LEVEL) / 2) / ndtri((1 + LEVEL) / 2))
        if not logged:
            return np.maximum(best + factor * (values - best), np.minimum(0.0, values))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            wide = best * (values / best) ** factor
        return np.where(np.isfinite(wide) & (values > 0), wide, values)

    def joint(self) -> Joint | None:
        """None where there is no interval, and where a parameter passes what a number can be."""
        if self.method == "none" or exact(self.fit):
            return None
        values = self.fit.form.natural(self.theta, self.fit.log_x0)
        logged = np.isin(self.fit.form.parameters, self.fit.form.logged)
        names = [f"log {name}" if log else name for name, log in zip(self.fit.form.parameters, logged, strict=True)]
        values[:, logged] = np.log(np.maximum(values[:, logged], 1e-300))
        if not np.isfinite(values).all():
            return None
        return Joint(tuple(names), values.mean(0), np.atleast_2d(np.cov(values.T)))


@dataclass(frozen=True, slots=True)
class Joint:
    """The 95 % region of all parameters at once: (v - center)' covariance^-1 (v - center) <= radius2."""

    names: tuple[str, ...]
    center: Float[np.ndarray, " k"]
    covariance: Float[np.ndarray, "k k"]

    @property
    def radius2(self) -> float:
        return float(chdtri(len(self.names), 1 - LEVEL))

    @property
    def correlation(self) -> Float[np.ndarray, "k k"]:
        sd = np.sqrt(np.maximum(np.diag(self.covariance), 1e-300))
        return self.covariance / sd / sd[:, None]

    def trade_offs(self) -> list[tuple[str, str, float]]:
        """Pairs that move together, with their correlation."""
        found = self.correlation
        pairs = zip(*np.triu_indices(len(self.names), 1), strict=True)
        return [(self.names[i], self.names[j], float(found[i, j])) for i, j in pairs if abs(found[i, j]) > TRADE_OFF]


def sample(fit: Fit, *, resamples: int = RESAMPLES, seed: int = 0) -> Sample:
    """Fits of resamples of whole clusters; of too few of them, of the law with noise as large as the residuals.

    None if no freedom is left, or the points lie at no more places than the law has parameters: it cannot miss them.
    """
    freedom, parameters = freedom_of(fit), len(fit.theta)
    if freedom < 1 or fit.observations.place_count <= parameters:
        return Sample(fit, "none", fit.theta[None], 0)
    if fit.observations.cluster_count >= fewest_clusters(parameters):
        return Sample(fit, "bootstrap", bootstrap(fit, resamples, seed), freedom)
    return Sample(fit, "t", _simulated([fit], resamples, seed)[0], freedom)


def freedom_of(fit: Fit) -> int:
    """Of Student's t: clusters less parameters, where there are enough to be resampled; else what lies between them."""
    clusters, parameters = fit.observations.cluster_count, len(fit.theta)
    return clusters - parameters if clusters >= fewest_clusters(parameters) else freedom_between(fit)


def fewest_clusters(parameters: int) -> int:
    """From which on a bootstrap is made."""
    return max(FEWEST_CLUSTERS, CLUSTERS_A_PARAMETER * parameters)


def exact(fit: Fit) -> bool:
    """Whether the points lie on the law, and what is left is rounding."""
    return scale(fit.r, len(fit.theta)) < EXACT


def bootstrap(fit: Fit, resamples: int, seed: int = 0) -> Float[np.ndarray, "B parameters"]:
    """The fit's parameters on resamples of its clusters, each begun at the fit; delta stays the fit's."""
    rng, points, parameters = np.random.default_rng(seed), fit.observations, len(fit.theta)
    some = max(AT_ONCE // len(points), 1)
    parts = (min(some, resamples - done) for done in range(0, resamples, some))
    return np.concatenate([refitted(fit, resampled(points, parameters, part, rng)) for part in parts])


def refitted(fit: Fit, weights: Float[np.ndarray, "B points"]) -> Float[np.ndarray, "B parameters"]:
    """The fit's parameters with each point so often."""
    return solve(fit.problem, np.repeat(fit.theta[None], len(weights), 0), weights, tolerance=1e-6).theta


def resampled(points: Observations, parameters: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each point is in each resample.

    One with fewer distinct places than the law has parameters fits any law; it is drawn again, if others can be had.
    """
    names, cluster = np.unique(points.clusters, return_inverse=True)
    weights = np.empty((0, len(points)))
    for _ in range(DRAWS):
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        drawn = times[:, cluster].astype(float)
        weights = np.concatenate([weights, drawn[enough_places(points, parameters, drawn)]])
        if len(weights) >= resamples:
            return weights[:resamples]
    return np.concatenate([weights, drawn])[:resamples]


def enough_places(
    points: Observations, parameters: int, weights: Float[np.ndarray, "B points"]
) -> Bool[np.ndarray, " B"]:
    """Whether a resample has as many distinct places as the law has parameters, or all there are."""
    places = distinct(points.inputs)
    return (places.sums(weights) > 0).sum(1) >= min(parameters, len(places.z))


def together(fits: Sequence[Fit], *, resamples: int = RESAMPLES, seed: int = 0) -> list[Sample]:
    """Of each of several fits, of points apart that lie off them alike: few points of one say little of their spread.

    Of all by simulation: a resample of few points is often one that a law cannot miss.
    """
    freedom = freedom_between(*fits)
    if freedom < 1:
        return [Sample(fit, "none", fit.theta[None], 0) for fit in fits]
    drawn = _simulated(fits, resamples, seed)
    return [Sample(fit, "t", theta, freedom) for fit, theta in zip(fits, drawn, strict=True)]


def _simulated(fits: Sequence[Fit], resamples: int, seed: int) -> list[Float[np.ndarray, "B parameters"]]:
    """The fits' parameters had their points, and what those of a cluster share, been off by as much another way.

    Refitted, so that a law keeps to its bounds, and its parameters to the ridge along which they trade off.
    """
    rng = np.random.default_rng(seed)
    size, ends = spread(*fits), np.cumsum([len(fit.observations) for fit in fits])
    names, cluster = np.unique(np.concatenate([fit.observations.clusters for fit in fits]), return_inverse=True)
    # A row a point: with one more of them the others stay as they were.
    own = rng.standard_normal((ends[-1], resamples))
    shared = np.random.default_rng((seed, 1)).standard_normal((len(names), resamples))[cluster]
    noise = np.split((size.within * own + size.between * shared).T, ends[:-1], axis=1)
    return [
        solve(fit.problem, np.repeat(fit.theta[None], resamples, 0), shift=off - fit.r, tolerance=1e-6).theta
        for fit, off in zip(fits, noise, strict=True)
    ]


def quantiles(values: np.ndarray) -> Interval:
    """Infinite where there is no end."""
    levels = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    if not np.isfinite(values).all():  # between a number and infinity there is none to interpolate
        low, high = np.quantile(values, levels, method="nearest")
        return Interval(float(low), float(high))
    low, high = np.quantile(values, levels)
    return Interval(float(low), float(high))
