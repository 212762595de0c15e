"""IsoFLOP profiles: at each compute the best size by a parabola in its logarithm, then that size as a power of compute.

Approach 2 of Hoffmann et al., arXiv 2203.15556.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitscale.analysis.facts import Fact
from vitscale.analysis.fits import Fit, Observations, fit
from vitscale.analysis.forms import FORMS
from vitscale.analysis.intervals import RESAMPLES, Interval, Sample, quantiles, sample
from vitscale.wording import count

SAME_BUDGET = 0.1  # of a logarithm: computes that are nearer belong to one profile
WIDEST = 0.3  # of a logarithm, from the least to the most compute of a profile
FEWEST_SIZES = 4  # a parabola through three points cannot miss


@dataclass(frozen=True, slots=True)
class Budget:
    compute: float
    fit: Fit
    sample: Sample
    smallest: float
    largest: float
    """Sizes that were measured."""

    @property
    def best_size(self) -> float:
        return self.fit.parameters["p"]

    @property
    def best_value(self) -> float:
        return self.fit.parameters["m"]

    @property
    def at_edge(self) -> bool:
        """The minimum lies outside the measured sizes, or the profile has none."""
        return not self.smallest < self.best_size < self.largest or self.fit.parameters["h"] <= 0


@dataclass(frozen=True, slots=True)
class IsoFlop:
    """best size = k compute^a over the budgets whose optimum lies inside their grid."""

    budgets: tuple[Budget, ...]
    a: float | None
    k: float | None
    interval: Interval | None
    """Of a."""
    facts: tuple[Fact, ...]
    drawn: tuple[np.ndarray, np.ndarray] | None = None
    """What a and k might have been; None with too few runs."""

    def best_size(self, compute: float) -> float | None:
        return None if self.a is None or self.k is None else self.k * compute**self.a

    def size_interval(self, compute: float) -> Interval | None:
        return None if self.drawn is None else quantiles(self.drawn[1] * compute ** self.drawn[0])


def isoflop(points: Observations, *, resamples: int = RESAMPLES, seed: int = 0) -> IsoFlop:
    """The inputs of `points` are compute, and the size that is chosen at each compute."""
    computes, sizes = points.inputs.T
    found, thin, wide = [], [], []
    for i, rows in enumerate(_profiles(computes)):
        here = Observations(sizes[rows, None], points.residuals.only(rows), points.clusters[rows])
        compute = float(np.exp(np.log(computes[rows]).mean()))
        if np.log(computes[rows].max() / computes[rows].min()) > WIDEST:
            wide.append(f"{computes[rows].min():.3g} to {computes[rows].max():.3g}: {count(len(rows), 'point')}")
            continue
        if len(np.unique(here.inputs)) < FEWEST_SIZES:
            thin.append(f"{compute:.3g}: {count(len(np.unique(here.inputs)), 'size')}")
            continue
        profile = fit(FORMS["parabola"], here)
        drawn = sample(profile, resamples=resamples, seed=seed + i)
        found.append(Budget(compute, profile, drawn, float(here.inputs.min()), float(here.inputs.max())))
    inside = [budget for budget in found if not budget.at_edge]
    a, k = _power([b.compute for b in inside], np.array([[b.best_size for b in inside]]))
    drawn_laws = _drawn(inside)
    return IsoFlop(
        budgets=tuple(found),
        a=None if a is None else float(a[0]),
        k=None if k is None else float(k[0]),
        interval=None if drawn_laws is None else quantiles(drawn_laws[0]),
        facts=tuple(_facts(found, thin, wide)),
        drawn=drawn_laws,
    )


def _profiles(compute: np.ndarray) -> list[np.ndarray]:
    """The rows of each budget: neighbours in compute, a gap apart from the next."""
    order = np.argsort(compute, kind="stable")
    gaps = np.flatnonzero(np.diff(np.log(compute[order])) > SAME_BUDGET)
    return np.split(order, gaps + 1)


def _power(compute: list[float], sizes: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """a and k for each row of sizes, by least squares of logarithms."""
    if len(compute) < 2:
        return None, None
    logs = np.log(compute)
    centred = logs - logs.mean()
    a = np.log(sizes) @ centred / (centred @ centred)
    return a, np.exp(np.log(sizes).mean(1) - a * logs.mean())


def _drawn(inside: list[Budget]) -> tuple[np.ndarray, np.ndarray] | None:
    """Each budget's runs are drawn on their own."""
    if len(inside) < 2 or any(b.sample.method == "none" for b in inside):
        return None
    places = [
        b.sample.widened(b.fit.form.natural(b.sample.theta, b.fit.log_x0)[:, 2], b.best_size, logged=True)
        for b in inside
    ]
    a, k = _power([b.compute for b in inside], np.stack(places, -1))
    assert a is not None  # there are two budgets
    assert k is not None
    return a, k


def _facts(found: list[Budget], thin: list[str], wide: list[str]) -> list[Fact]:
    edges = [b for b in found if b.at_edge]
    result = []
    if edges:
        details = tuple(f"{b.compute:.3g}: sizes {b.smallest:.3g} to {b.largest:.3g}" for b in edges)
        text = f"{count(len(edges), 'budget')} whose best size is not inside the measured ones: left out of the law."
        result.append(Fact("edge", text, details))
    if thin:
        text = f"{count(len(thin), 'budget')} left out with fewer than {FEWEST_SIZES} sizes."
        result.append(Fact("few_points", text, tuple(thin)))
    if wide:
        text = f"{count(len(wide), 'range')} of compute left out: without gaps, it is no budget at which sizes compare."
        result.append(Fact("no_budget", text, tuple(wide)))
    if len(found) - len(edges) < 2:
        result.append(Fact("few_points", "Fewer than two budgets with an optimum: no law of the best size."))
    return result
