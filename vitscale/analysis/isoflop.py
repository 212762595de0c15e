"""IsoFLOP profiles: at each compute the best size by a parabola in its logarithm, then that size as a power of compute.

Approach 2 of Hoffmann et al., arXiv 2203.15556.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import fdtrc

from vitscale.analysis.facts import Fact, beyond
from vitscale.analysis.fits import Fit, Observations, fit
from vitscale.analysis.forms import FORMS
from vitscale.analysis.intervals import RESAMPLES, Interval, Sample, quantiles, together
from vitscale.wording import count

SAME_BUDGET = 0.1  # of a logarithm: computes that are nearer belong to one profile
WIDEST = 0.3  # of a logarithm, from the least to the most compute of a profile
CHANCE = 0.01  # of budgets that differ in nothing but their draws
TINY = 1e-20  # squares of residuals that are rounding
AT_BOUND = 1e-6  # relative: a minimum that is as near to the search's end has none
REACH = 1e3  # times beyond the measured sizes: as far as a budget's draws without a minimum count in a law
FEWEST_SIZES = 4  # a parabola through three points cannot miss


@dataclass(frozen=True, slots=True)
class Budget:
    compute: float
    fit: Fit
    sample: Sample
    """With a spread of the points off their parabolas that all budgets have in common."""
    smallest: float
    largest: float
    """Sizes that were measured."""

    @property
    def minimum(self) -> float:
        """Of the parabola, wherever that lies."""
        return self.fit.parameters["p"]

    @property
    def best_size(self) -> float | None:
        """None where the runs do not tell it."""
        return None if self.at_edge or self.is_open else self.minimum

    @property
    def best_value(self) -> float | None:
        return None if self.best_size is None else self.fit.parameters["m"]

    @property
    def at_edge(self) -> bool:
        """The minimum lies outside the measured sizes, or the profile has none."""
        return not self.smallest < self.minimum < self.largest or self.fit.parameters["h"] <= 0

    @property
    def is_open(self) -> bool:
        """Whether the best size might as well have no end to one side."""
        interval = self.interval
        return interval is not None and not (interval.low > 0 and np.isfinite(interval.high))

    @property
    def sizes(self) -> Float[np.ndarray, " B"] | None:
        """What the best size might have been: 0 or infinite where a parabola has no minimum; None without a sample."""
        if self.sample.method == "none":
            return None
        form, log_x0, problem = self.fit.form, self.fit.log_x0, self.fit.problem
        _, h, p = form.natural(self.sample.theta, log_x0).T
        _, _, (low, high) = form.natural(np.stack([problem.lower, problem.upper]), log_x0).T
        wide = self.sample.widened(p, self.minimum, logged=True)
        open_ = (h <= 0) | (p <= low * (1 + AT_BOUND)) | (p >= high * (1 - AT_BOUND))
        return np.where(open_, np.where(p < np.sqrt(self.smallest * self.largest), 0.0, np.inf), wide)

    @property
    def interval(self) -> Interval | None:
        """Of the best size; None also where that is not among the sizes that were measured."""
        return None if self.sizes is None or self.at_edge else quantiles(self.sizes)


@dataclass(frozen=True, slots=True)
class IsoFlop:
    """best size = k compute^a over the budgets whose optimum lies inside their grid, and is told by their runs."""

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


def isoflop(points: Observations, *, at: Sequence[float] = (), resamples: int = RESAMPLES, seed: int = 0) -> IsoFlop:
    """The inputs of `points` are compute, and the size that is chosen at each; `at`: computes to be asked for."""
    computes, sizes = points.inputs.T
    profiles, thin, wide = [], [], []
    for rows in _profiles(computes):
        here = Observations(sizes[rows, None], points.residuals.only(rows), points.clusters[rows])
        compute = float(np.exp(np.log(computes[rows]).mean()))
        if np.log(computes[rows].max() / computes[rows].min()) > WIDEST:
            wide.append(f"{computes[rows].min():.3g} to {computes[rows].max():.3g}: {count(len(rows), 'point')}")
        elif here.place_count < FEWEST_SIZES:
            thin.append(f"{compute:.3g}: {count(here.place_count, 'size')}")
        else:
            profiles.append((compute, fit(FORMS["parabola"], here)))
    drawn = together([profile for _, profile in profiles], resamples=resamples, seed=seed) if profiles else []
    found = [
        Budget(compute, one, of_one, *_ends(one.observations.inputs))
        for (compute, one), of_one in zip(profiles, drawn, strict=True)
    ]
    known = [budget for budget in found if budget.best_size is not None]
    a, k = _power([b.compute for b in known], np.array([[b.minimum for b in known]]))
    laws = _drawn(known)
    far = beyond(np.array([b.compute for b in known]), np.array(at), "budget of the law") if known else []
    return IsoFlop(
        budgets=tuple(found),
        a=None if a is None else float(a[0]),
        k=None if k is None else float(k[0]),
        interval=None if laws is None else quantiles(laws[0]),
        facts=(*_facts(found, thin, wide), *(far if a is not None else ())),
        drawn=laws,
    )


def _ends(sizes: np.ndarray) -> tuple[float, float]:
    return float(sizes.min()), float(sizes.max())


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


def _drawn(known: Sequence[Budget]) -> tuple[np.ndarray, np.ndarray] | None:
    """a and k of what the best sizes might have been."""
    places = []
    for budget in known:
        if (sizes := budget.sizes) is None:
            return None
        places.append(np.clip(sizes, budget.smallest / REACH, budget.largest * REACH))
    if len(places) < 2:
        return None
    a, k = _power([b.compute for b in known], np.stack(places, -1))
    assert a is not None  # there are two budgets
    assert k is not None
    return a, k


def _unlike(found: Sequence[Budget]) -> list[Fact]:
    """Budgets whose runs lie so much further off their parabola than all others that chance would not make it so."""
    squares = np.array([budget.fit.r @ budget.fit.r for budget in found])
    freedom = np.array([len(budget.fit.r) - len(budget.fit.theta) for budget in found])
    other_squares, other_freedom = squares.sum() - squares, freedom.sum() - freedom
    facts = []
    for i, budget in enumerate(found):
        if min(freedom[i], other_freedom[i]) < 1 or other_squares[i] <= TINY:
            continue
        ratio = float(squares[i] / freedom[i] / (other_squares[i] / other_freedom[i]))
        if fdtrc(freedom[i], other_freedom[i], ratio) < CHANCE / len(found):
            text = (
                f"Runs at {budget.compute:.3g} lie {np.sqrt(ratio):.2g} times as far off their parabola as all others:"
            )
            facts.append(Fact("unequal_noise", f"{text} intervals that count on one noise are too narrow there."))
    return facts


def _facts(found: list[Budget], thin: list[str], wide: list[str]) -> list[Fact]:
    edges = [b for b in found if b.at_edge]
    result = []
    if edges:
        details = tuple(f"{b.compute:.3g}: sizes {b.smallest:.3g} to {b.largest:.3g}" for b in edges)
        text = f"{count(len(edges), 'budget')} whose best size is not inside the measured ones: left out of the law."
        result.append(Fact("edge", text, details))
    if open_ := [b for b in found if not b.at_edge and b.is_open]:
        text = f"{count(len(open_), 'budget')} whose runs do not tell the best size: left out of the law."
        result.append(Fact("unidentified", text, tuple(f"{b.compute:.3g}" for b in open_)))
    if thin:
        text = f"{count(len(thin), 'budget')} left out with fewer than {FEWEST_SIZES} sizes."
        result.append(Fact("few_points", text, tuple(thin)))
    if wide:
        text = f"{count(len(wide), 'range')} of compute left out: without gaps, it is no budget at which sizes compare."
        result.append(Fact("no_budget", text, tuple(wide)))
    result += _unlike(found)
    if found and found[0].sample.method == "none":
        text = "No interval: what is independent of one another is no more than the parameters of the parabolas."
        result.append(Fact("no_interval", text))
    if sum(b.best_size is not None for b in found) < 2:
        result.append(Fact("few_points", "Fewer than two budgets with an optimum: no law of the best size."))
    return result
