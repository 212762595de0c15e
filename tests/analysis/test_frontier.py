from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from laws import errors

from vitscale.analysis.fits import Observations, fit
from vitscale.analysis.forms import FORMS
from vitscale.analysis.frontier import (
    Configuration,
    choose,
    configurations,
    envelope,
    envelope_sample,
    frontier,
    surpassed,
)
from vitscale.analysis.intervals import sample
from vitscale.analysis.isoflop import isoflop
from vitscale.analysis.multiplier import multiplier
from vitscale.analysis.residuals import Binomial, LogLoss
from vitscale.analysis.tables import Columns, curves_of

PAPER = Path(__file__).parents[2] / "vitscale" / "reference" / "vit_table6.csv"
GRID = [
    Configuration(*row) for row in (("a", 1.0, 0.5, 1), ("b", 2.0, 0.6, 1), ("c", 3.0, 0.3, 2), ("d", 3.0, 0.35, 1))
]


def test_the_frontier_has_what_nothing_cheaper_beats() -> None:
    assert [c.name for c in frontier(GRID)] == ["a", "c"]


def test_a_configuration_is_surpassed_by_a_cheaper_one_of_another_name() -> None:
    of_two = [("a", 1, 0.5), ("b", 1, 0.6), ("a", 2, 0.55), ("b", 3, 0.3), ("a", 3, 0.3), ("a", 4, 0.4)]
    grid = [Configuration(name, compute, value, 1) for name, compute, value in of_two]
    assert {(one.name, one.compute) for one in surpassed(grid)} == {("b", 1), ("a", 4)}
    assert surpassed([one for one in grid if one.name == "a"]) == []


def test_the_choice_at_a_budget() -> None:
    choice = choose(GRID, 10.0)
    assert choice is not None
    assert choice.second is not None
    assert (choice.best.name, choice.second.name, choice.at_edge) == ("c", "d", True)
    cheap = choose(GRID, 2.5)
    assert cheap is not None
    assert (cheap.best.name, cheap.at_edge) == ("a", False)
    assert choose(GRID, 0.5) is None


@pytest.mark.parametrize("compute", [55.0, 141.0, 563.0, 1126.0, 1e18 + 1e6])
def test_a_budget_of_exactly_what_a_configuration_costs_buys_it(compute: float) -> None:
    points = Observations(np.array([[compute / 2], [compute]]), LogLoss(np.array([3.0, 2.0])), np.arange(2))
    choice = choose(configurations(points, ["small", "large"]), compute)
    assert choice is not None
    assert (choice.best.name, choice.best.compute) == ("large", compute)


def test_a_configuration_is_the_mean_of_its_seeds() -> None:
    points = Observations(
        np.array([[1.0], [1.0], [4.0]]), Binomial(np.array([0.2, 0.4, 0.1]), np.ones(3)), np.arange(3)
    )
    grid = configurations(points, ["s", "s", "l"])
    assert [(c.name, c.value, c.runs) for c in grid] == [("s", pytest.approx(0.3), 2), ("l", pytest.approx(0.1), 1)]


def test_the_envelope_takes_the_lowest_of_each_bin_if_it_beats_cheaper_ones() -> None:
    x = np.array([1.0, 1.1, 1.2, 10.0, 100.0])
    points = Observations(x[:, None], Binomial(np.array([0.5, 0.4, 0.45, 0.6, 0.2]), np.ones(5)), np.arange(5))
    assert envelope(points)[0].tolist() == [False, True, False, False, True]


def test_an_envelope_s_resamples_have_envelopes_of_their_own() -> None:
    rng = np.random.default_rng(0)
    x = np.repeat(np.geomspace(1e3, 1e7, 12), 6)
    y = 2 * x**-0.25 * np.exp(np.abs(0.2 * rng.standard_normal(len(x))))
    points = Observations(x[:, None], LogLoss(y), np.arange(len(x)))
    found = fit(FORMS["power"], points.only(envelope(points)[0]))
    drawn = envelope_sample(found, points, resamples=300)
    assert drawn is not None
    values = drawn.fit.form.value(drawn.theta, found.problem.z)
    assert np.median(values.mean(1)) > found.predict(found.observations.inputs).mean()  # a lucky point is often missing
    assert envelope_sample(found, points.only(np.arange(len(x)) < 4)) is None


@pytest.mark.parametrize(("factor", "form"), [(3.0, "power"), (0.4, "saturating")])
def test_a_family_that_needs_so_many_times_the_compute(factor: float, form: str) -> None:
    x = np.geomspace(1e4, 1e8, 14)
    law = {"b": 4.0, "c": 0.25} if form == "power" else {"a": 0.05, "b": 4.0, "c": 0.25}
    later = dict(law, b=law["b"] * factor ** law["c"])
    cheap, dear = (sample(fit(FORMS[form], errors(x, 20_000, form=form, law=v)), resamples=300) for v in (law, later))
    found = multiplier(dear, cheap, ("dear", "cheap"))
    assert found is not None
    assert found.interval is not None
    assert found.value == pytest.approx(factor, rel=0.1)
    assert found.interval.low < factor < found.interval.high
    assert found.smallest <= found.value <= found.largest


def test_a_multiplier_of_few_runs_has_an_interval_by_student() -> None:
    x = np.geomspace(1e4, 1e8, 5)
    laws = [{"a": 0.05, "b": b, "c": 0.25} for b in (4.0, 4.0 * 3.0**0.25)]
    cheap, dear = (
        sample(fit(FORMS["saturating"], errors(x, 20_000, seed=seed, law=law)), resamples=300, seed=seed)
        for seed, law in enumerate(laws)
    )
    assert cheap.method == dear.method == "t"
    found = multiplier(dear, cheap, ("dear", "cheap"))
    assert found is not None
    assert found.interval is not None
    assert found.interval.low < 3 < found.interval.high


def test_families_without_a_common_error_have_no_multiplier() -> None:
    x = np.geomspace(1e4, 1e6, 8)
    good, bad = (
        sample(fit(FORMS["power"], errors(x, 10**5, form="power", law={"b": b, "c": 0.1})), resamples=100)
        for b in (0.5, 2.0)
    )
    assert multiplier(bad, good, ("bad", "good")) is None


def test_the_paper_s_vit_needs_two_to_four_times_less_than_its_resnet_on_the_mean_of_five_tasks() -> None:
    rows = pd.read_csv(PAPER)
    rows["mean"] = rows[["imagenet", "cifar10", "cifar100", "pets", "flowers"]].mean(axis=1)
    columns = Columns(inputs=("exaflops",), y="mean", by=("family",), measure="accuracy")
    curves, _ = curves_of(rows, columns)
    drawn = {c.name: sample(fit(FORMS["power"], c.observations), resamples=100) for c in curves}
    found = multiplier(drawn["resnet"], drawn["vit"], ("resnet", "vit"))
    assert found is not None
    assert 2 < found.value < 4


def budgets(noise: float = 0.0, shift: float = 1.0) -> Observations:
    """Losses with the best size 0.1 C^0.5, at 9 sizes around it for each of 4 budgets."""
    rng = np.random.default_rng(0)
    compute = np.repeat([1e18, 1e19, 1e20, 1e21], 9)
    size = 0.1 * compute**0.5 * np.tile(np.geomspace(1 / 8, 8, 9), 4) * shift
    loss = 2 + 3e2 * compute**-0.15 + 0.02 * np.log(size / (0.1 * compute**0.5)) ** 2
    return Observations(
        np.stack([compute, size], -1), LogLoss(loss * np.exp(noise * rng.standard_normal(36))), np.arange(36)
    )


def test_isoflop_profiles_give_the_best_size_as_a_power_of_compute() -> None:
    exact = isoflop(budgets(), resamples=100)
    assert exact.a == pytest.approx(0.5, abs=1e-6)
    assert exact.k == pytest.approx(0.1, rel=1e-4)
    assert exact.best_size(1e22) == pytest.approx(1e10, rel=1e-4)
    noisy = isoflop(budgets(noise=0.003), resamples=300)
    assert noisy.interval is not None
    assert noisy.interval.low < 0.5 < noisy.interval.high
    assert noisy.interval.width < 0.2
    there = noisy.size_interval(1e22)
    assert there is not None
    assert there.low < 1e10 < there.high < 3 * there.low
    assert exact.size_interval(1e22) is not None


def test_profiles_of_few_runs_have_an_interval_by_student() -> None:
    points = budgets(noise=0.003)
    some = isoflop(points.only(np.arange(36) % 9 % 2 == 0), resamples=300)  # five sizes of each budget
    assert {budget.sample.method for budget in some.budgets} == {"t"}
    assert some.interval is not None
    assert some.interval.low < 0.5 < some.interval.high


def test_all_budgets_together_say_how_far_runs_lie_off_their_profiles() -> None:
    """As wide as what chance does to the exponent: with four sizes each alone would say five times as much."""
    found = [isoflop(hoffmann(4, seed), resamples=100) for seed in range(12)]
    intervals = [one.interval for one in found if one.interval is not None]
    assert len(intervals) == 12
    spread = 2 * 1.96 * np.std([one.a for one in found])
    assert 0.5 * spread < np.median([each.width for each in intervals]) < 2.5 * spread
    assert sum(each.low < 0.28 / 0.62 < each.high for each in intervals) >= 9


def hoffmann(sizes: int, seed: int) -> Observations:
    """Losses with a noise of 0.002 at so many sizes around the best of 6 budgets."""
    compute = np.repeat(np.geomspace(1e18, 1e21, 6), sizes)
    best = (0.34 * 406.4 / (0.28 * 410.7)) ** (1 / 0.62) * (compute / 6) ** (0.28 / 0.62)
    size = best * np.tile(np.geomspace(1 / 4, 4, sizes), 6)
    loss = 1.69 + 406.4 * size**-0.34 + 410.7 * (compute / 6 / size) ** -0.28
    noise = np.exp(0.002 * np.random.default_rng(seed).standard_normal(len(loss)))
    return Observations(np.stack([compute, size], -1), LogLoss(loss * noise), np.arange(len(loss)))


def test_profiles_without_freedom_have_no_interval_and_say_so() -> None:
    points = budgets(noise=0.003)
    one_cluster = Observations(points.inputs, points.residuals, np.zeros(36, dtype=int))
    found = isoflop(one_cluster, resamples=50)
    assert found.a is not None
    assert found.interval is None
    assert {budget.interval for budget in found.budgets} == {None}
    assert "no_interval" in {fact.kind for fact in found.facts}


def test_a_budget_whose_runs_lie_much_further_off_is_named() -> None:
    points = budgets(noise=0.003)
    y = points.y.copy()
    y[27:] *= np.exp(0.02 * np.random.default_rng(1).standard_normal(9))
    found = isoflop(Observations(points.inputs, LogLoss(y), points.clusters), resamples=50)
    (fact,) = (fact for fact in found.facts if fact.kind == "unequal_noise")
    assert fact.text.startswith("Runs at 1e+21 lie")
    assert "unequal_noise" not in {fact.kind for fact in isoflop(points, resamples=50).facts}


def test_a_forecast_is_far_from_the_budgets_of_the_law() -> None:
    near, far = (isoflop(budgets(), at=[compute], resamples=50) for compute in (5e21, 1e23))
    assert "extrapolation" not in {fact.kind for fact in near.facts}
    (fact,) = (fact for fact in far.facts if fact.kind == "extrapolation")
    assert "A forecast 100 times beyond the largest budget of the law" in fact.text


def test_a_best_size_that_its_runs_do_not_tell_has_no_number() -> None:
    found = isoflop(budgets(noise=0.2), resamples=200)
    open_ = [budget for budget in found.budgets if budget.is_open and not budget.at_edge]
    assert open_
    assert all(budget.best_size is None and budget.best_value is None for budget in open_)
    assert "unidentified" in {fact.kind for fact in found.facts}


def test_computes_without_gaps_are_no_budget() -> None:
    compute = np.geomspace(1e18, 1e21, 200)
    size = 0.1 * compute**0.5 * np.exp(np.random.default_rng(0).normal(size=200))
    loss = 2 + 3e2 * compute**-0.15 + 0.02 * np.log(size / (0.1 * compute**0.5)) ** 2
    found = isoflop(Observations(np.stack([compute, size], -1), LogLoss(loss), np.arange(200)), resamples=20)
    assert found.budgets == ()
    assert "no_budget" in {fact.kind for fact in found.facts}


def test_a_best_size_at_the_edge_of_its_grid_is_left_out_and_said() -> None:
    found = isoflop(budgets(shift=30.0), resamples=100)
    assert all(budget.at_edge for budget in found.budgets)
    assert found.a is None
    assert {fact.kind for fact in found.facts} == {"edge", "few_points"}
