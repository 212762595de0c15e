"""Robust non-linear least squares for many starts or many weightings of the points at once.

Each step is Levenberg and Marquardt's on Huber's function, with Newton's weights (0 beyond delta) where they help and
those of iteratively reweighted least squares where they do not; parameters at a bound that they would cross are held.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize

from vitscale.analysis.forms import Form, Inputs, Theta
from vitscale.analysis.residuals import Residuals, clipped, huber
from vitscale.processes import cores

STEPS = 200
CELLS = 500_000  # numbers of a Jacobian at once: larger batches leave the processor's cache
TINY = 1e-300
SHARED = 2  # points a place on average, from which on it pays to compute the law by place


@dataclass(frozen=True, slots=True)
class Places:
    """Where the points are: a law is computed once for all points of a place."""

    z: Float[np.ndarray, "places inputs"]
    at: Int[np.ndarray, " points"] | None = None
    """Of each point its place; None: each has one of its own, in their order."""
    order: Int[np.ndarray, " points"] = field(init=False, repr=False)
    """The points of the first place, then those of the second, ..."""
    begins: Int[np.ndarray, " places"] = field(init=False, repr=False)
    """Where each place begins in that order."""

    def __post_init__(self) -> None:
        at = np.arange(len(self.z)) if self.at is None else self.at
        order = np.argsort(at, kind="stable")
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "begins", np.searchsorted(at[order], np.arange(len(self.z))))

    def spread_out(self, values: np.ndarray) -> np.ndarray:
        """Of values over places (the second axis) those over points."""
        return values if self.at is None else np.take(values, self.at, 1)

    def sums(self, values: Float[np.ndarray, "B points"]) -> Float[np.ndarray, "B places"]:
        """Of values over points the sum at each place."""
        return values if self.at is None else np.add.reduceat(values[:, self.order], self.begins, axis=1)


def distinct(z: Inputs) -> Places:
    found, at = np.unique(z, axis=0, return_inverse=True)
    return Places(found, at.ravel())


@dataclass(frozen=True, slots=True)
class Problem:
    form: Form
    z: Inputs
    residuals: Residuals
    delta: float
    """Of Huber's function; infinite for least squares."""
    lower: Float[np.ndarray, " parameters"]
    upper: Float[np.ndarray, " parameters"]
    places: Places = field(init=False, repr=False)

    def __post_init__(self) -> None:
        places = distinct(self.z)
        object.__setattr__(self, "places", places if SHARED * len(places.z) <= self.points else Places(self.z))

    @property
    def points(self) -> int:
        return len(self.z)

    def only(self, kept: Int[np.ndarray, " kept"]) -> Problem:
        return replace(self, z=self.z[kept], residuals=self.residuals.only(kept))

    def r(self, theta: Theta) -> Float[np.ndarray, "B points"]:
        return self.residuals.alone(self.form.value(theta, self.places.z), self.places.spread_out)

    def objective(
        self, theta: Theta, weights: np.ndarray | float = 1.0, shift: np.ndarray | float = 0.0
    ) -> Float[np.ndarray, " B"]:
        return (weights * huber(self.r(theta) + shift, self.delta)).sum(-1)

    def gradient(self, theta: Theta, weights: np.ndarray | float = 1.0) -> tuple[np.ndarray, Theta]:
        """The objective and its gradient."""
        at = self.linearised(theta)
        return (weights * huber(at.r, self.delta)).sum(-1), at.gradient(weights * clipped(at.r, self.delta))

    def linearised(self, theta: Theta) -> Linearised:
        f, jacobian = self.form.value_and_jacobian(theta, self.places.z)
        return Linearised(self.places, *self.residuals.of(f, self.places.spread_out), jacobian)


@dataclass(frozen=True, slots=True)
class Linearised:
    """Residuals r, with their Jacobian in two factors: dr/df at the points, and the law's own at the places."""

    places: Places
    r: Float[np.ndarray, "B points"]
    slope: Float[np.ndarray, "B points"]
    jacobian: Float[np.ndarray, "B places k"]

    def gradient(self, pull: Float[np.ndarray, "B points"]) -> Theta:
        """The sum over points of a pull along each residual."""
        return (self.places.sums(pull * self.slope)[:, None, :] @ self.jacobian)[:, 0]

    def normal(self, curvature: Float[np.ndarray, "B points"] | float = 1.0) -> Float[np.ndarray, "B k k"]:
        """The weighted sum over points of the outer squares of the Jacobian's rows."""
        weights = self.places.sums(curvature * self.slope**2)
        return self.jacobian.transpose(0, 2, 1) @ (self.jacobian * weights[..., None])


@dataclass(frozen=True, slots=True)
class Solution:
    theta: Theta
    objective: Float[np.ndarray, " B"]
    converged: Bool[np.ndarray, " B"]


def solve(
    problem: Problem,
    starts: Theta,
    weights: Float[np.ndarray, "B points"] | None = None,
    *,
    shift: Float[np.ndarray, "B points"] | None = None,
    fixed: Bool[np.ndarray, "B parameters"] | None = None,
    tolerance: float = 1e-10,
    steps: int = STEPS,
    enough: float = 0.0,
) -> Solution:
    """A minimum from each start, each under its own weights of the points (1 where not given).

    `shift` is added to the residuals, as if other y had been measured. `fixed` parameters keep their value.
    `tolerance` is of the objective, relative, over a step. An objective of at most `enough` is not lowered further.
    """
    batch = max(1, CELLS // max(problem.points * len(problem.form.parameters), 1))

    def part(at: int) -> Solution:
        some = slice(at, at + batch)
        of_weights, of_shift, of_fixed = (_of(rows, some) for rows in (weights, shift, fixed))
        return _solve(problem, starts[some], of_weights, of_shift, of_fixed, tolerance, steps, enough)

    begins = range(0, len(starts), batch)
    with ThreadPoolExecutor(cores()) as pool:  # NumPy computes without Python's lock
        parts = list(pool.map(part, begins) if len(begins) > 1 else map(part, begins))
    return Solution(
        theta=np.concatenate([part.theta for part in parts]),
        objective=np.concatenate([part.objective for part in parts]),
        converged=np.concatenate([part.converged for part in parts]),
    )


def polish(problem: Problem, theta: Float[np.ndarray, " parameters"]) -> Float[np.ndarray, " parameters"]:
    """The minimum near by, with SciPy's L-BFGS-B and the analytic gradient; never worse than what it is given."""
    unit = np.maximum(np.abs(theta), 1e-3)
    start = float(problem.objective(theta[None])[0])
    of = max(start, TINY)

    def scaled(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = problem.gradient((u * unit)[None])
        return float(value[0]) / of, slope[0] * unit / of

    bounds = list(zip(problem.lower / unit, problem.upper / unit, strict=True))
    options = {"maxiter": 500, "ftol": 1e-16, "gtol": 1e-12, "maxls": 50}
    found = minimize(scaled, theta / unit, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return found.x * unit if found.fun * of < start else theta


def _solve(
    problem: Problem,
    starts: Theta,
    weights: np.ndarray | None,
    shift: np.ndarray | None,
    fixed: np.ndarray | None,
    tolerance: float,
    steps: int,
    enough: float,
) -> Solution:
    theta = np.clip(starts, problem.lower, problem.upper)
    held = np.zeros(theta.shape, dtype=bool) if fixed is None else fixed
    ones = np.ones((len(theta), 1)) if weights is None else weights
    shifts = np.zeros((len(theta), 1)) if shift is None else shift
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # a step too long is refused, whatever it gave
        return _descend(problem, theta, ones, shifts, held, tolerance, steps, max(enough, TINY))


def _descend(
    problem: Problem,
    theta: Theta,
    weights: np.ndarray,
    shift: np.ndarray,
    held: np.ndarray,
    tolerance: float,
    steps: int,
    enough: float,
) -> Solution:
    best = problem.objective(theta, weights, shift)
    damping = np.full(len(theta), 1e-3)
    quiet = np.zeros(len(theta), dtype=int)
    active = np.flatnonzero(np.isfinite(best) & (best > enough))
    for _ in range(steps):
        if not len(active):
            break
        tried, value = _step(problem, theta[active], weights[active], shift[active], damping[active], held[active])
        better = value < best[active]
        gain = np.where(better, best[active] - value, 0.0)
        small = gain <= tolerance * best[active] + TINY
        theta[active] = np.where(better[:, None], tried, theta[active])
        best[active] = np.where(better, value, best[active])
        damping[active] = np.where(better, np.maximum(damping[active] / 5, 1e-12), damping[active] * 4)
        # A step without gain may only have been too long: 1e6 is as short as it gets.
        quiet[active] = np.where(small & (better | (damping[active] > 1e6)), quiet[active] + 1, 0)
        active = active[(quiet[active] < 2) & (best[active] > enough)]
    converged = np.isfinite(best)
    converged[active] = False
    return Solution(theta, best, converged)


def _of(rows: np.ndarray | None, some: slice) -> np.ndarray | None:
    return None if rows is None else rows[some]


def _step(
    problem: Problem, theta: Theta, weights: np.ndarray, shift: np.ndarray, damping: np.ndarray, held: np.ndarray
) -> tuple[Theta, Float[np.ndarray, " B"]]:
    """The better of Newton's and the reweighted step."""
    at = problem.linearised(theta)
    r = at.r + shift
    pull = clipped(r, problem.delta)
    gradient = at.gradient(weights * pull)
    free = ~(held | ((theta <= problem.lower) & (gradient > 0)) | ((theta >= problem.upper) & (gradient < 0)))
    share = np.abs(pull) / np.maximum(np.abs(r), TINY)  # 1 within delta, delta / |r| beyond
    curvatures = [weights * np.where(r == 0, 1.0, share)]
    if np.isfinite(problem.delta):
        curvatures.append(weights * (np.abs(r) <= problem.delta))
    tried = [_move(problem, theta, gradient, at.normal(c), damping, free) for c in curvatures]
    values = np.stack([problem.objective(t, weights, shift) for t in tried])
    values = np.where(np.isfinite(values), values, np.inf)
    choice = values.argmin(0)
    rows = np.arange(len(theta))
    return np.stack(tried)[choice, rows], values[choice, rows]


def _move(
    problem: Problem, theta: Theta, gradient: Theta, normal: np.ndarray, damping: np.ndarray, free: np.ndarray
) -> Theta:
    """Theta after one damped step within the bounds."""
    diagonal = np.einsum("bii->bi", normal).copy()
    # Of each parameter by itself: a coefficient's is that of the losses, whatever their unit.
    floor = np.where(diagonal > 0, 1e-12 * diagonal, 1.0)
    both = free[:, :, None] & free[:, None, :]
    system = np.where(both, normal, 0.0)
    added = np.where(free, damping[:, None] * np.maximum(diagonal, floor) + floor, 1.0)
    np.einsum("bii->bi", system)[...] += added
    # Scaled to a unit diagonal: parameters differ by many orders of magnitude.
    unit = 1 / np.sqrt(np.einsum("bii->bi", system))
    system = system * unit[:, :, None] * unit[:, None, :]
    right = np.where(free, gradient, 0.0) * unit
    try:
        step = np.linalg.solve(system, right[..., None])[..., 0] * unit
    except np.linalg.LinAlgError:
        step = np.einsum("bij,bj->bi", np.linalg.pinv(system), right) * unit
    return np.clip(theta - step, problem.lower, problem.upper)
