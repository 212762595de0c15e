"""How far a fit's points lie off it: a spread that clusters have in common, and one of each point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import block_diag

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


def spread(*fits: Fit) -> Spread:
    """By the method of moments: the squares between and within clusters are what the fits' own freedom leaves of them.

    `fits`: of points apart that lie off them alike, as those of several budgets do. Errors differ by no less than their
    test images make them, where their number is known.
    """
    inside = [_basis(fit, (fit.theta > fit.problem.lower) & (fit.theta < fit.problem.upper)) for fit in fits]
    r, basis = np.concatenate([fit.r for fit in fits]), block_diag(*inside)
    found = Spread(0.0, float(np.sqrt(r @ r / max(len(r) - basis.shape[1], 1))))
    cluster, count = _clusters(fits)
    if len(count) < len(r):
        found = _moments(r, basis, cluster, count) or found
    residuals = [fit.observations.residuals for fit in fits]
    known = all(isinstance(each, Binomial) and each.known_trials for each in residuals)
    if known and found.whole < 1:
        return Spread(found.between, float(np.sqrt(1 - found.between**2)), known=True)
    return found


def freedom_between(*fits: Fit) -> int:
    """Degrees of freedom between clusters: what the parameters leave of them.

    Of clusters at a place each they take one for each parameter, those at a bound included; of such as all have the
    same places, one in all. `fits`: as of `spread`.
    """
    cluster, count = _clusters(fits)
    basis = block_diag(*(_basis(fit, np.ones(len(fit.theta), dtype=bool)) for fit in fits))
    return int(len(count) - _taken(_sums(basis, cluster, count), count) + 1e-6)


def _clusters(fits: Sequence[Fit]) -> tuple[np.ndarray, np.ndarray]:
    """Of each point the number of its cluster, and of each cluster how many points it has."""
    names = np.concatenate([fit.observations.clusters for fit in fits])
    _, cluster, count = np.unique(names, return_inverse=True, return_counts=True)
    return cluster, count


def _basis(fit: Fit, which: Bool[np.ndarray, " parameters"]) -> Float[np.ndarray, "points directions"]:
    """Orthonormal directions in which these parameters move the residuals."""
    at = fit.problem.linearised(fit.theta[None])
    jacobian = at.slope[0][:, None] * at.places.spread_out(at.jacobian)[0]
    size = np.linalg.norm(jacobian, axis=0)
    moves = jacobian[:, which & (size > 0)] / size[which & (size > 0)]
    left, values, _ = np.linalg.svd(moves, full_matrices=False)
    return left[:, values > 1e-9]


def _sums(basis: np.ndarray, cluster: np.ndarray, count: np.ndarray) -> Float[np.ndarray, "clusters directions"]:
    """Of each direction over the points of each cluster."""
    found = [np.bincount(cluster, column, len(count)) for column in basis.T]
    return np.stack(found, 1) if found else np.zeros((len(count), 0))


def _taken(sums: np.ndarray, count: np.ndarray) -> float:
    """The parameters' freedom that lies between clusters."""
    return float((sums**2 / count[:, None]).sum())


def _moments(r: np.ndarray, basis: np.ndarray, cluster: np.ndarray, count: np.ndarray) -> Spread | None:
    """None where clusters have nothing in common."""
    sums = _sums(basis, cluster, count)
    between = float((np.bincount(cluster, r, len(count)) ** 2 / count).sum())
    within = max(float(r @ r) - between, 0.0)
    # What a unit spread of points, and one of clusters, would leave in these two sums: of the projection M that takes
    # the parameters out, P that takes means over clusters and Z of the clusters' indicators, the traces of M P M and
    # M (1 - P) M, and of Z' M P M Z and Z' M (1 - P) M Z.
    points_between = len(count) - _taken(sums, count)
    points_within = len(r) - basis.shape[1] - points_between
    both = float((sums**2).sum())
    clusters_between = len(r) - 2 * both + float(np.einsum("gi,ij,gj,g->", sums, sums.T @ sums, sums, 1 / count))
    clusters_within = len(r) - both - clusters_between
    system = np.array([[points_between, clusters_between], [points_within, clusters_within]])
    if np.linalg.matrix_rank(system) < 2:
        return None
    of_points, of_clusters = np.linalg.solve(system, [between, within])
    if of_clusters <= 0:
        return None
    if of_points <= 0:
        return Spread(float(np.sqrt((between + within) / (clusters_between + clusters_within))), 0.0)
    return Spread(float(np.sqrt(of_clusters)), float(np.sqrt(of_points)))
