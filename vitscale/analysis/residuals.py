"""How far a law is from a measurement: on log loss as published, or by the binomial likelihood of an error.

Both give a residual r and dr/df. Huber's function of it is minimised: r^2 / 2 up to delta, and
delta (|r| - delta / 2) beyond.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Curve = Float[np.ndarray, "B points"]
Points = Float[np.ndarray, " points"]

PUBLISHED_DELTA = 1e-3  # Hoffmann et al., arXiv 2203.15556, equation 3
HUBER = 1.345  # times the scale of the residuals: 95 % efficient where they are normal
NORMAL_MAD = 1.4826  # makes the median absolute residual a standard deviation where they are normal
LOWEST, HIGHEST = 1e-12, 0.999  # a law's errors beyond are judged along the tangent there, so that it may pass 1


@dataclass(frozen=True, slots=True)
class LogLoss:
    """r = log f - log y."""

    y: Points

    @property
    def highest(self) -> float:
        """What no y can pass."""
        return np.inf

    def of(self, f: Curve) -> tuple[Curve, Curve]:
        """Residuals and their derivatives with respect to f."""
        f = np.maximum(f, 1e-300)
        return np.log(f) - np.log(self.y), 1 / f

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

    @property
    def highest(self) -> float:
        return 1.0

    @property
    def smoothed(self) -> Points:
        """Half an error and half a success more: an observed 0 has a spread, too."""
        return (self.y * self.trials + 0.5) / (self.trials + 1)

    @property
    def spread(self) -> Points:
        """A point's variance over that of its test images alone, 1 or more."""
        p = self.smoothed
        return 1 + self.tau**2 * self.trials * p * (1 - p)

    def of(self, f: Curve) -> tuple[Curve, Curve]:
        inside = np.clip(f, LOWEST, HIGHEST)
        gap = inside - self.y
        with np.errstate(divide="ignore", invalid="ignore"):
            part = np.where(self.y > 0, self.y * _less_log1p(gap / self.y), inside)
            rest = np.where(self.y < 1, (1 - self.y) * _less_log1p(-gap / (1 - self.y)), 1 - inside)
        effective = self.trials / self.spread
        information = effective / (inside * (1 - inside))
        root = np.sqrt(2 * effective * np.maximum(part + rest, 0.0))
        r = np.sign(gap) * root
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(root > 0, information * np.abs(gap) / root, np.sqrt(information))
        return r + slope * (f - inside), slope

    def weights(self) -> Points:
        p = self.smoothed
        return np.sqrt(self.trials / (self.spread * p * (1 - p)))

    def noisy(self, f: np.ndarray, r: np.ndarray) -> np.ndarray:
        inside = np.clip(f, LOWEST, HIGHEST)
        variance = inside * (1 - inside)
        sd = np.sqrt(variance / np.median(self.trials) + (self.tau * variance) ** 2)
        return np.clip(f - r * sd, 0.0, 1.0)

    def only(self, kept: np.ndarray) -> Binomial:
        return Binomial(self.y[kept], self.trials[kept], self.tau)


Residuals = LogLoss | Binomial


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
    """x - log(1 + x), to the last digit also where x is small."""
    series = x * x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x * (1 / 5 - x * (1 / 6 - x * (1 / 7 - x / 8))))))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(x) < 5e-3, series, x - np.log1p(x))
