from __future__ import annotations

import numpy as np
import pytest
from laws import chinchilla, errors
from scipy.optimize import minimize

from vitscale.analysis.fits import Observations, fit
from vitscale.analysis.forms import FORMS
from vitscale.analysis.residuals import HUBER, Binomial, LogLoss, scale
from vitscale.analysis.selftest import ladder, ladder_fit, selftest
from vitscale.analysis.solver import solve


def published_objective(v: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> float:
    """Equation 3 of arXiv 2203.15556, written down on its own: sum Huber_1e-3(LSE(...) - log L)."""
    a, b, e, alpha, beta = v
    terms = np.stack([a - alpha * np.log(n), b - beta * np.log(d), np.full(len(n), e)])
    r = np.logaddexp.reduce(terms) - np.log(loss)
    return float(np.where(abs(r) <= 1e-3, r * r / 2, 1e-3 * (abs(r) - 5e-4)).sum())


def test_every_law_is_recovered_and_the_ladder_s_fit_is_the_published_one() -> None:
    checks = selftest()
    assert not [f"{c.name} {c.quantity}: {c.found}" for c in checks if not c.passed]
    assert {c.name for c in checks} >= {f"{name} (loss)" for name in FORMS} | {"m4 (error)", "OLMo ladder"}


def test_a_wrong_number_fails_the_selftest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitscale.analysis.fits.PUBLISHED_DELTA", 1e-1)
    assert any(not c.passed for c in selftest() if c.name == "OLMo ladder")


def test_no_start_of_the_published_grid_ends_lower() -> None:
    runs = ladder().query("held_out == 0")
    args = tuple(runs[c].to_numpy(float) for c in ("n", "d", "loss"))
    rng = np.random.default_rng(0)
    starts = np.stack([rng.uniform(0, 25, 60), rng.uniform(0, 25, 60), rng.uniform(-1, 1, 60),
                       rng.uniform(0, 2, 60), rng.uniform(0, 2, 60)], -1)  # fmt: skip
    found = ladder_fit()
    p = found.parameters
    ours = published_objective(np.array([np.log(p["A"]), np.log(p["B"]), np.log(p["E"]), p["alpha"], p["beta"]]), *args)
    assert found.objective == pytest.approx(ours, rel=1e-9)
    theirs = min(minimize(published_objective, s, args=args, method="L-BFGS-B").fun for s in starts)
    assert ours <= theirs * (1 + 1e-9)


@pytest.mark.parametrize("seed", [4, 7, 8])
def test_many_random_starts_of_a_broken_law_end_hardly_lower(seed: int) -> None:
    """Its four non-linear parameters have valleys beside valleys."""
    form, rng = FORMS["broken"], np.random.default_rng(seed)
    x, y = np.geomspace(1, 1e4, 24), np.exp(0.02 * rng.standard_t(3, 24))
    z = np.log(x / 100)
    y *= 0.2 + 0.4 * np.exp(-0.3 * z) * (1 + np.exp(z / 0.3)) ** -0.1
    found = fit(form, Observations(x[:, None], LogLoss(y), np.arange(24)))
    low, high = [0, 0, 0.01, -2, found.problem.lower[4], 0.02], [y.min(), 2, 4, 2, found.problem.upper[4], 5]
    tried = solve(found.problem, rng.uniform(low, high, (1500, 6)), steps=60)
    theirs = solve(found.problem, tried.theta[np.argsort(tried.objective)[:10]]).objective.min()
    assert found.objective < theirs * 1.005


def test_least_squares_of_errors_is_the_maximum_likelihood() -> None:
    points = errors(np.geomspace(1e3, 1e9, 15), 400)
    found = fit(FORMS["saturating"], points, least_squares=True)
    residuals = points.residuals
    assert isinstance(residuals, Binomial)

    def deviance(v: np.ndarray) -> float:
        p = v[0] + np.exp(v[1]) * points.inputs[:, 0] ** -v[2]
        return float(-(residuals.trials * (residuals.y * np.log(p) + (1 - residuals.y) * np.log1p(-p))).sum())

    p = found.parameters
    ours = deviance(np.array([p["a"], np.log(p["b"]), p["c"]]))
    best = minimize(deviance, [0.05, 1.0, 0.2], method="Nelder-Mead", options={"maxiter": 4000, "fatol": 1e-9})
    assert ours == pytest.approx(best.fun, rel=1e-8)


def test_an_error_of_zero_counts() -> None:
    """Dropped, it would leave the fit as it was; as a logarithm, it would be infinite."""
    x = np.geomspace(1e2, 1e6, 9)
    y = np.append(0.5 * (x[:-1] / 1e2) ** -0.4, 0.0)
    with_zero = Observations(x[:, None], Binomial(y, np.full(9, 500.0)), np.arange(9))
    kept = with_zero.only(np.arange(9) < 8)
    at = np.array([[1e6]])
    foreseen = fit(FORMS["power"], kept, least_squares=True).predict(at)[0]
    pulled = fit(FORMS["power"], with_zero, least_squares=True).predict(at)[0]
    assert 0 < pulled < 0.95 * foreseen


def test_delta_of_errors_is_1_345_times_the_scale_of_the_fit_s_own_residuals() -> None:
    found = fit(FORMS["saturating"], errors(np.geomspace(1e3, 1e9, 40), 1000))
    assert found.problem.delta == pytest.approx(HUBER * scale(found.r, 3), rel=1e-3)


def test_an_outlier_moves_huber_less_than_least_squares() -> None:
    clean = errors(np.geomspace(1e3, 1e9, 25), 5000)
    y = clean.y.copy()
    y[12] += 0.1
    dirty = Observations(clean.inputs, Binomial(y, np.full(25, 5000.0)), clean.clusters)
    truth = fit(FORMS["saturating"], clean).predict(clean.inputs)
    huber, squares = (fit(FORMS["saturating"], dirty, least_squares=ls).predict(clean.inputs) for ls in (False, True))
    assert np.abs(huber - truth).max() < 0.3 * np.abs(squares - truth).max()


def test_a_law_may_pass_one_on_its_way() -> None:
    """A power law beyond 1 at the cheap end must not stop the search."""
    x = np.geomspace(1, 1e4, 10)
    y = np.minimum(1.5 * x**-0.3, 0.97)
    found = fit(FORMS["power"], Observations(x[:, None], Binomial(y, np.full(10, 1000.0)), np.arange(10)))
    assert np.isfinite(found.objective)
    assert 0.2 < found.parameters["c"] < 0.4


def test_seeds_that_differ_make_points_wider() -> None:
    y = np.array([0.1, 0.3])
    alone, varied = (Binomial(y, np.full(2, 1000.0), tau) for tau in (0.0, 0.1))
    r = alone.of(np.array([[0.15, 0.35]]))[0]
    assert np.all(np.abs(varied.of(np.array([[0.15, 0.35]]))[0]) < np.abs(r))
    assert varied.spread[1] == pytest.approx(1 + 0.01 * 1000 * 0.21, rel=1e-2)


def test_units_of_x_do_not_matter() -> None:
    points = chinchilla(40, 0.01)
    other = Observations(points.inputs * [1e-6, 1e9], points.residuals, points.clusters)
    one, two = fit(FORMS["parametric"], points), fit(FORMS["parametric"], other)
    assert one.objective == pytest.approx(two.objective, rel=1e-9)
    assert one.parameters["alpha"] == pytest.approx(two.parameters["alpha"], rel=1e-5)
    assert one.parameters["A"] == pytest.approx(two.parameters["A"] * 1e6 ** two.parameters["alpha"], rel=1e-3)


@pytest.mark.parametrize("unit", [1.0, 10.0])
def test_losses_of_any_unit_may_have_begun_far_above_the_data(unit: float) -> None:
    """An error begins at 1 at most; a loss of less than 1 may well have begun at 3."""
    x = np.geomspace(1e5, 1e9, 30)[:, None]
    y = unit * FORMS["m4"].value(np.array([[0.05, 3.0, 0.6, np.log(100.0), 0.5]]), np.log(x))[0]
    found = fit(FORMS["m4"], Observations(x, LogLoss(y), np.arange(30)))
    assert found.parameters["start"] == pytest.approx(3 * unit, rel=1e-6)
    assert found.parameters["floor"] == pytest.approx(0.05 * unit, rel=1e-6)


def test_a_loss_is_judged_on_its_logarithm() -> None:
    residuals = LogLoss(np.array([2.0, 4.0]))
    assert np.allclose(residuals.of(np.array([[4.0, 2.0]]))[0], [[np.log(2), -np.log(2)]])
