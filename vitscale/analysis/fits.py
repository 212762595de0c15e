"""One fit: a form, the points, and the parameters that minimise Huber's function of the residuals."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from vitscale.analysis import search
from vitscale.analysis.forms import Form
from vitscale.analysis.residuals import HUBER, PUBLISHED_DELTA, Binomial, LogLoss, Residuals, scale
from vitscale.analysis.solver import Problem, Solution, polish, solve

SCALES = 20  # rounds in which the residuals' scale and the fit agree with each other
FIRST_STEPS = 15  # of every start
FINALISTS = 4
EXACT = 1e-7  # a scale below is rounding: the points lie on the curve


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
        """What points are ordered by from cheap to dear: x, or N times D."""
        return self.inputs.prod(1)

    @property
    def cluster_count(self) -> int:
        return len(np.unique(self.clusters))

    def __len__(self) -> int:
        return len(self.inputs)

    def only(self, kept: np.ndarray) -> Observations:
        return Observations(self.inputs[kept], self.residuals.only(kept), self.clusters[kept])


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


def fit(form: Form, observations: Observations, *, least_squares: bool = False) -> Fit:
    """The minimum over the form's whole range.

    On losses Huber's delta is 1e-3 of log loss, as published; on errors 1.345 times the scale of the fit's own
    residuals, found by turns with the fit. `least_squares`: no delta, which on errors is the maximum likelihood.
    """
    log_x0 = np.log(observations.inputs).mean(0)
    z = np.log(observations.inputs) - log_x0
    lower, upper = form.bounds(z, observations.y, observations.residuals.highest)
    problem = Problem(form, z, observations.residuals, np.inf, lower, upper)
    begin = search.starts(form, z, observations.residuals)
    if isinstance(observations.residuals, LogLoss):
        problem = replace(problem, delta=np.inf if least_squares else PUBLISHED_DELTA)
    found = _best(problem, observations, log_x0, begin)
    if isinstance(observations.residuals, Binomial) and not least_squares:
        found = _rescaled(found, begin)
    theta = polish(found.problem, found.theta)
    return replace(found, theta=theta, objective=float(found.problem.objective(theta[None])[0]))


def _best(problem: Problem, observations: Observations, log_x0: np.ndarray, begin: np.ndarray) -> Fit:
    """All starts a little way, and the best few to their minimum."""
    tried = solve(problem, begin, steps=FIRST_STEPS)
    finalists = tried.theta[np.argsort(tried.objective, kind="stable")[:FINALISTS]]
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


def _rescaled(found: Fit, begin: np.ndarray) -> Fit:
    """Huber's fit whose delta is `HUBER` times the scale of its own residuals."""
    spread = scale(found.r, len(found.theta))
    for _ in range(SCALES):
        if spread < EXACT:
            break
        problem = replace(found.problem, delta=HUBER * spread)
        found = _best(problem, found.observations, found.log_x0, np.concatenate([found.theta[None], begin]))
        begin = begin[:0]
        last, spread = spread, scale(found.r, len(found.theta))
        if abs(spread - last) < 1e-4 * last:
            break
    return found
