"""How far a fit's points lie off it: a spread that clusters have in common, and one of each point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vitscale.analysis.fits import Fit
from vitscale.analysis.residuals import Binomial


@dataclass(frozen=True, slots=True)
class Spread:
    """Standard deviations, in units of the residuals."""

    between: float
    """Of what all points of a cluster share: 0 where each has one alone."""
    within: float
    known: bool = False
    """Whether it is that of the test images alone, and no estimate."""

    @property
    def whole(self) -> float:
        """Of one point."""
        return float(np.hypot(self.between, self.within))


def spread(fit: Fit) -> Spread:
    """By the method of moments: the squares between and within clusters are what the fit's own freedom leaves of them.

    Errors differ by no less than their test images make them, where their number is known.
    """
    r, points = fit.r, fit.observations
    basis = _basis(fit)
    names, cluster, count = np.unique(points.clusters, return_inverse=True, return_counts=True)
    total = float(r @ r)
    left = max(len(r) - basis.shape[1], 1)
    found = Spread(0.0, float(np.sqrt(total / left)))
    if len(names) < len(r):
        found = _moments(r, basis, cluster, count) or found
    residuals = points.residuals
    if isinstance(residuals, Binomial) and residuals.known_trials and found.whole < 1:
        return Spread(found.between, float(np.sqrt(1 - found.between**2)), known=True)
    return found


def _basis(fit: Fit) -> Float[np.ndarray, "points free"]:
    """Orthonormal directions in which the parameters that are not at a bound move the residuals."""
    at = fit.problem.linearised(fit.theta[None])
    jacobian = at.slope[0][:, None] * at.places.spread_out(at.jacobian)[0]
    inside = (fit.theta > fit.problem.lower) & (fit.theta < fit.problem.upper)
    size = np.linalg.norm(jacobian, axis=0)
    moves = jacobian[:, inside & (size > 0)] / size[inside & (size > 0)]
    left, values, _ = np.linalg.svd(moves, full_matrices=False)
    return left[:, values > 1e-9]


def _moments(r: np.ndarray, basis: np.ndarray, cluster: np.ndarray, count: np.ndarray) -> Spread | None:
    """None where clusters have nothing in common."""
    sums = np.stack([np.bincount(cluster, column, len(count)) for column in basis.T], 1)  # clusters x free
    means = np.bincount(cluster, r, len(count)) / np.sqrt(count)
    between = float(means @ means)
    within = max(float(r @ r) - between, 0.0)
    # Of a unit spread of points, and of clusters, what the residuals show between and within: M = 1 - basis basis',
    # and the columns of `common` are M of each cluster's indicator.
    unit = sums / np.sqrt(count)[:, None]
    points_between = len(count) - float((unit**2).sum())
    points_within = len(r) - basis.shape[1] - points_between
    common = np.eye(len(count))[cluster] - basis @ sums.T
    shown = np.stack([np.bincount(cluster, column, len(count)) for column in common.T], 1) / np.sqrt(count)[:, None]
    clusters_between = float((shown**2).sum())
    clusters_within = float((common**2).sum()) - clusters_between
    system = np.array([[points_between, clusters_between], [points_within, clusters_within]])
    if np.linalg.matrix_rank(system) < 2:
        return None
    of_points, of_clusters = np.linalg.solve(system, [between, within])
    if of_clusters <= 0:
        return None
    if of_points <= 0:
        return Spread(float(np.sqrt((between + within) / (clusters_between + clusters_within))), 0.0)
    return Spread(float(np.sqrt(of_clusters)), float(np.sqrt(of_points)))
