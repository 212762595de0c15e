"""One fit: a form, the points, and the parameters that minimise Huber's function of the residuals."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from vitscale.analysis import search
from vitscale.analysis.forms import Form
from vitscale.analysis.residuals import EXACT, HUBER, PUBLISHED_DELTA, Binomial, LogLoss, Residuals, scale
from vitscale.analysis.solver import Problem, Solution, polish, solve

ROUNDS = 20  # in which the residuals' scale, the points' spread and the fit agree with each other
SETTLED = 1e-4  # relative, of the residuals' scale; ten times as much of a point's spread
ROUNDING = 1e-9  # of a compute: by less N times D differ that were divided out of one budget
FIRST_STEPS = 15  # of every start
FINALISTS = 4  # or a quarter of the starts


@dataclass(frozen=True, slots=True)
class Observations:
    """Points of one curve. Inputs are positive; points of one cluster are not independent of one another."""

    inputs: Float[np.ndarray, "points inputs"]
    residuals: Residuals
    clusters: Int[np.ndarray, " points"]

    @property
    def y(self) -> Float[np.ndarray, " points"]:
        return self.residuals.y

    @property
    def compute(self) -> Float[np.ndarray, " points"]:
        """What points are ordered by from cheap to dear: x, or N times D; one number where they differ by rounding."""
        return _merged(self.inputs.prod(1))

    @property
    def cluster_count(self) -> int:
        return len(np.unique(self.clusters))

    @property
    def place_count(self) -> int:
        return len(np.unique(self.inputs, axis=0))

    def __len__(self) -> int:
        return len(self.inputs)

    def only(self, kept: np.ndarray) -> Observations:
        return Observations(self.inputs[kept], self.residuals.only(kept), self.clusters[kept])

    def judged_by_place(self) -> Observations:
        """Errors whose spread is judged at the mean of their place, before any law is known."""
        residuals = self.residuals
        if isinstance(residuals, LogLoss) or not residuals.tau or residuals.p is not None:
            return self
        _, place = np.unique(self.inputs, axis=0, return_inverse=True)
        images = np.bincount(place.ravel(), residuals.trials)
        means = np.bincount(place.ravel(), residuals.trials * residuals.y) / images
        return replace(self, residuals=residuals.judged(means[place.ravel()]))


@dataclass(frozen=True, slots=True)
class Fit:
    problem: Problem
    observations: Observations
    log_x0: Float[np.ndarray, " inputs"]
    theta: Float[np.ndarray, " parameters"]
    """In the form's scaled units; `parameters` has those of the equation."""
    objective: float
    converged: bool

    @property
    def form(self) -> Form:
        return self.problem.form

    @property
    def parameters(self) -> dict[str, float]:
        values = self.form.natural(self.theta[None], self.log_x0)[0]
        return dict(zip(self.form.parameters, values.tolist(), strict=True))

    @property
    def r(self) -> Float[np.ndarray, " points"]:
        """The residuals of the fitted points."""
        return self.problem.r(self.theta[None])[0]

    def scaled(self, inputs: Float[np.ndarray, "points inputs"]) -> Float[np.ndarray, "points inputs"]:
        return np.log(inputs) - self.log_x0

    def predict(self, inputs: Float[np.ndarray, "points inputs"]) -> Float[np.ndarray, " points"]:
        return self.form.value(self.theta[None], self.scaled(inputs))[0]


def _merged(values: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Each value, or the least of its neighbours that differ from one to the next by less than `ROUNDING`."""
    order = np.argsort(values)
    rising = values[order]
    begins = np.append(True, rising[1:] * (1 - ROUNDING) > rising[:-1])[: len(values)]
    merged = np.empty_like(values)
    merged[order] = rising[begins][np.cumsum(begins) - 1]
    return merged


def fit(form: Form, observations: Observations, *, least_squares: bool = False) -> Fit:
    """The minimum over the form's whole range.

    On losses Huber's delta is 1e-3 of log loss, as published; on errors 1.345 times the scale of the fit's own
    residuals, and a point's spread is that at the law's own error: both are found by turns with the fit.
    `least_squares`: no delta.
    """
    observations = observations.judged_by_place()
    log_x0 = np.log(observations.inputs).mean(0)
    z = np.log(observations.inputs) - log_x0
    lower, upper = form.bounds(z, observations.y, observations.residuals.highest)
    problem = Problem(form, z, observations.residuals, np.inf, lower, upper)
    begin = search.starts(form, z, observations.residuals)
    if isinstance(observations.residuals, LogLoss):
        problem = replace(problem, delta=np.inf if least_squares else PUBLISHED_DELTA)
    found = _best(problem, observations, log_x0, begin)
    if isinstance(observations.residuals, Binomial) and not (least_squares and not observations.residuals.tau):
        found = _settled(found, begin, least_squares=least_squares)
    theta = polish(found.problem, found.theta)
    return replace(found, theta=theta, objective=float(found.problem.objective(theta[None])[0]))


def _best(problem: Problem, observations: Observations, log_x0: np.ndarray, begin: np.ndarray) -> Fit:
    """All starts a little way, and the best few to their minimum."""
    tried = solve(problem, begin, steps=FIRST_STEPS)
    finalists = tried.theta[np.argsort(tried.objective, kind="stable")[: max(FINALISTS, len(begin) // 4)]]
    return lowest(solve(problem, finalists), problem, observations, log_x0)


def lowest(solution: Solution, problem: Problem, observations: Observations, log_x0: np.ndarray) -> Fit:
    """The fit at the best of a solution's minima."""
    best = int(np.argmin(solution.objective))
    return Fit(
        problem=problem,
        observations=observations,
        log_x0=log_x0,
        theta=solution.theta[best],
        objective=float(solution.objective[best]),
        converged=bool(solution.converged[best]),
    )


def _settled(found: Fit, begin: np.ndarray, *, least_squares: bool) -> Fit:
    """The fit of errors whose delta is `HUBER` times the scale of its own residuals, and their spread its own."""
    spread = scale(found.r, len(found.theta))
    for _ in range(ROUNDS):
        residuals = found.problem.residuals
        if spread < EXACT or not isinstance(residuals, Binomial):
            break
        judged = residuals.judged(found.predict(found.observations.inputs)) if residuals.tau else residuals
        problem = replace(found.problem, residuals=judged, delta=np.inf if least_squares else HUBER * spread)
        points = replace(found.observations, residuals=judged)
        found = _best(problem, points, found.log_x0, np.concatenate([found.theta[None], begin]))
        begin = begin[:0]
        last, spread = spread, scale(found.r, len(found.theta))
        moved = np.abs(judged.spread / residuals.spread - 1).max()
        if abs(spread - last) < SETTLED * last and moved < 10 * SETTLED:
            break
    return found
