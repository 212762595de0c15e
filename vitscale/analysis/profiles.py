"""Whether the data identify a parameter: how far it can go, all others fitted anew, before the misfit rises."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit

from vitscale.analysis.fits import Fit
from vitscale.analysis.intervals import LEVEL, Interval, Sample, freedom_of
from vitscale.analysis.residuals import clipped, scale
from vitscale.analysis.solver import solve

ROUNDS = 60
BISECTIONS = 7
STEPS = 60  # of the solver at each value
NOWHERE = 50.0  # a logarithm that may be off by as much has no end
WIDE = 10.0  # ends further apart, as a ratio, say nothing of a parameter's size
WIDE_IN_LOG = 1e6  # far from x = 1 a coefficient takes up its exponent's doubt: at x = 1e18 a third of it
NEAR = 1e-6  # of its value: as close to a bound an interval touches it
SMALLEST_RISE = 1e-18  # of residuals that are rounding
LEAST_FREEDOM = 2  # with one, the residual tells nothing of its own size
FLOORS = {"a", "E", "floor"}
ZERO_MEANS = ("a", "E", "d", "floor", "m")  # parameters that may well be 0: no floor, no shift


@dataclass(frozen=True, slots=True)
class Profile:
    """The values of a parameter that fit as well as the best; None: no end."""

    low: float | None
    high: float | None
    down_to_zero: bool
    """0 fits as well, and means something: there is no floor."""
    certain: bool = True
    """The parameter's interval agrees that it is identified."""

    @property
    def identified(self) -> bool:
        return self.certain and self.high is not None and (self.low is not None or self.down_to_zero)


def profiles(fit: Fit) -> dict[str, Profile]:
    """Of each parameter, up to the rise of the objective that an F-test at 95 % calls significant.

    A parameter is identified if the rise comes on both sides within its range (practical identifiability, Raue et al.,
    2009), or if the lower end is a 0 that means something. A law with no fewer parameters than its points have places
    meets them in many ways: none of its parameters is identified.
    """
    if fit.observations.place_count <= len(fit.theta):
        return dict.fromkeys(fit.form.parameters, Profile(None, None, down_to_zero=False))
    freedom = max(freedom_of(fit), 1)
    allowed = _unit_of_rise(fit) * float(stdtrit(freedom, (1 + LEVEL) / 2)) ** 2 / 2
    names = fit.form.parameters
    coefficients = np.isin(names, fit.form.logged) & ~np.isin(names, fit.form.places)
    found = _profiles(fit, np.flatnonzero(~coefficients), allowed)
    moved, inputs = _in_units_of_equation(fit), fit.observations.inputs
    if np.allclose(moved.predict(inputs), fit.predict(inputs), rtol=1e-6, atol=0):
        found |= _profiles(moved, np.flatnonzero(coefficients), allowed)
    else:  # far from x = 1 a coefficient may be larger, or smaller, than any number
        found |= dict.fromkeys(np.array(names)[coefficients], Profile(None, None, down_to_zero=False))
    return {name: found[name] for name in fit.form.parameters}


def agreed(found: dict[str, Profile], drawn: Sample) -> dict[str, Profile]:
    """The profiles, less those that the intervals deny: a parameter is identified if both criteria say so.

    An interval denies it that touches a bound of the parameter (a 0 that means something aside), that has no end, or
    whose ends are further apart than a ratio of `WIDE`; of a place, or a coefficient whose exponent is identified,
    `WIDE_IN_LOG`. So does any with a single degree of freedom: it is narrow where the one residual happens to be small.
    What fits as well then holds the interval too.
    """
    intervals, form = drawn.parameters(), drawn.fit.form
    result: dict[str, Profile] = {}
    for name in sorted(found, key=lambda name: name in form.exponents):  # a coefficient after its exponent
        exponent = form.exponents.get(name)
        in_log = name in form.places or (exponent is not None and result[exponent].identified)
        wide = WIDE_IN_LOG if in_log else WIDE
        ask = found[name].identified and name in intervals
        sure = drawn.method != "t" or drawn.freedom >= LEAST_FREEDOM
        result[name] = _denied(drawn.fit, name, found[name], intervals[name], wide, sure=sure) if ask else found[name]
    return {name: result[name] for name in found}


def _denied(fit: Fit, name: str, end: Profile, interval: Interval, wide: float, *, sure: bool) -> Profile:
    form, i = fit.form, fit.form.parameters.index(name)
    in_log = name in (*form.logged, *form.places)
    near = 0.0 if in_log else NEAR * abs(fit.parameters[name])
    lower, upper = (0.0, np.inf) if in_log else (fit.problem.lower[i], fit.problem.upper[i])
    bottom = name not in ZERO_MEANS and interval.low <= lower + near
    top = not np.isfinite(interval.high) or interval.high >= upper - near
    ratio = interval.high / interval.low if interval.low > 0 and name not in ZERO_MEANS else 1.0
    if sure and not bottom and not top and ratio <= wide:
        return end
    low = None if bottom or end.low is None else min(end.low, interval.low)
    high = None if top or end.high is None else max(end.high, interval.high)
    return replace(end, low=low, high=high, certain=False)


@dataclass(slots=True)
class _Ends:
    """Ends that are looked for side by side: of each parameter the lower, then of each the upper."""

    which: Int[np.ndarray, " ends"]
    in_log: Bool[np.ndarray, " ends"]
    """Coefficients range over decades: their logarithm is halved."""
    near: Float[np.ndarray, " ends"]
    far: Float[np.ndarray, " ends"]
    bound: Float[np.ndarray, " ends"]
    reach: Float[np.ndarray, " ends"]
    theta: Float[np.ndarray, "ends parameters"]
    """The fit at `near`."""
    risen: Bool[np.ndarray, " ends"]
    open: Bool[np.ndarray, " ends"]
    halved: Int[np.ndarray, " ends"]

    @property
    def done(self) -> Bool[np.ndarray, " ends"]:
        return self.open | (self.halved >= BISECTIONS)

    def targets(self) -> Float[np.ndarray, " ends"]:
        """Half-way between what fits and what does not; before that is known, further out, to the bound at most."""
        side = np.sign(self.bound - self.near)
        out = self.near + side * np.minimum(self.reach, np.abs(self.bound - self.near))
        return np.where(self.risen, (self.near + self.far) / 2, out)

    def learn(self, target: np.ndarray, rises: np.ndarray, theta: np.ndarray) -> None:
        """Narrow or widen where one is not done, given whether the misfit rises at the target, and the fit there."""
        active = ~self.done
        self.halved += active & self.risen
        fits = active & ~rises
        self.open |= fits & ~self.risen & (target == self.bound)
        self.reach = np.where(fits & ~self.risen, 2 * self.reach, self.reach)
        self.near = np.where(fits, target, self.near)
        self.theta = np.where(fits[:, None], theta, self.theta)
        self.far = np.where(active & rises, target, self.far)
        self.risen |= active & rises


def _profiles(fit: Fit, which: np.ndarray, allowed: float) -> dict[str, Profile]:
    if not len(which):
        return {}
    ends = _begin(fit, which)
    for _ in range(ROUNDS):
        if ends.done.all():
            break
        target = ends.targets()
        ends.learn(target, *_rises(fit, ends, target, allowed))
    ends.open |= ~ends.risen | _at_steepest(fit, ends)  # after so many rounds
    values = fit.form.natural(ends.theta, fit.log_x0)[np.arange(len(ends.which)), ends.which]
    lows, highs = np.split(np.where(ends.open, np.nan, values), 2)
    return {
        fit.form.parameters[i]: _profile(fit.form.parameters[i], float(low), float(high), float(floor))
        for i, low, high, floor in zip(which, lows, highs, ends.bound[: len(which)], strict=True)
    }


def _at_steepest(fit: Fit, ends: _Ends) -> np.ndarray:
    """Where its exponent is as large as is tried: what ends there is the range of the exponent, not the parameter.

    Exponents and floors end for themselves.
    """
    form, upper = fit.form, fit.problem.upper
    exponents = set(form.exponents.values())
    found = np.zeros(len(ends.which), dtype=bool)
    for end, name in enumerate(form.parameters[i] for i in ends.which):
        if name not in exponents | FLOORS:
            own = [form.exponents[name]] if name in form.exponents else exponents
            steep = [form.parameters.index(exponent) for exponent in own]
            found[end] = np.any(ends.theta[end, steep] >= upper[steep] * (1 - NEAR))
    return found


def _profile(name: str, low: float, high: float, floor: float) -> Profile:
    zero = bool(np.isnan(low)) and floor == 0 and name in ZERO_MEANS
    return Profile(None if np.isnan(low) else low, None if np.isnan(high) else high, zero)


def _begin(fit: Fit, which: np.ndarray) -> _Ends:
    names = np.array(fit.form.parameters)[which]
    value = fit.theta[which]
    in_log = np.isin(names, fit.form.logged) & ~np.isin(names, fit.form.logs) & (value > 0)
    se = np.sqrt(np.maximum(np.diag(_covariance(fit)), 0.0))[which]
    at = np.where(in_log, np.log(np.where(in_log, value, 1.0)), value)
    se = np.where(in_log, se / np.where(in_log, value, 1.0), se)
    far = np.where(in_log | np.isin(names, fit.form.logs), NOWHERE, 1e3 * fit.observations.y.max())
    far = np.where(np.isin(names, fit.form.places) & ~np.isin(names, fit.form.logs), np.inf, far)  # a place is no y
    floor = np.where(in_log, at - far, np.maximum(fit.problem.lower[which], at - far))
    ceiling = np.where(in_log, at + far, np.minimum(fit.problem.upper[which], at + far))
    # An end that is a bound already is open: nothing fits worse there.
    bound = np.concatenate([floor, ceiling])
    near = np.tile(at, 2)
    return _Ends(
        which=np.tile(which, 2),
        in_log=np.tile(in_log, 2),
        near=near,
        far=bound.copy(),
        bound=bound,
        reach=np.tile(2 * se + 1e-6 * np.maximum(np.abs(at), 1e-3), 2),
        theta=np.repeat(fit.theta[None], 2 * len(which), 0),
        risen=np.zeros(2 * len(which), dtype=bool),
        open=near == bound,
        halved=np.zeros(2 * len(which), dtype=int),
    )


def _rises(fit: Fit, ends: _Ends, target: np.ndarray, allowed: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether the misfit has risen enough at each target, and the fit there."""
    rows = np.arange(len(target))
    value = np.where(ends.in_log, np.exp(np.where(ends.in_log, target, 0.0)), target)
    start = np.stack([_along_ridge(fit, ends, target), ends.theta, np.repeat(fit.theta[None], len(target), 0)])
    start[:, rows, ends.which] = value
    fixed = np.zeros(start.shape, dtype=bool)
    fixed[:, rows, ends.which] = True
    width = start.shape[-1]
    found = solve(
        fit.problem,
        start.reshape(-1, width),
        fixed=fixed.reshape(-1, width),
        tolerance=1e-4,
        steps=STEPS,
        enough=fit.objective + allowed,
    )
    objective = found.objective.reshape(len(start), -1)
    best = objective.argmin(0)
    return objective[best, rows] - fit.objective > allowed, found.theta.reshape(start.shape)[best, rows]


def _along_ridge(fit: Fit, ends: _Ends, target: np.ndarray) -> np.ndarray:
    """The fit at `near`, moved to the target where the misfit rises least: coefficients go with their exponents.

    Without that a solver's first step from a coefficient moved alone is far too long: it ends where the law is 0
    everywhere, and nothing leads back.
    """
    rows, near = np.arange(len(target)), ends.theta
    lower, upper = fit.problem.lower, fit.problem.upper
    in_log = np.isin(fit.form.parameters, fit.form.logged) & ~np.isin(fit.form.parameters, fit.form.logs) & (near > 0)
    size = np.where(in_log, near, 1.0)  # of a parameter's move, for one of its logarithm
    normal = fit.problem.linearised(near).normal() * size[:, :, None] * size[:, None, :]
    held = (near <= lower) | (near >= upper)
    held[rows, ends.which] = True
    across = np.where(held, 0.0, normal[rows, ends.which])
    within = np.where(held[:, :, None] | held[:, None, :], 0.0, normal)
    move = -(_inverse(within) @ across[..., None])[..., 0] * (target - ends.near)[:, None]
    grown = near * np.exp(np.clip(np.where(in_log, move, 0.0), -NOWHERE, NOWHERE))
    return np.clip(np.where(in_log, grown, near + move), lower, upper)


def _in_units_of_equation(fit: Fit) -> Fit:
    """The same fit with x0 = 1, where a coefficient is that of the equation and not the curve's height."""
    form, problem = fit.form, fit.problem
    lower, upper = problem.lower.copy(), problem.upper.copy()
    for name in set(form.places) - set(form.logs):
        upper[form.parameters.index(name)] *= np.exp(fit.log_x0[0])
    logs = np.isin(form.parameters, form.logs)
    lower, upper = np.where(logs, -np.inf, lower), np.where(logs, np.inf, upper)
    moved = replace(problem, z=np.log(fit.observations.inputs), lower=lower, upper=upper)
    theta = form.moved(fit.theta[None], fit.log_x0)[0]
    return replace(fit, problem=moved, log_x0=np.zeros_like(fit.log_x0), theta=theta)


def _covariance(fit: Fit) -> Float[np.ndarray, "parameters parameters"]:
    """Of theta, from the curvature at the fit: that of an M-estimator whose residuals are alike everywhere."""
    normal = fit.problem.linearised(fit.theta[None]).normal()[0]
    return _dispersion(fit) * _inverse(normal)


def _inverse(normal: Float[np.ndarray, "*batch k k"]) -> Float[np.ndarray, "*batch k k"]:
    """The pseudo-inverse, scaled to a unit diagonal meanwhile: parameters differ by many orders of magnitude."""
    size = np.sqrt(np.einsum("...ii->...i", normal))
    unit = np.where(size > 0, 1 / np.where(size > 0, size, 1.0), 1.0)
    # One side after the other: a square of the unit itself may have no number.
    across, down = unit[..., :, None], unit[..., None, :]
    with np.errstate(over="ignore"):  # a spread beyond any number is infinite
        return np.linalg.pinv(normal * across * down, hermitian=True) * across * down


def _dispersion(fit: Fit) -> float:
    """sum psi^2 / (points - parameters), over the squared mean of psi'."""
    points, parameters = len(fit.observations), len(fit.theta)
    pull = clipped(fit.r, fit.problem.delta)
    return float((pull**2).sum() / max(points - parameters, 1) / _curved(fit) ** 2)


def _unit_of_rise(fit: Fit) -> float:
    """Twice the rise of Huber's objective over this is as F-distributed as that of least squares over its variance."""
    points, parameters = len(fit.observations), len(fit.theta)
    pull = clipped(fit.r, fit.problem.delta)
    return max(float((pull**2).sum() / max(points - parameters, 1) / _curved(fit)), SMALLEST_RISE)


def _curved(fit: Fit) -> float:
    """The mean of psi', i.e. the share of residuals within delta.

    The parameters bring as many residuals near 0 as there are of them: those do not count. Where delta is small beside
    the residuals, few are left, so the share is that of a window half their scale wide, times delta over the window.
    """
    delta, points = fit.problem.delta, len(fit.observations)
    if not np.isfinite(delta):
        return 1.0
    window = max(delta, scale(fit.r, len(fit.theta)) / 2)
    size = np.sort(np.abs(fit.r))[min(len(fit.theta), points - 1) :]
    return max(float((size <= window).mean()), 1 / points) * delta / window
