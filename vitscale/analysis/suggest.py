"""What to run next: of the runs that could be, those after which a forecast would be surest for each device-hour.

What a run would measure is not known, so it is drawn: from laws that the data allow and the spread of their residuals.
The law is fitted again with each such point, and the interval of the forecast is what it would then be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitscale.analysis.fits import Fit, Observations, lowest
from vitscale.analysis.intervals import Sample, sample
from vitscale.analysis.residuals import Binomial, LogLoss, Residuals
from vitscale.analysis.solver import solve

DRAWS = 8  # of what a run might measure
RESAMPLES = 200
WORTH = 0.01  # share of the interval that a run must take away to be named


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run that could be made."""

    name: str
    curve: str
    inputs: tuple[float, ...]
    flops: float
    """What it would compute itself."""
    hours: float
    """Device-hours."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    candidate: Candidate
    before: float
    """Width of the forecast's 95 % interval, those suggested before included."""
    after: float
    """Expected with this run: the median over what it might measure."""
    why: str

    @property
    def narrower(self) -> float:
        """Share of the interval that goes."""
        return 1 - self.after / self.before


def suggest(
    fits: dict[str, Fit],
    at: dict[str, np.ndarray],
    candidates: Sequence[Candidate],
    budget: float,
    *,
    most: int,
    seed: int = 0,
) -> Iterator[Suggestion]:
    """Names up to `most` runs, one after another, that together compute at most `budget` FLOPs.

    `fits` and where each is to forecast, `at` (one row), by curve; of curves without an interval nothing is suggested.
    """
    found = {name: _Forecast(each, at[name], seed) for name, each in fits.items()}
    left = [c for c in candidates if c.curve in found and np.isfinite(found[c.curve].width)]
    for _ in range(most):
        left = [candidate for candidate in left if candidate.flops <= budget]
        after = {key: found[key[0]].expected(np.array([key[1]])) for key in {(c.curve, c.inputs) for c in left}}
        gains = [1 - after[c.curve, c.inputs] / found[c.curve].width for c in left]
        worth = [i for i, gain in enumerate(gains) if gain > WORTH]
        if not worth:
            return
        best = left.pop(max(worth, key=lambda i: gains[i] / max(left[i].hours, 1e-12)))
        now = found[best.curve]
        yield Suggestion(best, now.width, after[best.curve, best.inputs], _why(best, fits[best.curve]))
        budget -= best.flops
        # As if it had measured what the law says: what comes next must add to it.
        inputs = np.array([best.inputs])
        found[best.curve] = _Forecast(with_point(now.fit, inputs, now.fit.predict(inputs), now.fit.theta), now.at, seed)


class _Forecast:
    """A fit, its interval at one place, and what that would be with one more point."""

    def __init__(self, fit: Fit, at: np.ndarray, seed: int) -> None:
        self.fit, self.at, self.seed = fit, at, seed
        self.sample = sample(fit, resamples=RESAMPLES, seed=seed)
        self.width = self._width(self.sample)

    def _width(self, drawn: Sample) -> float:
        predicted = drawn.predictions(self.at)
        return predicted[0][0].width if predicted else np.inf

    def expected(self, inputs: np.ndarray) -> float:
        """The median width over what a run at `inputs` might measure."""
        rng = np.random.default_rng(self.seed)
        points, parameters = len(self.fit.observations), len(self.fit.theta)
        spread = self.fit.r * np.sqrt(points / max(points - parameters, 1))
        widths = []
        for theta in self.sample.theta[rng.choice(len(self.sample.theta), DRAWS)]:
            law = self.fit.form.value(theta[None], self.fit.scaled(inputs))[0]
            measured = self.fit.problem.residuals.noisy(law, rng.choice(spread, 1))
            refit = with_point(self.fit, inputs, measured, theta)
            widths.append(self._width(sample(refit, resamples=RESAMPLES, seed=self.seed)))
        return float(np.median(widths))


def with_point(fit: Fit, inputs: np.ndarray, y: np.ndarray, near: np.ndarray) -> Fit:
    """The fit with one more independent point, begun where it is and at `near`; Huber's delta stays."""
    points = fit.observations
    observations = Observations(
        np.concatenate([points.inputs, inputs]),
        _extended(points.residuals, y),
        np.append(points.clusters, points.clusters.max() + 1),
    )
    z = np.concatenate([fit.problem.z, fit.scaled(inputs)])
    problem = replace(fit.problem, z=z, residuals=observations.residuals)
    begin = np.clip(np.stack([fit.theta, near]), problem.lower, problem.upper)
    return lowest(solve(problem, begin), problem, observations, fit.log_x0)


def _extended(residuals: Residuals, y: np.ndarray) -> Residuals:
    """With one more measurement, on as many test images as the others."""
    if isinstance(residuals, LogLoss):
        return LogLoss(np.append(residuals.y, y))
    trials = np.append(residuals.trials, np.median(residuals.trials))
    return Binomial(np.append(residuals.y, y), trials, residuals.tau)


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
