from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from laws import chinchilla, errors

from vitscale.analysis.assess import Assessed, assess, places
from vitscale.analysis.checks import choose, held_out, variants
from vitscale.analysis.facts import of_fit
from vitscale.analysis.fits import Observations, fit
from vitscale.analysis.forms import FORMS
from vitscale.analysis.residuals import Binomial, LogLoss
from vitscale.analysis.tables import Columns, curves_of

NOWHERE = np.empty((0, 1))


def assessed(x: np.ndarray, acc: np.ndarray, at: np.ndarray = NOWHERE, **columns: object) -> Assessed:
    frame = pd.DataFrame({"x": x, "acc": acc, **columns})
    found, _ = curves_of(frame, Columns(inputs=("x",), y="acc"))
    return assess(found[0], "power", at, resamples=200)


def test_the_dearest_points_are_foreseen_from_the_rest() -> None:
    points = chinchilla(50, 0.001)
    held = held_out(FORMS["parametric"], points)
    assert held is not None
    assert held.points == 10
    assert points.compute[np.argsort(points.compute)[-11]] == held.above
    assert len(held.fit.observations) == 40
    assert held.error < 0.005


def test_a_budget_is_not_cut_in_two_by_rounding() -> None:
    """N times D of one budget, where D was divided out of it."""
    budgets = np.repeat(np.geomspace(1e18, 1e21, 5), 6)
    n = np.sqrt(budgets) / 100 * np.tile(np.geomspace(0.25, 4, 6), 5)
    inputs = np.stack([n, budgets / 6 / n], -1)
    points = Observations(inputs, LogLoss(1.7 + 400 * n**-0.3 + 400 * inputs[:, 1] ** -0.3), np.arange(30))
    assert len(np.unique(inputs.prod(1))) > 5
    assert len(np.unique(points.compute)) == 5
    held = held_out(FORMS["parametric"], points)
    assert held is not None
    assert (held.points, len(held.fit.observations)) == (6, 24)
    assert "without the cheapest (6)" in {variant.name for variant in variants(held.fit)}
    assert len(points.only(np.zeros(30, dtype=bool)).compute) == 0


def test_auto_takes_the_form_that_the_data_have() -> None:
    x = np.geomspace(1e3, 1e9, 24)
    power = choose(errors(x, 50_000, form="power", law={"b": 5.0, "c": 0.3}))
    assert power.form.name == "power"
    floor = choose(errors(x, 50_000))
    assert floor.form.name == "saturating"
    scores = {name: held.misses.mean() for name, held in floor.ranking}
    assert scores["saturating"] < 0.2 * scores["power"]
    assert "misses by" in floor.margin
    slope = choose(
        errors(x, 500_000, form="broken", law={"a": 0.01, "b": 1.0, "c0": 0.02, "c1": 0.4, "d": 1e6, "f": 0.2})
    )
    assert slope.form.name in ("broken", "m4", "zhai")


def test_a_floor_of_nothing_is_no_gain() -> None:
    """Points on a power law are foreseen by all forms that hold it: the one with the fewest parameters stands."""
    x = np.geomspace(1e3, 1e9, 10)
    points = Observations(x[:, None], Binomial(0.5 * (x / 1e3) ** -0.2, np.ones(10)), np.arange(10))
    assert choose(points).form.name == "power"


def test_auto_says_which_forms_had_too_few_points() -> None:
    choice = choose(errors(np.geomspace(1e3, 1e6, 4), 1000))
    assert choice.form.name == "power"
    assert set(choice.too_few) == {"saturating", "zhai", "m4", "broken"}


def test_without_outliers_and_without_the_cheapest() -> None:
    points = errors(np.geomspace(1e3, 1e9, 20), 5000)
    y = points.y.copy()
    y[10] = 0.9
    dirty = Observations(points.inputs, Binomial(y, np.full(20, 5000.0)), points.clusters)
    found = {v.name: v for v in variants(fit(FORMS["saturating"], dirty))}
    assert list(found) == ["Huber", "least squares", "without outliers (1)", "without the cheapest (4)"]
    assert found["without outliers (1)"].points == 19
    assert not (found["without outliers (1)"].fit.observations.y == 0.9).any()
    assert found["without the cheapest (4)"].fit.observations.inputs.min() == points.inputs[4, 0]


@pytest.mark.parametrize(
    ("kind", "x", "acc", "at"),
    [
        ("few_points", [1.0, 10.0, 100.0], [0.1, 0.3, 0.4], []),
        ("rising", [1.0, 10.0, 100.0], [0.5, 0.4, 0.2], []),
        ("no_freedom", [1.0, 10.0], [0.1, 0.3], []),
        ("no_bootstrap", [1.0, 10.0, 100.0, 1000.0], [0.1, 0.3, 0.4, 0.47], []),
        ("extrapolation", [1.0, 10.0, 100.0], [0.1, 0.3, 0.4], [1001.0]),
        ("unweighted", [1.0, 10.0, 100.0], [0.1, 0.3, 0.4], []),
        ("not_identified", [1.0, 10.0, 100.0], [0.5, 0.2, 0.5], []),
        ("outliers", np.geomspace(1, 1e3, 12).tolist(), [*(1 - np.geomspace(0.9, 0.3, 11) + 1e-3 * (-1) ** np.arange(11)), 0.2], []),
    ],
)  # fmt: skip
def test_what_gives_cause_for_doubt_is_a_fact(kind: str, x: list[float], acc: list[float], at: list[float]) -> None:
    result = assessed(np.array(x), np.array(acc), np.array(at).reshape(-1, 1))
    assert kind in {fact.kind for fact in result.facts}


def test_a_law_that_many_points_do_not_follow_says_so() -> None:
    """Errors of 0 where a power goes on falling slowly: Huber's function hardly feels them."""
    x = np.geomspace(1e3, 1e7, 20)
    error = np.where(np.arange(20) < 15, 3.2 * x**-0.2 * (1 + 0.004 * (-1.0) ** np.arange(20)), 0.0)
    points = Observations(x[:, None], Binomial(error, np.full(20, 1000.0)), np.arange(20))
    (fact,) = [fact for fact in of_fit(fit(FORMS["power"], points), NOWHERE) if fact.kind == "outliers"]
    assert fact.text.startswith("5 of 20 points lie further off than 3 times the usual miss")
    assert len(fact.details) == 5


def test_ten_times_beyond_is_not_yet_far() -> None:
    x = np.geomspace(1, 100, 8)
    result = assessed(x, 1 - 0.5 * x**-0.3, np.array([[1000.0]]))
    assert "extrapolation" not in {fact.kind for fact in result.facts}
    largest = next(v for v in np.random.default_rng(0).uniform(1, 10, 1000) if 10 * v / v > 10)  # by rounding
    x = np.append(x / 100, largest)
    result = assessed(x, 1 - 0.5 * (100 * x) ** -0.3, np.array([[10 * largest]]))
    assert "extrapolation" not in {fact.kind for fact in result.facts}


def test_places_have_the_mean_of_their_runs_and_a_t_interval() -> None:
    y = np.array([0.2, 0.3, 0.4, 0.1])
    points = Observations(np.array([[1.0], [1.0], [1.0], [2.0]]), Binomial(y, np.ones(4)), np.arange(4))
    first, second = places(points)
    assert (first.mean, first.n) == (pytest.approx(0.3), 3)
    assert first.interval is not None
    assert first.interval.width / 2 == pytest.approx(4.303 * 0.1 / np.sqrt(3), rel=1e-3)
    assert (second.n, second.interval) == (1, None)
