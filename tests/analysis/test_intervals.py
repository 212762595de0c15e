from __future__ import annotations

import time

import numpy as np
import pytest
from laws import chinchilla, errors

from vitscale.analysis.fits import Fit, Observations, fit
from vitscale.analysis.forms import FORMS
from vitscale.analysis.intervals import Interval, Sample, bootstrap, sample
from vitscale.analysis.profiles import agreed, profiles
from vitscale.analysis.residuals import Binomial, LogLoss, seed_spread
from vitscale.analysis.selftest import theta_of
from vitscale.analysis.solver import solve


def test_a_thousand_resamples_of_250_points_take_seconds() -> None:
    found = fit(FORMS["parametric"], chinchilla(250, 0.01))
    began = time.process_time()
    assert bootstrap(found, 1000).shape == (1000, 5)
    assert time.process_time() - began < 20  # of one core; two have half of it each


def test_a_resample_s_fit_is_what_a_fit_of_the_resample_finds() -> None:
    points = chinchilla(60, 0.01)
    found = fit(FORMS["parametric"], points)
    drawn = bootstrap(found, 100, seed=3)
    rng = np.random.default_rng(3)
    times = rng.multinomial(60, np.full(60, 1 / 60), size=100)
    for i in range(3):
        rows = np.repeat(np.arange(60), times[i])
        again = fit(FORMS["parametric"], points.only(rows))
        assert found.form.value(drawn[[i]], found.problem.z)[0] == pytest.approx(again.predict(points.inputs), rel=1e-4)


def test_resamples_that_memory_would_not_hold_together_are_as_many_and_as_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fit(FORMS["parametric"], chinchilla(60, 0.01))
    whole = bootstrap(found, 300)
    monkeypatch.setattr("vitscale.analysis.intervals.AT_ONCE", 60 * 70)
    parts = bootstrap(found, 300)
    assert parts.shape == whole.shape
    assert np.array_equal(parts[:70], bootstrap(found, 70))
    assert len(np.unique(parts[:, 3])) == 300
    assert parts[:, 3].std() == pytest.approx(whole[:, 3].std(), rel=0.3)


def test_points_of_one_cluster_are_drawn_together() -> None:
    """Copies of each point say nothing new: as clusters they leave the interval as wide, as points they narrow it."""
    points = chinchilla(40, 0.02)
    copies = np.repeat(np.arange(40), 4)
    clustered = points.only(copies)
    loose = Observations(clustered.inputs, clustered.residuals, np.arange(160))
    at = np.array([[1e9, 1e11]])
    widths = []
    for each in (points, clustered, loose):
        predictions = sample(fit(FORMS["parametric"], each), resamples=300).predictions(at)
        assert predictions is not None
        widths.append(predictions[0][0].width)
    assert widths[1] == pytest.approx(widths[0], rel=0.2)
    assert widths[2] < 0.7 * widths[0]


def test_the_same_seed_gives_the_same_interval() -> None:
    found = fit(FORMS["saturating"], errors(np.geomspace(1e3, 1e9, 12), 1000))
    once, again, other = (sample(found, resamples=100, seed=seed).parameters() for seed in (0, 0, 1))
    assert once == again != other


@pytest.mark.parametrize(("points", "method"), [(4, "t"), (2, "none"), (5, "bootstrap")])
def test_fewer_than_five_clusters_are_not_resampled(points: int, method: str) -> None:
    drawn = sample(fit(FORMS["power"], errors(np.geomspace(1e3, 1e9, points), 1000)))
    assert drawn.method == method
    assert bool(drawn.parameters()) == (method != "none")
    assert drawn.freedom == points - 2


def test_a_parameter_that_the_data_leave_open_is_not_identified() -> None:
    """Far from its floor a power law does not show it; Zhai's shift needs points below it."""
    x = np.geomspace(1e3, 1e5, 12)
    ends = profiles(fit(FORMS["broken"], errors(x, 2000, form="power", law={"b": 5.0, "c": 0.3})))
    assert not ends["d"].identified
    assert not ends["f"].identified
    whole = profiles(fit(FORMS["saturating"], errors(np.geomspace(1e3, 1e12, 30), 20_000)))
    assert all(end.identified for end in whole.values())
    assert not any(end.down_to_zero for end in whole.values())


@pytest.mark.parametrize(
    ("exponents", "identified"),
    [((0.1, 0.3), True), ((0.0, 0.3), False), ((0.1, 20.0), False), ((0.05, 0.6), False)],
)
def test_a_parameter_is_identified_only_if_its_interval_agrees(
    exponents: tuple[float, float], identified: bool
) -> None:
    found = fit(FORMS["power"], errors(np.geomspace(1e3, 1e9, 12), 5000, form="power", law={"b": 3.0, "c": 0.2}))
    ends = profiles(found)
    assert ends["c"].identified
    theta = np.repeat(found.theta[None], 100, 0)
    theta[:, 1] = np.repeat(exponents, 50)
    end = agreed(ends, Sample(found, "t", theta, 10))["c"]
    assert end.identified == identified
    assert identified or end.low is None or end.low <= exponents[0]
    assert identified or end.high is None or end.high >= exponents[1]


def test_a_coefficient_of_any_size_is_not_identified() -> None:
    found = fit(FORMS["power"], errors(np.geomspace(1e3, 1e9, 12), 5000, form="power", law={"b": 3.0, "c": 0.2}))
    theta = np.repeat(found.theta[None], 100, 0)
    theta[:50, 0], theta[50:, 0] = 1e-5, 1e2
    assert profiles(found)["b"].identified
    assert not agreed(profiles(found), Sample(found, "t", theta, 10))["b"].identified


def test_a_law_that_falls_within_its_first_points_identifies_nothing_of_its_shape() -> None:
    """Of accuracies that come to 1: the exponent goes as far as is tried, and b at x = 1 is beyond any number."""
    x, y = np.geomspace(1e17, 1e20, 8), np.array([0.02, 0.01, 0, 0, 0, 0, 0, 0])
    points = Observations(x[:, None], Binomial(y, np.full(8, 1000.0)), np.arange(8))
    ends = profiles(fit(FORMS["zhai"], points))
    assert not any(ends[name].identified for name in ("b", "c", "d"))


def test_an_exponent_without_end_leaves_the_other_power_and_the_floor_their_numbers() -> None:
    """Of data only the smallest set lies higher: beta goes as far as is tried."""
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e8, 6), [1e7, 1.3e7, 1.6e7, 2e7]))
    noise = np.random.default_rng(0).standard_normal(len(n))
    y = (1.7 + 400 * n**-0.3 + 0.3 * (d < 1.1e7)) * np.exp(1e-3 * noise)
    found = fit(FORMS["parametric"], Observations(np.stack([n, d], -1), LogLoss(y), np.arange(len(n))))
    ends = profiles(found)
    assert found.parameters["beta"] > 10
    assert [name for name, end in ends.items() if end.identified] == ["E", "A", "alpha"]
    assert ends["E"].low is not None


def test_a_law_without_a_slope_does_not_identify_its_shift() -> None:
    x = np.geomspace(1e17, 1e20, 8)
    y = 2 * np.exp(1e-3 * np.array([-1.0, 0.4, -0.6, 0.2, 0.1, -0.3, 0.5, 0.9]))  # which rises, if anything
    found = fit(FORMS["zhai"], Observations(x[:, None], LogLoss(y), np.arange(8)))
    assert found.parameters["b"] == 0
    assert not any(profiles(found)[name].identified for name in ("b", "c", "d"))


@pytest.mark.parametrize(("exponents", "identified"), [((0.1, 0.3), True), ((0.05, 0.6), False)])
def test_a_coefficient_takes_up_its_exponents_doubt_only_where_that_has_ends(
    exponents: tuple[float, float], identified: bool
) -> None:
    found = fit(FORMS["power"], errors(np.geomspace(1e3, 1e9, 12), 5000, form="power", law={"b": 3.0, "c": 0.2}))
    theta = np.repeat(found.theta[None], 100, 0)
    theta[:, 1] = np.repeat(exponents, 50)
    theta[:, 0] *= np.repeat([1.0, 1e3], 50) * np.exp(
        (0.2 - theta[:, 1]) * found.log_x0[0]
    )  # b from 3 to 3000 at x = 1
    sample = Sample(found, "t", theta, 10)
    assert 100 < sample.parameters()["b"].high / sample.parameters()["b"].low < 1e6
    assert agreed(profiles(found), sample)["b"].identified == identified


def test_a_floor_that_may_be_zero_is_said_to_be_so() -> None:
    ends = profiles(
        fit(FORMS["saturating"], errors(np.geomspace(1e3, 1e5, 12), 2000, form="power", law={"b": 5.0, "c": 0.3}))
    )
    assert ends["a"].down_to_zero
    assert ends["a"].low is None
    assert ends["a"].high is not None


def test_a_profile_ends_where_the_misfit_has_risen_by_f() -> None:
    """Of a line in logarithms the profile is the textbook's interval: b and c with 10 degrees of freedom."""
    x = np.geomspace(1, 1e4, 12)
    y = 3 * x**-0.25 * np.exp(0.05 * np.random.default_rng(0).standard_normal(12))
    found = fit(FORMS["power"], Observations(x[:, None], LogLoss(y), np.arange(12)), least_squares=True)
    ends = profiles(found)
    logs = np.log(x)
    spread = found.r @ found.r / 10
    centred = logs - logs.mean()
    reach_c = 2.2281 * np.sqrt(spread / (centred @ centred))
    reach_b = 2.2281 * np.sqrt(spread * (1 / 12 + logs.mean() ** 2 / (centred @ centred)))
    c, b = found.parameters["c"], found.parameters["b"]
    assert (ends["c"].low, ends["c"].high) == pytest.approx((c - reach_c, c + reach_c), rel=2e-2)
    assert np.log([ends["b"].low, ends["b"].high]) == pytest.approx(np.log(b) + np.array([-reach_b, reach_b]), rel=2e-2)


@pytest.mark.parametrize("form", ["power", "saturating"])
@pytest.mark.parametrize("seed", range(4))
def test_a_coefficient_reaches_as_far_as_its_exponent_takes_it(form: str, seed: int) -> None:
    """Far from x = 1 the two move together: at an end of c that fits as well, so does the b that goes with it."""
    rng = np.random.default_rng(seed)
    x = np.geomspace(1e15, 1e18, 6)
    y = ((0.1 if form == "saturating" else 0) + 0.3 * (x / 1e16) ** -0.25) * np.exp(0.02 * rng.standard_normal(6))
    found = fit(FORMS[form], Observations(x[:, None], Binomial(y, np.ones(6)), np.arange(6)))
    ends = profiles(found)
    c = found.form.parameters.index("c")
    fixed = np.arange(len(found.theta))[None] == c
    for side in ("low", "high"):
        end, coefficient = getattr(ends["c"], side), getattr(ends["b"], side)
        at = np.where(fixed, end, found.theta)
        b = found.form.natural(solve(found.problem, at, fixed=fixed).theta, found.log_x0)[0, c - 1]
        assert np.log(coefficient) == pytest.approx(np.log(b), abs=0.1)


def three() -> Fit:
    x = np.array([1e15, 1e16, 1e17])
    return fit(FORMS["power"], Observations(x[:, None], Binomial(np.array([0.5, 0.4, 0.3]), np.ones(3)), np.arange(3)))


def test_a_t_interval_of_a_coefficient_far_from_its_points_is_of_its_logarithm() -> None:
    drawn = sample(three())
    assert drawn.method == "t"
    b, joint = drawn.parameters()["b"], drawn.joint()
    assert 0 < b.low < 21.7 < b.high < np.inf
    assert joint is not None
    assert np.isfinite(joint.covariance).all()


def test_an_interval_past_all_numbers_has_no_end_and_no_joint_region() -> None:
    theta = np.tile(three().theta, (100, 1))
    theta[:50, 1] = 20.0  # 1e16 to this power is no number
    theta[50:, 0] = 0.0
    drawn = Sample(three(), "t", theta, 1)
    assert drawn.parameters()["b"] == Interval(0.0, np.inf)
    assert drawn.joint() is None


def test_a_coefficient_of_three_points_has_the_ends_of_a_search_by_force() -> None:
    assert profiles(three())["b"].high == pytest.approx(5.33e5, rel=0.1)


def test_parameters_that_trade_off_are_named_and_have_a_joint_region() -> None:
    joint = sample(fit(FORMS["parametric"], chinchilla(100, 0.01)), resamples=200).joint()
    assert joint is not None
    assert {(one, other) for one, other, _ in joint.trade_offs()} >= {("log A", "alpha"), ("log B", "beta")}
    assert joint.radius2 == pytest.approx(11.07, abs=0.01)  # chi-squared with 5 degrees of freedom at 95 %


def test_a_new_run_is_less_sure_than_the_law() -> None:
    predictions = sample(fit(FORMS["parametric"], chinchilla(100, 0.02)), resamples=300).predictions(
        np.array([[1e9, 1e11]])
    )
    assert predictions is not None
    law, run = predictions[0][0], predictions[1][0]
    assert run.width > 3 * law.width
    assert run.width == pytest.approx(2 * 1.96 * 0.02 * 2.2, rel=0.4)


def unlike_seeds(tau: float, seed: int, places: int = 12) -> Observations:
    """A power law whose runs at one place differ by `tau` of their log odds, five a place."""
    rng = np.random.default_rng(seed)
    x = np.repeat(np.geomspace(1e4, 1e8, places), 5)
    p = 3 * x**-0.2
    odds = np.log(p / (1 - p)) + tau * rng.standard_normal(len(x))
    y, trials = rng.binomial(10_000, 1 / (1 + np.exp(-odds))) / 10_000, np.full(len(x), 10_000.0)
    return Observations(x[:, None], Binomial(y, trials, seed_spread(y, trials, x[:, None])), np.arange(len(x)))


@pytest.mark.parametrize("tau", [0.3, 0.6])
def test_intervals_hold_the_mean_over_seeds_that_differ(tau: float) -> None:
    at = np.geomspace(1e5, 1e7, 3)[:, None]
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    odds = np.log(3 * at[:, 0] ** -0.2 / (1 - 3 * at[:, 0] ** -0.2))[:, None] + tau * nodes
    mean = (1 / (1 + np.exp(-odds))) @ weights / weights.sum()
    inside, ratio = [], []
    for seed in range(30):
        found = fit(FORMS["power"], unlike_seeds(tau, seed))
        predicted = sample(found, resamples=100, seed=seed).predictions(at)
        assert predicted is not None
        inside.append([one.low <= value <= one.high for one, value in zip(predicted[0], mean, strict=True)])
        ratio.append(found.predict(at) / mean)
    assert np.mean(inside) > 0.85
    assert np.mean(ratio) == pytest.approx(1, abs=0.035)


def test_a_lucky_seed_weighs_no_more_than_its_siblings() -> None:
    """Two of three runs met no error at all: the law there is near the mean of the three, not near the two."""
    x = np.repeat(np.geomspace(1e3, 1e6, 4), 3)
    y = np.array([0.3, 0.29, 0.31, 0.17, 0.18, 0.16, 0.1, 0.09, 0.095, 0.0, 0.0, 0.16])
    trials = np.full(12, 800.0)
    points = Observations(x[:, None], Binomial(y, trials, seed_spread(y, trials, x[:, None])), np.arange(12))
    for least_squares in (False, True):
        last = fit(FORMS["power"], points, least_squares=least_squares).predict(np.array([[1e6]]))[0]
        assert 0.03 < last < 0.08


@pytest.mark.parametrize(("form", "places", "runs"), [("m4", 5, 1), ("broken", 5, 2), ("saturating", 3, 3)])
def test_a_law_that_cannot_miss_its_points_has_no_interval(form: str, places: int, runs: int) -> None:
    x = np.repeat(np.geomspace(1e18, 1e22, places), runs)
    y = np.repeat(np.array([0.5, 0.4, 0.3, 0.25, 0.24])[:places], runs)
    found = fit(FORMS[form], Observations(x[:, None], Binomial(y, np.full(len(x), 1000.0)), np.arange(len(x))))
    assert sample(found).method == "none"
    assert sample(found).predictions(np.array([[1e23]])) is None
    assert not any(end.identified for end in profiles(found).values())


@pytest.mark.parametrize(("form", "places"), [("power", 5), ("saturating", 7)])
def test_intervals_of_few_points_hold_one_more_run(form: str, places: int) -> None:
    known = {"b": 5.0, "c": 0.3, **({"a": 0.08} if form == "saturating" else {})}
    at = np.array([[3e5], [3e7]])
    law = FORMS[form].value(theta_of(FORMS[form], known), np.log(at))[0]
    inside = []
    for seed in range(30):
        points = errors(np.geomspace(1e4, 1e8, places), 5000, form=form, law=known, seed=seed)
        predicted = sample(fit(FORMS[form], points), resamples=200, seed=seed).predictions(at)
        assert predicted is not None
        runs = np.random.default_rng(100 + seed).binomial(5000, law) / 5000
        inside.append([one.low <= value <= one.high for one, value in zip(predicted[1], runs, strict=True)])
    assert 0.9 < np.mean(inside) <= 1


def test_a_bootstrap_asks_for_two_clusters_a_parameter() -> None:
    x = np.geomspace(1e4, 1e8, 7)
    assert sample(fit(FORMS["saturating"], errors(x, 5000))).method == "bootstrap"
    assert sample(fit(FORMS["zhai"], errors(x, 5000))).method == "t"


@pytest.mark.parametrize("form", ["power", "saturating"])
def test_a_loss_s_unit_changes_no_forecast_and_no_interval(form: str) -> None:
    x = np.geomspace(1e17, 1e21, 24)
    noise = np.exp(0.02 * np.random.default_rng(0).standard_normal(24))
    at = np.array([[1e22]])
    found = []
    for unit in (1.0, 1e-40, 1e-12, 1e8, 1e40):
        losses = LogLoss((0.1 + 0.3 * (x / 1e17) ** -0.2) * noise * unit)
        one = fit(FORMS[form], Observations(x[:, None], losses, np.arange(24)))
        predictions = sample(one, resamples=50).predictions(at)
        assert predictions is not None
        ((law,), (run,)) = predictions
        found.append(np.array([one.predict(at)[0], law.low, law.high, run.low, run.high]) / unit)
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-3)
