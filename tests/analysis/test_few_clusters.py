"""Intervals where too few clusters are there to be resampled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vitscale.analysis.assess import places
from vitscale.analysis.fits import Fit, Observations, fit
from vitscale.analysis.forms import FORMS
from vitscale.analysis.intervals import freedom_of, sample
from vitscale.analysis.profiles import agreed, profiles
from vitscale.analysis.residuals import Binomial, LogLoss
from vitscale.analysis.spread import Spread, spread

AT = np.array([[1e15], [3e16], [1e18], [1e19]])


def law(x: np.ndarray) -> np.ndarray:
    """A power, so that a floor is there by chance only."""
    return 20 * x**-0.05


def one_a_place(points: int, rng: np.random.Generator) -> Observations:
    x = np.geomspace(1e15, 1e18, points)
    return Observations(x[:, None], LogLoss(law(x) * np.exp(0.01 * rng.standard_normal(points))), np.arange(points))


def alike(clusters: int, rng: np.random.Generator, between: float = 0.009, within: float = 0.0045) -> Observations:
    """Each cluster at eight places: seeds, of which each has a trunk."""
    x, cluster = np.tile(np.geomspace(1e15, 1e18, 8), clusters), np.repeat(np.arange(clusters), 8)
    noise = between * rng.standard_normal(clusters)[cluster] + within * rng.standard_normal(len(x))
    return Observations(x[:, None], LogLoss(law(x) * np.exp(noise)), cluster)


def coverage(form: str, draw: Callable[[np.random.Generator], Observations], draws: int) -> np.ndarray:
    """How often the interval at each place holds the law; each must hold its own forecast."""
    rng, hits = np.random.default_rng(5), []
    for seed in range(draws):
        found = fit(FORMS[form], draw(rng))
        drawn = sample(found, resamples=300, seed=seed)
        assert drawn.method == "t"
        predictions = drawn.predictions(AT)
        assert predictions is not None
        assert all(one.low <= value <= one.high for one, value in zip(predictions[0], found.predict(AT), strict=True))
        hits.append([one.low <= value <= one.high for one, value in zip(predictions[0], law(AT[:, 0]), strict=True)])
    return np.mean(hits, 0)


@pytest.mark.parametrize(("form", "points"), [("saturating", 5), ("zhai", 6)])
def test_a_floor_at_its_bound_leaves_the_forecast_inside_its_interval(form: str, points: int) -> None:
    """Half of such fits have no floor: what else they could be is found along the ridge, not beside it."""
    assert (coverage(form, lambda rng: one_a_place(points, rng), 40) >= 0.87).all()


def test_points_of_few_clusters_are_not_independent() -> None:
    """Four trunks of eight points each: an interval from 32 points would hold the law seven times in ten."""
    assert (coverage("power", lambda rng: alike(4, rng), 40) >= 0.87).all()


def test_a_t_interval_is_as_wide_as_least_squares_says() -> None:
    """A straight line in logarithms: the textbook's interval of its slope."""
    x = np.geomspace(1, 1e4, 4)
    y = 3 * x**-0.25 * np.exp(0.05 * np.array([1.0, -0.6, -0.9, 0.7]))
    found = fit(FORMS["power"], Observations(x[:, None], LogLoss(y), np.arange(4)), least_squares=True)
    interval = sample(found, resamples=4000).parameters()["c"]
    z = np.log(x) - np.log(x).mean()
    slope, variance = z @ np.log(y) / (z @ z), found.r @ found.r / 2
    assert found.parameters["c"] == pytest.approx(-slope, rel=1e-6)
    reach = 4.3027 * np.sqrt(variance / (z @ z))  # t with 4 - 2 degrees of freedom
    assert interval.width == pytest.approx(2 * reach, rel=0.1)


def least_squares(points: Observations) -> Fit:
    return fit(FORMS["power"], points, least_squares=True)


@pytest.mark.parametrize(("between", "within"), [(0.03, 0.01), (0.0, 0.02), (0.02, 0.0)])
def test_what_clusters_share_is_told_from_what_points_have_alone(between: float, within: float) -> None:
    found = spread(least_squares(alike(400, np.random.default_rng(0), between, within)))
    assert found.between == pytest.approx(between, rel=0.1, abs=2e-3)
    assert found.within == pytest.approx(within, rel=0.1, abs=1e-6)


def test_without_clusters_all_spread_is_the_points_own() -> None:
    found = least_squares(one_a_place(12, np.random.default_rng(0)))
    assert spread(found).between == 0
    assert spread(found).within == pytest.approx(np.sqrt(found.r @ found.r / 10))


def test_clusters_at_the_same_places_leave_all_but_one_degree_of_freedom_between_them() -> None:
    rng = np.random.default_rng(0)
    assert freedom_of(least_squares(alike(4, rng))) == 3
    assert freedom_of(least_squares(one_a_place(4, rng))) == 2
    assert freedom_of(fit(FORMS["saturating"], alike(3, rng), least_squares=True)) == 2


def test_one_degree_of_freedom_identifies_nothing() -> None:
    found = least_squares(one_a_place(3, np.random.default_rng(0)))
    drawn = sample(found)
    assert (drawn.method, drawn.freedom) == ("t", 1)
    assert profiles(found)["c"].identified
    assert not any(end.identified for end in agreed(profiles(found), drawn).values())


def test_thousands_of_clusters_take_no_matrix_of_points_by_clusters() -> None:
    rng = np.random.default_rng(0)
    x, cluster = rng.uniform(1e3, 1e6, 40_000), np.arange(40_000) // 2
    points = Observations(x[:, None], LogLoss(law(x) * np.exp(0.01 * rng.standard_normal(40_000))), cluster)
    found = spread(least_squares(points))  # 6 GB as a matrix
    assert found.whole == pytest.approx(0.01, rel=0.05)


def test_errors_differ_no_less_than_their_test_images_make_them() -> None:
    x = np.geomspace(1e3, 1e9, 12)
    exact = Observations(x[:, None], Binomial(0.5 * (x / 1e3) ** -0.1, np.full(12, 1e4)), np.arange(12))
    assert spread(least_squares(exact)) == Spread(0.0, 1.0, known=True)


def test_a_place_s_interval_is_that_of_its_clusters() -> None:
    """Ten rows of each of two runs: Student's t of two numbers, not of twenty."""
    x, cluster = np.full(20, 1e3), np.repeat([0, 1], 10)
    y = np.where(cluster == 0, 0.50, 0.52) + 1e-4 * np.tile(np.arange(10) - 4.5, 2)
    (place,) = places(Observations(x[:, None], LogLoss(y), cluster))
    assert (place.n, place.mean) == (2, pytest.approx(0.51))
    assert place.interval is not None
    assert place.interval.width == pytest.approx(2 * 12.706 * 0.01, rel=1e-3)


def test_a_place_s_interval_keeps_to_what_an_error_can_be() -> None:
    points = Observations(np.full((2, 1), 1e3), Binomial(np.array([0.01, 0.2]), np.full(2, 1e3)), np.arange(2))
    (place,) = places(points)
    assert place.interval is not None
    assert (place.interval.low, place.interval.high) == (0, 1)
