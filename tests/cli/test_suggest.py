"""`vitscale suggest` on a study of which some cells are measured."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit

import tiny
from vitscale.analysis.fits import Observations, fit
from vitscale.analysis.forms import FORMS
from vitscale.analysis.intervals import sample
from vitscale.analysis.residuals import Binomial
from vitscale.analysis.suggest import Candidate, bare, suggest, with_last, with_point
from vitscale.cli.suggest import _candidate
from vitscale.errors import MISSING, USAGE
from vitscale.launch.rates import Rates
from vitscale.results.store import write_part
from vitscale.study.job import Job
from vitscale.study.load import load
from vitscale.study.plan import plan

STEPS = [5, 10, 20, 40, 80, 160, 320]
DONE = 5  # of them, by both families
LAW = (0.9, 0.25)  # error = b (x / x of 5 steps)^-c


def vitscale(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitscale", "suggest", "study.toml", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two families and seven budgets, of which five are done, with two seeds."""
    return made(tmp_path_factory.mktemp("suggest"), lambda job: job.steps in STEPS[:DONE])


def made(folder: Path, done: Callable[[Job], bool]) -> Path:
    axes = f'[[axes]]\n"model.name" = ["ViT-nano/7", "R5"]\n"recipe.steps" = {STEPS}\nseed = [0, 1]\n'
    text = tiny.STUDY.replace("steps = 12\n", "").replace("validate_every = 48\n", "").replace('keep = "best"\n', "")
    (folder / "study.toml").write_text(text[: text.index("[[transfer]]")] + axes)
    for name, samples in (("train", 120), ("test", 40)):
        (folder / name).mkdir()
        facts = {"name": name, "samples": samples, "num_classes": 4, "fingerprint": name}
        (folder / name / "dataset.json").write_text(json.dumps(facts))
    rng = np.random.default_rng(0)
    for job in jobs(folder):
        if done(job):
            finish(job, folder, rng)
    return folder


def jobs(folder: Path) -> list[Job]:
    return [job for job in plan(load(folder / "study.toml", base=folder), {}).jobs if job.kind == "pretrain"]


def finish(job: Job, folder: Path, rng: np.random.Generator) -> None:
    b, c = LAW
    error = rng.binomial(2000, b * (job.steps / 5) ** -c * float(np.exp(0.02 * rng.standard_normal()))) / 2000
    facts = {"study": "study", "status": "done", "role": "cell", "family": job.arch.family, "model": job.run.model.name}
    row = {"flops_standalone": job.pretrain_flops, "examples": job.examples, "examples_seen": job.examples_seen}
    measured = {
        "task": "upstream_test",
        "protocol": "pretrain",
        "metric": "accuracy",
        "value": 1 - error,
        "n_test": 2000,
    }
    settings = {"settings": dict(job.varied), "seed": job.run.seed, "lr_at_edge": False}
    write_part([{**facts, **row, **measured, **settings}], folder / "results" / "study", run_id=job.id, attempt=1)
    run = folder / "runs" / job.id
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(job.document()))
    (run / "result.json").write_text(json.dumps({"status": "done", "rows": [], "attempt": 1, "score": None}))


def test_it_names_open_cells_within_the_budget_and_what_each_would_gain(folder: Path) -> None:
    cost = {job.id: job.pretrain_flops for job in jobs(folder)}
    family = {job.id: job.arch.family for job in jobs(folder)}
    undone = {job.id for job in jobs(folder) if job.steps not in STEPS[:DONE]}
    budget = 2.5 * max(cost.values())
    found = vitscale(folder, "--budget", str(budget), "--form", "power", "--most", "3", "--json")
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    named = [each["candidate"] for each in document["suggestions"]]
    assert 1 <= len(named) <= 3
    assert len({each["name"] for each in named}) == len(named)
    assert {each["name"] for each in named} <= undone
    assert all(each["flops"] == cost[each["name"]] and each["curve"] == family[each["name"]] for each in named)
    assert sum(each["flops"] for each in named) <= budget
    for each in document["suggestions"]:
        assert 0 < each["after"] < each["before"]
        assert each["narrower"] == pytest.approx(1 - each["after"] / each["before"])
        assert "times beyond the largest so far" in each["why"] or "one more run" in each["why"]
    assert document["rates"].startswith("a guess") or document["rates"].startswith("as measured")


def test_runs_whose_results_are_there_without_their_folders_are_done(folder: Path) -> None:
    done = {job.id for job in jobs(folder) if job.steps in STEPS[:DONE]}
    found = vitscale(folder, "--budget", "1e15", "--form", "power", "--most", "20", "--runs", "elsewhere", "--json")
    assert found.returncode == 0, found.stderr
    named = {each["candidate"]["name"] for each in json.loads(found.stdout)["suggestions"]}
    assert named
    assert not named & done


def test_a_forecast_of_transfers_pays_for_them(folder: Path) -> None:
    job = jobs(folder)[-1]
    rates = Rates(device="", measured={}, guess=1e9, how="")
    alone = _candidate(job, [], folder / "runs", "flops", "family", rates)
    both = _candidate(job, [job, job], folder / "runs", "flops", "family", rates)
    assert both.flops == 3 * alone.flops
    assert both.hours == pytest.approx(3 * alone.hours)


def test_without_money_it_says_what_the_cheapest_run_takes(folder: Path) -> None:
    cheapest = min(job.pretrain_flops for job in jobs(folder) if job.steps not in STEPS[:DONE])
    found = vitscale(folder, "--budget", "1", "--form", "power")
    assert found.returncode == 0
    assert f"nothing to suggest: the cheapest run that is not done takes {cheapest:.3g} FLOPs" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--budget", "1e9", "--x", "width"], USAGE, "error: --x width: not known of a run before it is made\nhint: one of flops"),
        (["--budget", "1e9", "--form", "isoflop"], USAGE, "error: --form isoflop is no law in one column\nhint: one of auto, power"),
        (["--budget", "1e9", "--at", "-5"], USAGE, "error: --at -5: not a positive number\nhint: e.g. --at 1e21"),
        (["--budget", "1e9", "--at", "nan"], USAGE, "error: --at nan: not a positive number"),
        (["--budget", "1e9", "--at", "0"], USAGE, "error: --at 0: not a positive number"),
        (["--budget", "1e9", "--where", "family == 'x'"], MISSING, "error: none of the table's 20 rows is left\nhint: --where can choose others"),
        (["--budget", "1e9", "--results", "nowhere"], MISSING, "error: nowhere/study: no such results folder"),
    ],
)  # fmt: skip
def test_bad_input_is_two_lines(folder: Path, arguments: list[str], code: int, message: str) -> None:
    found = vitscale(folder, *arguments)
    assert found.returncode == code
    assert found.stderr.startswith(message)
    assert len(found.stderr.splitlines()) == 2


def test_a_law_that_cannot_miss_its_points_is_said_to_need_another_place(tmp_path: Path) -> None:
    made(tmp_path, lambda job: job.steps in STEPS[:2])
    third = {job.arch.family: job for job in reversed(jobs(tmp_path)) if job.steps == STEPS[2]}
    found = vitscale(tmp_path, "--budget", "1e12", "--form", "power")
    assert found.returncode == 0, found.stderr
    for family, job in third.items():
        why = f"{family}: no interval yet (2 places measured, and the law power takes 3); 1 run would bring one"
        assert f"{why}\n  {job.id}: flops = {job.pretrain_flops:.4g}" in found.stderr
    assert "nothing to suggest" not in found.stderr
    told = json.loads(vitscale(tmp_path, "--budget", "1e12", "--form", "power", "--json").stdout)
    assert [(each["curve"], [run["name"] for run in each["runs"]]) for each in told["without_interval"]] == [
        (family, [third[family].id]) for family in sorted(third)
    ]


def test_a_family_without_a_result_is_not_passed_over(tmp_path: Path) -> None:
    made(tmp_path, lambda job: job.arch.family == "vit" and job.steps in STEPS[:DONE])
    found = vitscale(tmp_path, "--budget", "1e12", "--form", "power", "--json")
    told = json.loads(found.stdout)
    assert {each["candidate"]["curve"] for each in told["suggestions"]} == {"vit"}
    (bare,) = told["without_interval"]
    assert (bare["curve"], bare["why"]) == ("resnet", "0 places measured, and the law power takes 3")
    cheapest = [job.pretrain_flops for job in jobs(tmp_path) if job.arch.family == "resnet" and job.run.seed == 0][:3]
    assert [run["flops"] for run in bare["runs"]] == cheapest


def test_of_runs_that_hang_on_one_training_an_independent_one_is_named() -> None:
    points = observations()
    shared = fit(FORMS["power"], Observations(points.inputs, points.residuals, np.zeros(len(points), dtype=np.int64)))
    own = Candidate("own", "vit", (1e14,), 1e14, 1.0, trunk="t")
    others = [replace(own, name="other", trunk="u", flops=2e14), replace(own, name="dear", trunk="v", flops=3e14)]
    (found,) = bare({"vit": shared}, FORMS["power"], {"vit": set(points.compute)}, [own, *others], {"vit": {"t": 0}})
    assert found.why == "too few of its runs are independent"
    assert [run.name for run in found.runs] == ["other"]


def test_a_forecast_far_from_what_is_measured_is_said_to_be_a_guess(folder: Path) -> None:
    for at, where in (("1e300", "beyond the largest"), ("1e-300", "below the smallest")):
        found = vitscale(folder, "--budget", "1e12", "--form", "power", "--at", at)
        assert f"times {where} measured point: further than 10 times is a guess." in found.stderr
        told = json.loads(vitscale(folder, "--budget", "1e12", "--form", "power", "--at", at, "--json").stdout)
        assert all("extrapolation" in {fact["kind"] for fact in curve["facts"]} for curve in told["curves"])
    usual = json.loads(vitscale(folder, "--budget", "1e12", "--form", "power", "--json").stdout)
    assert [curve["facts"] for curve in usual["curves"]] == [[], []]


def noisy(error: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With a spread over seeds of 0.05 of its log odds."""
    return expit(logit(error) + rng.normal(0, 0.05, np.shape(error)))


def observations() -> Observations:
    x = np.array([1e12, 2e12, 4e12, 8e12, 1.6e13] * 2)[:, None]
    y = noisy(0.5 * (x[:, 0] / 1e12) ** -0.2, np.random.default_rng(1))
    return Observations(x, Binomial(y, np.full(len(x), 5000.0), 0.05), np.arange(len(x)))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitscale.analysis.suggest.RESAMPLES", 50)


def candidate(name: str, x: float, hours: float) -> Candidate:
    return Candidate(name=name, curve="vit", inputs=(x,), flops=x, hours=hours)


@pytest.mark.usefixtures("quick")
def test_a_far_run_says_more_of_a_far_forecast_than_one_more_in_the_middle() -> None:
    fits = {"vit": fit(FORMS["power"], observations())}
    at = {"vit": np.array([[1e15]])}
    both = [candidate("middle", 4e12, 1.0), candidate("far", 2e14, 1.0)]
    first, *_ = suggest(fits, at, both, 1e16, most=1)
    assert first.candidate.name == "far"
    assert first.why == "12.5 times beyond the largest so far"
    # The same runs at another price: what counts is the gain for each hour.
    dear = [candidate("middle", 4e12, 0.001), candidate("far", 2e14, 100.0)]
    assert next(iter(suggest(fits, at, dear, 1e16, most=1))).candidate.name == "middle"


def test_the_expected_interval_is_what_such_runs_do_to_it() -> None:
    """Against runs of laws that the data allow, with the noise that the data have, fitted from scratch."""
    far, at = np.array([[2e14]]), np.array([[1e15]])
    found = fit(FORMS["power"], observations())
    (named,) = suggest({"vit": found}, {"vit": at}, [candidate("far", 2e14, 1.0)], 1e16, most=1)
    rng = np.random.default_rng(7)
    widths = []
    for theta in sample(found, resamples=100, seed=5).theta[:9]:
        y = noisy(FORMS["power"].value(theta[None], found.scaled(far))[0], rng)
        refit = fit(FORMS["power"], with_point(found, far, y, found.theta).observations)
        predicted = sample(refit, resamples=200, seed=3).predictions(at)
        assert predicted is not None
        widths.append(predicted[0][0].width)
    assert named.after == pytest.approx(float(np.median(widths)), rel=0.4)
    assert named.after < 0.8 * named.before


def test_what_a_run_is_worth_does_not_hang_on_the_seed() -> None:
    fits, at = {"vit": fit(FORMS["power"], observations())}, {"vit": np.array([[1e15]])}
    some = [candidate("below", 1e11, 1.0), candidate("beside", 2e12, 1.0), candidate("far", 2e14, 1.0)]
    found = [list(suggest(fits, at, some, 1e16, most=3, seed=seed)) for seed in range(5)]
    assert len({each[0].candidate.name for each in found}) == 1
    gains = [each[0].narrower for each in found]
    assert np.ptp(gains) < 0.05
    assert min(gains) > 0.1


@pytest.mark.usefixtures("quick")
def test_what_is_named_next_starts_from_what_is_expected_by_then() -> None:
    """A run that met the law would make the few others look nearer to it than they are."""
    few = observations().only(np.arange(3))
    some = [candidate(str(n), x, 1.0) for n, x in enumerate((1e13, 5e13, 2e14))]
    found = fit(FORMS["power"], few)
    assert sample(found).method == "t"
    first, *others = suggest({"vit": found}, {"vit": np.array([[1e15]])}, some, 1e16, most=3)
    assert others
    for before, after in pairwise([first, *others]):
        assert after.before == before.after


def test_resamples_with_one_more_run_are_the_same_ones_but_for_it() -> None:
    clusters, rng = np.array([0, 0, 1, 2, 3, 4, 5, 9]), np.random.default_rng(0)
    times = rng.multinomial(6, np.full(6, 1 / 6), size=20_000)
    weights = times[:, [0, 0, 1, 2, 3, 4, 5]].astype(float)
    more = with_last(weights, clusters, rng)
    assert (more[:, 1:].sum(1) == 7).all()  # as many draws as clusters
    assert (more[:, 0] == more[:, 1]).all()  # points of a cluster are drawn together
    np.testing.assert_allclose(more[:, 1:].mean(0), 1.0, atol=0.03)
    np.testing.assert_allclose(more[:, 1:].var(0), 6 / 7, atol=0.03)  # of 7 draws among 7
    assert (np.abs(more[:, :-1] - weights).sum(1) <= np.maximum(2 * (more[:, -1] - 1), 2)).all()
    known = with_last(weights, np.array([0, 0, 1, 2, 3, 4, 5, 2]), rng)
    np.testing.assert_array_equal(known, np.column_stack([weights, weights[:, 3]]))


@pytest.mark.usefixtures("quick")
def test_runs_of_one_trunk_pay_it_once_and_hang_on_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitscale.analysis.suggest.WORTH", -1.0)  # of the second, beside a run of its own trunk
    fits = {"vit": fit(FORMS["power"], observations())}
    short = Candidate("short", "vit", (1e14,), 1e13, 1.0, trunk="t", trunk_flops=9e13, trunk_hours=9.0)
    long = Candidate("long", "vit", (2e14,), 2e13, 2.0, trunk="t", trunk_flops=1.8e14, trunk_hours=18.0)
    named = list(suggest(fits, {"vit": np.array([[1e15]])}, [short, long], 1e16, most=2))
    assert {each.candidate.name for each in named} == {"short", "long"}
    first, second = named
    assert first.flops == first.candidate.flops + first.candidate.trunk_flops
    assert first.flops + second.flops == pytest.approx(1e13 + 2e13 + 1.8e14)
    assert first.hours + second.hours == pytest.approx(1.0 + 2.0 + 18.0)


def test_a_point_of_a_trunk_that_is_there_makes_no_new_cluster() -> None:
    found = fit(FORMS["power"], observations())
    far = np.array([[2e14]])
    shared = with_point(found, far, found.predict(far), found.theta, cluster=3)
    assert shared.observations.cluster_count == found.observations.cluster_count
    assert shared.observations.clusters[-1] == 3


def test_with_a_point_on_the_law_the_law_stays() -> None:
    found = fit(FORMS["power"], observations())
    at = np.array([[1e14]])
    again = with_point(found, at, found.predict(at), found.theta)
    assert len(again.observations) == len(found.observations) + 1
    assert again.observations.cluster_count == found.observations.cluster_count + 1
    np.testing.assert_allclose(again.theta, found.theta, rtol=1e-4)
