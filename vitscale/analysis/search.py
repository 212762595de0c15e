"""Where to begin: variable projection over a grid of the non-linear parameters.

Given those, the best coefficients are a non-negative least-squares problem with one solution, so the search runs over
two parameters or fewer for most forms, and over a grid of four for the broken power law.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

from vitscale.analysis.forms import Form, Inputs, Theta
from vitscale.analysis.residuals import Residuals

KEPT = 16  # starts that are followed
KEPT_ON_RIDGES = 64  # of a form with more non-linear parameters than two: the best of its grid lie on a few ridges
ENOUGH = 400  # points that a search looks at; the minimum is found with all


def starts(form: Form, z: Inputs, residuals: Residuals) -> Theta:
    """The best of the grid, by the sum of the sizes of weighted residuals (a few outliers do not choose them)."""
    if len(z) > ENOUGH:
        order = np.argsort(z.sum(1), kind="stable")
        some = order[np.linspace(0, len(z) - 1, ENOUGH).round().astype(int)]
        z, residuals = z[some], residuals.only(some)
    spans = form.spans(z, residuals.y, residuals.highest)
    candidates = _projected(form, z, residuals, spans) if form.linear else _matched(z, residuals, spans)
    values = form.value(candidates, z)
    misfit = (np.abs(values - residuals.y) * residuals.weights()).sum(-1)
    misfit = np.where(np.isfinite(misfit), misfit, np.inf)
    kept = KEPT if len(form.nonlinear) <= 2 else KEPT_ON_RIDGES
    return candidates[np.argsort(misfit, kind="stable")[:kept]]


def _projected(form: Form, z: Inputs, residuals: Residuals, spans: tuple) -> Theta:
    grid = np.array(list(product(*(span.grid for span in spans))))
    curves, _ = form.basis(grid, z)
    weights = residuals.weights()
    target = weights * residuals.y
    coefficients = np.stack([_nonnegative(curve * weights[:, None], target) for curve in curves])
    return np.concatenate([coefficients, grid], -1)


def _nonnegative(curves: Float[np.ndarray, "points linear"], target: np.ndarray) -> np.ndarray:
    high = np.maximum(np.abs(curves).max(0), 1e-300)
    unit = high * np.sqrt(((curves / high) ** 2).sum(0))  # a square of the curves themselves may have no number
    if not np.isfinite(unit).all():
        return np.zeros(curves.shape[1])
    unit = np.maximum(unit, 1e-300)
    found, _ = nnls(curves / unit, target)
    return found / unit


def _matched(z: Inputs, residuals: Residuals, spans: tuple) -> Theta:
    """M4's grid, each with the beta that meets the middle of the data."""
    floor, start, alpha, rate = (np.array(v) for v in zip(*product(*(s.grid for s in spans if s.grid)), strict=True))
    middle = np.argsort(residuals.y)[len(z) // 2]
    y = np.clip(residuals.y[middle], floor + 1e-6 * (start - floor), start - 1e-6 * (start - floor))
    log_beta = np.log(y - floor) - alpha * np.log(start - y) + rate * z[middle, 0]
    return np.stack([floor, start, alpha, log_beta, rate], -1)
