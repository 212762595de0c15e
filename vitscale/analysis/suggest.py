"""What to run next: of the runs that could be, those after which a forecast would be surest for each device-hour.

What a run would measure is not known, so it is drawn: from laws that the data allow and the spread of their residuals.
The law is fitted again with each such point, and the interval of the forecast is what it would then be. Both intervals
come from the same resamples, which differ by the new run alone: of two that are independent, a tenth is chance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitscale.analysis.fits import Fit, Observations, lowest
from vitscale.analysis.forms import Form
from vitscale.analysis.intervals import Sample, enough_places, refitted, resampled, sample
from vitscale.analysis.residuals import Binomial, LogLoss, Residuals
from vitscale.analysis.solver import solve
from vitscale.wording import count

DRAWS = 16  # of what a run might measure, each with resamples of its own
RESAMPLES = 200
GOLDEN = (5**0.5 - 1) / 2
WORTH = 0.02  # share of the interval that a run must take away to be named: of less, half is chance


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run that could be made."""

    name: str
    curve: str
    inputs: tuple[float, ...]
    flops: float
    """What it would compute itself, its trunk left out."""
    hours: float
    """Device-hours of that."""
    trunk: str | None = None
    """The training that it shares with others: they are not independent, and need it once."""
    trunk_flops: float = 0.0
    """Of the trunk, as far as it needs it and it is not there."""
    trunk_hours: float = 0.0

    def cost(self, paid: float) -> tuple[float, float]:
        """FLOPs and device-hours where so many of its trunk's FLOPs are there by then."""
        missing = max(self.trunk_flops - paid, 0.0)
        share = missing / self.trunk_flops if self.trunk_flops else 0.0
        return self.flops + missing, self.hours + share * self.trunk_hours


@dataclass(frozen=True, slots=True)
class Suggestion:
    candidate: Candidate
    flops: float
    """What it computes, with what its trunk lacks after the runs that were suggested before."""
    hours: float
    before: float
    """Width of the forecast's 95 % interval: that of now, or what is expected of it after those suggested before."""
    after: float
    """Expected with this run: the geometric mean over what it might measure."""
    why: str

    @property
    def narrower(self) -> float:
        """Share of the interval that goes."""
        return 1 - self.after / self.before


@dataclass(frozen=True, slots=True)
class Bare:
    """A curve whose forecast has no interval yet that a run could narrow."""

    curve: str
    why: str
    """What is measured of it, and what an interval takes."""
    runs: tuple[Candidate, ...]
    """Which would bring one: the cheapest, as many as are lacking; fewer where there are no others."""


def bare(
    fits: Mapping[str, Fit],
    law: Form,
    measured: Mapping[str, Collection[float]],
    candidates: Sequence[Candidate],
    trunks: Mapping[str, Mapping[str, int]],
) -> list[Bare]:
    """The curves without an interval, those without a fit among them, by name.

    `law`: of those without a fit. `measured`: of each curve the places in x. `trunks`: as `suggest` has them.
    """
    found = []
    for name in sorted({*fits, *(candidate.curve for candidate in candidates)}):
        if name in fits and sample(fits[name], resamples=1).method != "none":
            continue
        form = fits[name].form if name in fits else law
        own = sorted((c for c in candidates if c.curve == name), key=lambda c: c.cost(0.0))
        found.append(
            _short_of_places(name, form, set(measured.get(name, ())), own)
            or Bare(name, "too few of its runs are independent", tuple(_apart(own, trunks.get(name, {}))[:1]))
        )
    return found


def _short_of_places(name: str, form: Form, places: set[float], own: Sequence[Candidate]) -> Bare | None:
    """A law that cannot miss its points has no interval. `own`: the curve's candidates, cheapest first."""
    needed = len(form.parameters) + 1
    if len(places) >= needed:
        return None
    new: dict[float, Candidate] = {}
    for candidate in own:
        if candidate.inputs[0] not in places:
            new.setdefault(candidate.inputs[0], candidate)
    why = f"{count(len(places), 'place')} measured, and the law {form.name} takes {needed}"
    return Bare(name, why, tuple(new.values())[: needed - len(places)])


def _apart(own: Sequence[Candidate], trunks: Mapping[str, int]) -> list[Candidate]:
    """Those that hang on no training which is measured already."""
    return [candidate for candidate in own if candidate.trunk is None or candidate.trunk not in trunks]


def suggest(
    fits: dict[str, Fit],
    at: dict[str, np.ndarray],
    candidates: Sequence[Candidate],
    budget: float,
    *,
    most: int,
    trunks: Mapping[str, Mapping[str, int]] | None = None,
    seed: int = 0,
) -> Iterator[Suggestion]:
    """Names up to `most` runs, one after another, that together compute at most `budget` FLOPs.

    `fits` and where each is to forecast, `at` (one row), by curve; of curves without an interval `bare` tells.
    `trunks`: of each curve the cluster that its points of a trunk are in.
    """
    found = {name: _Forecast(each, at[name], dict((trunks or {}).get(name, {})), seed) for name, each in fits.items()}
    paid: dict[str | None, float] = {}
    left = [c for c in candidates if c.curve in found and np.isfinite(found[c.curve].width)]
    for _ in range(most):
        left = [c for c in left if c.cost(paid.get(c.trunk, 0.0))[0] <= budget]
        after = {key: found[key[0]].expected(*key[1:]) for key in {_place(c, found) for c in left}}
        gains = [1 - after[_place(c, found)] / found[c.curve].width for c in left]
        hours = [c.cost(paid.get(c.trunk, 0.0))[1] for c in left]
        worth = [i for i, gain in enumerate(gains) if gain > WORTH]
        if not worth:
            return
        best = left.pop(max(worth, key=lambda i: gains[i] / max(hours[i], 1e-12)))
        now = found[best.curve]
        flops, spent = best.cost(paid.get(best.trunk, 0.0))
        expected = after[_place(best, found)]
        yield Suggestion(best, flops, spent, now.width, expected, _why(best, fits[best.curve]))
        budget -= flops
        if best.trunk is not None:
            paid[best.trunk] = max(paid.get(best.trunk, 0.0), best.trunk_flops)
        found[best.curve] = now.with_run(best, expected)


def _place(candidate: Candidate, found: Mapping[str, _Forecast]) -> tuple[str, tuple[float, ...], int | None]:
    """What its gain depends on: where it is, and which points it would hang on."""
    return candidate.curve, candidate.inputs, found[candidate.curve].cluster(candidate)


class _Forecast:
    """A fit, its interval at one place, and what that would be with one more point."""

    def __init__(self, fit: Fit, at: np.ndarray, trunks: dict[str, int], seed: int, width: float | None = None) -> None:
        """`width`: what is expected of the interval, where some of the points have not been measured yet."""
        self.fit, self.at, self.trunks, self.seed = fit, at, trunks, seed
        self.sample = sample(fit, seed=seed)
        self.width = self._width(self.sample) if width is None else width
        self._paired: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def _width(self, drawn: Sample) -> float:
        predicted = drawn.predictions(self.at)
        return predicted[0][0].width if predicted else np.inf

    def cluster(self, candidate: Candidate) -> int | None:
        """Of the points that share its trunk; None where none does."""
        return None if candidate.trunk is None else self.trunks.get(candidate.trunk)

    def with_run(self, run: Candidate, expected: float) -> _Forecast:
        """As if the run had measured what the law says: what comes next must add to it.

        No run does, and one more residual of 0 makes few others look smaller: the interval stays what was expected.
        """
        inputs = np.array([run.inputs])
        fit = with_point(self.fit, inputs, self.fit.predict(inputs), self.fit.theta, self.cluster(run))
        trunks = self.trunks if run.trunk is None else {**self.trunks, run.trunk: int(fit.observations.clusters[-1])}
        return _Forecast(fit, self.at, trunks, self.seed, expected)

    def expected(self, place: tuple[float, ...], cluster: int | None) -> float:
        """The width that is expected with one more run there, the geometric mean over what it might measure."""
        inputs = np.array([place])
        logs = []
        for draw, (theta, measured) in enumerate(self._measured(inputs)):
            logs.append(np.log(self._left(with_point(self.fit, inputs, measured, theta, cluster), draw)))
        return self.width * float(np.exp(np.mean(logs)))

    def _measured(self, inputs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Laws and what a run would measure under each: a law for each noise, both evenly from lowest to highest."""
        values = self.fit.form.value(self.sample.theta, self.fit.scaled(inputs))
        noise = np.sort(self.sample.noise((len(values), 1), self.seed), axis=0)
        even = ((np.arange(DRAWS) + 0.5) / DRAWS * len(values)).astype(int)
        across = np.argsort(np.arange(DRAWS) * GOLDEN % 1)  # neighbours among laws have noises far apart
        for law, r in zip(np.argsort(values[:, 0])[even], noise[even[across]], strict=True):
            yield self.sample.theta[law], self.fit.problem.residuals.noisy(values[law], r)

    def _left(self, refit: Fit, draw: int) -> float:
        """The share of the interval that is left where the fit becomes this one."""
        parameters, points = len(refit.theta), refit.observations
        if self.sample.method != "bootstrap":  # the points that both have are off by the same in both
            drawn = (sample(fit, resamples=RESAMPLES, seed=self.seed) for fit in (refit, self.fit))
            now, until_now = map(self._width, drawn)
            return now / until_now
        if draw not in self._paired:
            weights = resampled(self.fit.observations, parameters, RESAMPLES, np.random.default_rng((self.seed, draw)))
            self._paired[draw] = weights, refitted(self.fit, weights)
        weights, before = self._paired[draw]
        weights = with_last(weights, points.clusters, np.random.default_rng((self.seed, draw)))
        known = enough_places(points, parameters, weights)
        widths = [
            self._width(Sample(fit, "bootstrap", theta, fit.observations.cluster_count - parameters))
            for fit, theta in ((self.fit, before[known]), (refit, refitted(refit, weights[known])))
        ]
        return widths[1] / widths[0]


def with_last(weights: np.ndarray, clusters: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each point is in each resample, the last of `clusters` included, of which `weights` know nothing yet.

    A cluster of its own takes the place of others as often as it would be drawn; they stay what they were otherwise.
    """
    before, last = clusters[:-1], clusters[-1]
    if last in before:
        return np.column_stack([weights, weights[:, np.flatnonzero(before == last)[0]]])
    _, first, cluster = np.unique(before, return_index=True, return_inverse=True)
    times, count = weights[:, first].astype(int), len(first)
    drawn = rng.binomial(count + 1, 1 / (count + 1), len(times))
    for row, new in enumerate(drawn):
        if new == 0:
            times[row, rng.integers(count)] += 1
        elif new > 1:
            times[row] -= rng.multivariate_hypergeometric(times[row], new - 1)
    return np.column_stack([times[:, cluster], drawn]).astype(float)


def with_point(fit: Fit, inputs: np.ndarray, y: np.ndarray, near: np.ndarray, cluster: int | None = None) -> Fit:
    """The fit with one more point, begun where it is and at `near`; Huber's delta stays. No `cluster`: independent."""
    points = fit.observations
    cluster = int(points.clusters.max()) + 1 if cluster is None else cluster
    observations = Observations(
        np.concatenate([points.inputs, inputs]),
        _extended(points.residuals, y, fit.predict(inputs)),
        np.append(points.clusters, cluster),
    )
    z = np.concatenate([fit.problem.z, fit.scaled(inputs)])
    problem = replace(fit.problem, z=z, residuals=observations.residuals)
    begin = np.clip(np.stack([fit.theta, near]), problem.lower, problem.upper)
    return lowest(solve(problem, begin), problem, observations, fit.log_x0)


def _extended(residuals: Residuals, y: np.ndarray, p: np.ndarray) -> Residuals:
    """With one more measurement, on as many test images as the others; p is what the law says there."""
    if isinstance(residuals, LogLoss):
        return LogLoss(np.append(residuals.y, y))
    trials = np.append(residuals.trials, np.median(residuals.trials))
    judged = None if residuals.p is None else np.append(residuals.p, np.clip(p, 0.0, 1.0))
    return Binomial(np.append(residuals.y, y), trials, residuals.tau, judged)


def _why(candidate: Candidate, fit: Fit) -> str:
    compute, measured = float(np.prod(candidate.inputs)), fit.observations.compute
    if compute > measured.max():
        return f"{compute / measured.max():.3g} times beyond the largest so far"
    if compute < measured.min():
        return f"{measured.min() / compute:.3g} times below the smallest so far"
    same = int((fit.observations.inputs == np.array(candidate.inputs)).all(axis=1).sum())
    if same:
        return f"one more run where there {'is one' if same == 1 else f'are {same}'}"
    return "between runs that are there"
