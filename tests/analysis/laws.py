"""Data whose law is known."""

from __future__ import annotations

import numpy as np

from vitscale.analysis.fits import Observations
from vitscale.analysis.forms import FORMS
from vitscale.analysis.residuals import Binomial, LogLoss
from vitscale.analysis.selftest import CHINCHILLA, theta_of

SATURATING = {"a": 0.08, "b": 3.0, "c": 0.22}


def chinchilla(points: int, sd: float, seed: int = 0) -> Observations:
    """Losses of arXiv 2203.15556's law at random sizes, with noise of their logarithms."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log([5e7, 1e9]), np.log([1e10, 1e12]), (points, 2)))
    y = FORMS["parametric"].value(theta_of(FORMS["parametric"], CHINCHILLA), np.log(sizes))[0]
    return Observations(sizes, LogLoss(y * np.exp(sd * rng.standard_normal(points))), np.arange(points))


def errors(
    x: np.ndarray, trials: int, seed: int = 0, form: str = "saturating", law: dict[str, float] = SATURATING
) -> Observations:
    """Errors of a law on so many test images each."""
    p = FORMS[form].value(theta_of(FORMS[form], law), np.log(x[:, None]))[0]
    y = np.random.default_rng(seed).binomial(trials, p) / trials
    return Observations(x[:, None], Binomial(y, np.full(len(x), float(trials))), np.arange(len(x)))
