"""How far a law is from a measurement: on log loss as published, or by the binomial likelihood of an error.

Both give a residual r and dr/df. Huber's function of it is minimised: r^2 / 2 up to delta, and
delta (|r| - delta / 2) beyond.

A law is given by its values f at places, and `spread_out` makes of an array over places one over points: what depends
on the law alone is computed once where many points share a place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy.special import xlog1py, xlogy

Curve = Float[np.ndarray, "B points"]
Points = Float[np.ndarray, " points"]
AtPlaces = Float[np.ndarray, "B places"]
SpreadOut = Callable[[np.ndarray], np.ndarray]

PUBLISHED_DELTA = 1e-3  # Hoffmann et al., arXiv 2203.15556, equation 3
HUBER = 1.345  # times the scale of the residuals: 95 % efficient where they are normal
NORMAL_MAD = 1.4826  # makes the median absolute residual a standard deviation where they are normal
LOWEST, HIGHEST = 1e-12, 0.999  # a law's errors beyond are judged along the tangent there, so that it may pass 1
EXACT = 1e-7  # a scale of residuals below is rounding: the points lie on the curve
NOTHING = 1e-50  # times the lowest loss: laws below are judged as if they were there
NEAR = 5e-3  # of an error: a law that is nearer is judged by a series, as a difference would lose its digits


def same(values: np.ndarray) -> np.ndarray:
    """Where every point has a place of its own."""
    return values


@dataclass(frozen=True, slots=True)
class LogLoss:
    """r = log f - log y."""

    y: Points

    @property
    def highest(self) -> float:
        """What no y can pass."""
        return np.inf

    def of(self, f: AtPlaces, spread_out: SpreadOut = same) -> tuple[Curve, Curve]:
        """Residuals and their derivatives with respect to f."""
        f = self._judged(f)
        return spread_out(np.log(f)) - np.log(self.y), spread_out(1 / f)

    def alone(self, f: AtPlaces, spread_out: SpreadOut = same) -> Curve:
        """Residuals without their derivatives."""
        return spread_out(np.log(self._judged(f))) - np.log(self.y)

    def _judged(self, f: AtPlaces) -> AtPlaces:
        """A law may be 0, which has no logarithm, and a slope of 1/f that is near has no square."""
        return np.maximum(f, NOTHING * self.y.min())

    def weights(self) -> Points:
        """1 / spread of each y, for the least squares that begin a search."""
        return 1 / self.y

    def noisy(self, f: np.ndarray, r: np.ndarray) -> np.ndarray:
        """What a new run would measure whose residual against f is r."""
        return f * np.exp(-r)

    def only(self, kept: np.ndarray) -> LogLoss:
        return LogLoss(self.y[kept])


@dataclass(frozen=True, slots=True)
class Binomial:
    """The signed root of the binomial deviance of an error y on `trials` images.

    r^2 / 2 summed is the negative log likelihood up to a constant, so an error of 0 counts like any other.
    Seeds differ by more than their test images do: with `tau`, the standard deviation over seeds of an error's log
    odds, a point's variance is p(1-p)/trials + (tau p(1-p))^2, and r is divided by the root of how much wider that is.
    """

    y: Points
    trials: Points
    tau: float = 0.0
    p: Points | None = None
    """The error that a point's variance is judged at. Not its own: a lucky seed would seem surer than its siblings.
    None: y, which is right for one point a place only."""
    effective: Points = field(init=False, repr=False)
    """Test images that would alone have a point's variance."""
    entropy: Points = field(init=False, repr=False)
    """y log y + (1 - y) log(1 - y)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "effective", self.trials / self.spread)
        object.__setattr__(self, "entropy", xlogy(self.y, self.y) + xlog1py(1 - self.y, -self.y))

    @property
    def highest(self) -> float:
        return 1.0

    @property
    def judged_at(self) -> Points:
        """`p` with half an error and half a success more: an observed 0 has a spread, too."""
        p = self.y if self.p is None else self.p
        return (p * self.trials + 0.5) / (self.trials + 1)

    @property
    def spread(self) -> Points:
        """A point's variance over that of its test images alone, 1 or more."""
        p = self.judged_at
        return 1 + self.tau**2 * self.trials * p * (1 - p)

    @property
    def known_trials(self) -> bool:
        """Whether a point's spread has a size of its own, and not only one beside the others'."""
        return bool(self.trials.max() > 1)

    def judged(self, p: Points) -> Binomial:
        """The same points, their variance judged at the errors p."""
        return Binomial(self.y, self.trials, self.tau, np.clip(p, 0.0, 1.0))

    def of(self, f: AtPlaces, spread_out: SpreadOut = same) -> tuple[Curve, Curve]:
        inside = np.clip(f, LOWEST, HIGHEST)
        gap, root = self._roots(inside, spread_out)
        information = self.effective * spread_out(1 / (inside * (1 - inside)))
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(root > 0, information * np.abs(gap) / root, np.sqrt(information))
        r = np.copysign(root, gap)
        beyond = f - inside
        return r + slope * spread_out(beyond) if beyond.any() else r, slope

    def alone(self, f: AtPlaces, spread_out: SpreadOut = same) -> Curve:
        inside = np.clip(f, LOWEST, HIGHEST)
        if (f != inside).any():
            return self.of(f, spread_out)[0]
        gap, root = self._roots(inside, spread_out)
        return np.copysign(root, gap)

    def _roots(self, inside: AtPlaces, spread_out: SpreadOut) -> tuple[Curve, Curve]:
        """The law less y, and the root of the deviance."""
        gap = spread_out(inside) - self.y
        deviance = self.entropy - self.y * spread_out(np.log(inside)) - (1 - self.y) * spread_out(np.log1p(-inside))
        at, point = np.nonzero(np.abs(gap) < NEAR * np.minimum(self.y, 1 - self.y))
        y, little = self.y[point], gap[at, point]
        deviance[at, point] = y * _less_log1p(little / y) + (1 - y) * _less_log1p(-little / (1 - y))
        return gap, np.sqrt(2 * self.effective * np.maximum(deviance, 0.0))

    def weights(self) -> Points:
        p = self.judged_at
        return np.sqrt(self.trials / (self.spread * p * (1 - p)))

    def noisy(self, f: np.ndarray, r: np.ndarray) -> np.ndarray:
        inside = np.clip(f, LOWEST, HIGHEST)
        variance = inside * (1 - inside)
        sd = np.sqrt(variance / np.median(self.trials) + (self.tau * variance) ** 2)
        return np.clip(f - r * sd, 0.0, 1.0)

    def only(self, kept: np.ndarray) -> Binomial:
        return Binomial(self.y[kept], self.trials[kept], self.tau, None if self.p is None else self.p[kept])


Residuals = LogLoss | Binomial


def seed_spread(y: Points, trials: Points, inputs: Float[np.ndarray, "points inputs"]) -> float:
    """Standard deviation over runs at one place of an error's log odds, beyond what its test images explain.

    Pooled over all places that have several runs; 0 where none has.
    """
    p = Binomial(y, trials).judged_at
    odds = np.log(p / (1 - p))
    place = np.unique(inputs, axis=0, return_inverse=True)[1].ravel()
    squares = freedom = sampling = 0.0
    for group in np.unique(place):
        here = place == group
        if here.sum() > 1:
            squares += float(((odds[here] - odds[here].mean()) ** 2).sum())
            freedom += int(here.sum()) - 1
            sampling += float(np.mean(1 / (trials * p * (1 - p))[here])) * (int(here.sum()) - 1)
    return float(np.sqrt(max(squares - sampling, 0.0) / freedom)) if freedom else 0.0


def huber(r: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(r)
    return np.where(size <= delta, 0.5 * r * r, delta * size - 0.5 * delta * delta if np.isfinite(delta) else 0.0)


def clipped(r: np.ndarray, delta: float) -> np.ndarray:
    """The derivative of `huber`."""
    return np.clip(r, -delta, delta)


def scale(r: np.ndarray, parameters: int) -> float:
    """Standard deviation of the residuals by their median size; those that the parameters can make 0 do not count."""
    size = np.sort(np.abs(r))
    counted = size[min(parameters, len(size) - 1) :]
    return float(NORMAL_MAD * np.median(counted))


def _less_log1p(x: np.ndarray) -> np.ndarray:
    """x - log(1 + x) where x is smaller than `NEAR`, to the last digit."""
    return x * x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x * (1 / 5 - x * (1 / 6 - x * (1 / 7 - x / 8))))))
