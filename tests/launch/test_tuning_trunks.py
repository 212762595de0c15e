"""Trunks that trials of [select] leave, and the runs that wait for the choice."""

import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trunk_folders import TEXT, begin, finish, left_at

import tiny
from vitscale import branches
from vitscale.cli.plan_screen import totals
from vitscale.launch import folders, standing, trunks
from vitscale.launch.surplus import surplus
from vitscale.launch.sweep import current_plan
from vitscale.study.job import Job
from vitscale.study.load import load
from vitscale.study.plan import Plan
from vitscale.study.tuning import prospect_of


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Callable[..., Plan]:
    """The plan of so many budgets, tuned at the first of them, over the folders in `tmp_path`."""

    def made(
        *steps: int,
        over: str = '"recipe.lr" = [1e-3, 3e-2]',
        axis: str = "recipe.steps",
        runs: Path = tmp_path,
        **options: Any,
    ) -> Plan:
        path = base / "study.toml"
        select = f'[select]\nover = {{ {over} }}\nby = "upstream_val"\nper = ["model.name"]\n'
        path.write_text(f'{TEXT}{select}[[axes]]\n"{axis}" = {list(steps)}\n')
        return current_plan(load(path, base=base), runs, **options)

    return made


def budgets(now: Plan) -> dict[int, Job]:
    """The runs that are not trials, by their steps; and trunks that go on, by their negative ones."""
    training = [job for job in [*now.jobs, *now.waiting] if job.kind == "pretrain" and job.role in ("cell", "trunk")]
    return {-job.steps if job.role == "trunk" else job.steps: job for job in training}


def trials(now: Plan) -> list[Job]:
    return [job for job in now.jobs if job.role == "tuning" or job.tried]


def trunks_of(now: Plan) -> list[Job]:
    return [job for job in now.jobs if job.role == "trunk"]


def tried(trial: Job, runs: Path, score: float, *, trunk: str | None) -> None:
    finish(trial, runs, steps=trial.steps // 5 if trunk else trial.steps, trunk=trunk)
    path = runs / trial.id / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "score": score}))


def test_budgets_that_wait_for_a_selection_are_priced_as_they_will_be_trained(tuned: Callable) -> None:
    now = tuned(10, 20, 30, 40)
    assert [job.role for job in now.jobs] == ["trunk", "tuning", "trunk", "tuning"]
    assert not any(job.prospects_within for job in now.jobs)  # who is tuned is the first to leave
    one = now.jobs[0].flops_per_step
    assert sum(job.flops for job in now.jobs) == one * 2 * 10
    assert sum(job.flops for job in now.waiting) == one * (40 - 8 + 0.2 * (20 + 30))
    _, shared, left = totals([*now.jobs, *now.waiting], {})
    assert shared.startswith("2 shared trunks: ")
    assert left.startswith(f"left to run: {len(now.jobs) + len(now.waiting)} jobs, at most ")
    alone = tuned(10, 20, 30, 40, share=False)
    assert sum(job.flops for job in alone.waiting) == one * 90
    assert sum(job.flops for job in alone.jobs) == one * 2 * 10


def test_a_trial_of_the_longest_budget_saves_where_the_others_would_leave_it(
    tuned: Callable, base: Path, tmp_path: Path
) -> None:
    now = tuned(40, 10, 20)
    study = load(base / "study.toml", base=base)
    one = now.jobs[0].flops_per_step
    assert sum(job.flops for job in now.waiting) == one * 0.2 * (10 + 20)
    for trunk, trial in zip(trunks_of(now), trials(now), strict=True):
        folder = folders.prepare(trunk, tmp_path, base=tmp_path, machine={})
        name = prospect_of(trial.id, study)
        assert branches.asked(folder) == {(8, name), (16, name)}


@pytest.mark.parametrize("elsewhere", ["a namesake", "other settings"])
def test_what_is_not_chosen_keeps_nothing_for_it_any_more(
    tuned: Callable, base: Path, tmp_path: Path, elsewhere: str
) -> None:
    now = tuned(40, 10, 20)
    study, other = (load(base / "study.toml", base=base) for _ in range(2))
    if elsewhere == "a namesake":
        other = replace(other, file=base / "other" / "study.toml")
    else:
        other = load(base / "study.toml", base=base, settings=["recipe.weight_decay=0.5"])
    for trunk, trial, score in zip(trunks_of(now), trials(now), (0.5, 0.7), strict=True):
        folder = begin(trunk, tmp_path, 8, 16, 32)
        finish(trunk, tmp_path, steps=32)
        result = {**json.loads((folder / "result.json").read_text()), "checkpoint": "step-00000032"}
        (folder / "result.json").write_text(json.dumps(result))
        trunks.ask(now.jobs, tmp_path, study)  # a trunk that had ended before there was anything to choose
        assert not surplus(tmp_path)
        tried(trial, tmp_path, score, trunk=trunk.id)
    lost, won = trunks_of(now)
    now = tuned(40, 10, 20)
    assert not now.waiting
    assert {steps: left_at(job) for steps, job in budgets(now).items() if steps > 0} == {40: 32, 10: 8, 20: 16}
    assert sum(job.flops for job in now.jobs) == now.jobs[0].flops_per_step * (2 * 40 + 0.2 * (10 + 20))
    trunks.ask(now.jobs, tmp_path, study)
    before = branches.asked(tmp_path / lost.id)
    trunks.settle(now, other, tmp_path)  # which may wait for the same
    assert branches.asked(tmp_path / lost.id) == before
    trunks.settle(now, study, tmp_path)
    assert {id_ for _, id_ in branches.asked(tmp_path / won.id)} == {budgets(now)[10].id, budgets(now)[20].id}
    assert not branches.asked(tmp_path / lost.id)
    assert {each.folder for each in surplus(tmp_path)} == {
        tmp_path / lost.id / "checkpoints" / f"step-{step:08d}" for step in (8, 16)
    }


def test_a_study_that_is_renamed_keeps_nothing_under_its_old_name(tuned: Callable, base: Path, tmp_path: Path) -> None:
    now = tuned(40, 10, 20)
    study = load(base / "study.toml", base=base)
    (trunk, _), runs = trunks_of(now), tmp_path
    folder = folders.prepare(trunk, runs, base=runs, machine={}, study=study.file)
    begin(trunk, runs, 8, 16, 32)
    finish(trunk, runs, steps=32)
    result = {**json.loads((folder / "result.json").read_text()), "checkpoint": "step-00000032"}
    (folder / "result.json").write_text(json.dumps(result))
    tried(trials(now)[0], runs, 0.5, trunk=trunk.id)
    assert {step for step, _ in branches.asked(folder)} == {8, 16}
    assert not surplus(runs)
    (base / "study.toml").rename(base / "renamed.toml")
    assert [each.folder.name for each in surplus(runs)] == ["step-00000008", "step-00000016"]


def test_the_chosen_trial_s_trunk_goes_on(tuned: Callable, tmp_path: Path) -> None:
    now = tuned(10, 20, 40)
    for trunk, trial, score in zip(trunks_of(now), trials(now), (0.7, 0.5), strict=True):
        begin(trunk, tmp_path, 8)
        finish(trunk, tmp_path, steps=8)
        tried(trial, tmp_path, score, trunk=trunk.id)
    won, lost = trunks_of(now)
    now = tuned(10, 20, 40)
    further, ended = trunks_of(now)
    assert (further.id, further.steps, folders.state_of(further, tmp_path)) == (won.id, 32, "to do")
    assert (ended.id, ended.steps, folders.state_of(ended, tmp_path)) == (lost.id, 8, "done")  # part of the bill
    assert {steps: left_at(job) for steps, job in budgets(now).items() if steps > 0} == {10: 8, 20: 16, 40: 32}


def test_a_trial_whose_trunk_has_failed_is_not_tried_alone_once_the_choice_is_made(
    tuned: Callable, tmp_path: Path
) -> None:
    now = tuned(10, 20, 40)
    good, bad = trunks_of(now)
    begin(good, tmp_path, 8)
    finish(good, tmp_path, steps=8)
    tried(trials(now)[0], tmp_path, 0.7, trunk=good.id)
    finish(bad, tmp_path, steps=8)
    path = tmp_path / bad.id / "result.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "status": "failed", "failure": "not finite", "reason": "no"})
    )
    now = tuned(10, 20, 40)
    assert not now.waiting
    states = standing.states(now.jobs, tmp_path)
    assert states[bad.id] == "failed"
    assert [states[job.id] for job in now.jobs if job.role == "tuning"] == [f"waits for failed {bad.id}"]


def test_trials_that_trained_alone_leave_no_trunk_to_those_that_wait(tuned: Callable, tmp_path: Path) -> None:
    for trial in trials(tuned(10, 20, 40))[:1]:
        tried(trial, tmp_path, 0.5, trunk=None)
    one = tuned(10, 20, 40).jobs[0].flops_per_step
    assert sum(job.flops for job in tuned(10, 20, 40).waiting) == one * (40 + 0.2 * 20)  # it may be chosen
    for trial in trials(tuned(10, 20, 40))[1:]:
        tried(trial, tmp_path, 0.4, trunk=None)
    chosen = tuned(10, 20, 40)
    assert {steps: left_at(job) for steps, job in budgets(chosen).items()} == {10: None, 20: 16, 40: 32, -32: None}


def test_trials_of_another_length_are_asked_for_what_would_leave_them(tuned: Callable) -> None:
    """Of cool-downs that are tried each leaves the trunk elsewhere, and all of them one trunk."""
    now = tuned(40, 20, over='"recipe.cooldown" = [0.25, 0.5]')
    (trunk,) = trunks_of(now)
    assert trunk.steps == 30
    early, late = ({step for step, name in trunk.prospects if job.id in name} for job in trials(now))
    assert (early, late) == ({15}, {10})


@pytest.mark.parametrize("over", ['"recipe.schedule" = ["linear", "cosine"]', '"recipe.cooldown" = [0.0]'])
def test_a_trial_that_nobody_can_go_on_from_trains_alone(tuned: Callable, over: str) -> None:
    now = tuned(10, 20, 40, over=over)
    assert not trunks_of(now)


RATES = '"recipe.lr" = [1e-3, 3e-2, 1e-1]'


def to_train(jobs: Iterable[Job], runs: Path) -> float:
    """FLOPs that are left of these."""
    jobs = list(jobs)
    states = standing.states([job for job in jobs if not job.to_select], runs)
    left = trunks.shares_left(jobs, runs)
    return sum(job.flops * left.get(job.id, 1.0) for job in jobs if job.to_select or states[job.id] == "to do")


def end(now: Plan, trial: Job, runs: Path, saved: Iterable[int] | None = None) -> None:
    """The trial is done, and its trunk, which has these checkpoints; without a word all that it was asked for."""
    if trial.branch is None:
        return finish(trial, runs, steps=trial.steps)
    trunk = next(job for job in trunks_of(now) if trial.branch.trunk == job.id)
    ends = {step for step, _ in (*trunk.branches, *trunk.prospects_within)}
    begin(trunk, runs, *(ends if saved is None else saved))
    finish(trunk, runs, steps=trunk.steps)
    return tried(trial, runs, 0.5, trunk=trunk.id)


def trained_with_each(planned: Callable[..., Plan], runs: Path, folder: Path) -> list[float]:
    """By the trial that is chosen: what is left from now on, that of all trials included."""
    found = []
    for chosen in trials(planned(runs=runs)):
        copy = folder / chosen.id
        shutil.copytree(runs, copy)
        now = planned(runs=copy)
        for trial in trials(now):
            if not (copy / trial.id).exists():
                end(now, trial, copy)
            tiny.edit(copy / trial.id / "result.json", score=float(trial.id == chosen.id))
        after = planned(runs=copy)
        assert not after.waiting
        found.append(to_train(now.jobs, runs) + to_train(after.jobs, copy))
    return found


@pytest.mark.parametrize(
    ("saved", "with_each"),
    [
        pytest.param([32], [40 + 55, 40 + 55, 40 + 11], id="freed but for the last, so that all train alone"),
        pytest.param([8, 32], [40 + 31, 40 + 31, 40 + 11], id="freed but for one before"),
        pytest.param([8, 16, 20, 32], [40 + 11] * 3, id="all there"),
        pytest.param([], [40 + 31, 40 + 31, 40 + 11], id="gone, and one is trained again"),
    ],
)
def test_what_waits_is_priced_by_what_lies_of_the_dearest_trial_s_trunk(
    tuned: Callable, tmp_path: Path, saved: list[int], with_each: list[int]
) -> None:
    """Two rates were tried; a third, and three budgets of 55 steps together, are new."""
    runs = tmp_path / "runs"
    first = tuned(40, 10, runs=runs)
    for trial in trials(first):
        end(first, trial, runs, saved or [32])
    for trunk in trunks_of(first) if not saved else []:
        shutil.rmtree(runs / trunk.id)

    planned = partial(tuned, 40, 10, 20, 25, over=RATES)
    now = planned(runs=runs)
    one = now.jobs[0].flops_per_step
    assert trained_with_each(planned, runs, tmp_path) == [one * steps for steps in with_each]
    assert to_train([*now.jobs, *now.waiting], runs) == one * max(with_each)


def test_what_waits_is_free_where_it_is_done_whichever_trial_is_chosen(tuned: Callable, tmp_path: Path) -> None:
    now = tuned(10, 20)
    one = now.jobs[0].flops_per_step
    assert sum(job.flops for job in now.waiting) == one * 20 - one * 8
    for rate in (1e-3, 3e-2):
        alone = tuned(20, over=f'"recipe.lr" = [{rate}]').jobs
        end(now, alone[0], tmp_path)
        assert to_train(tuned(10, 20).waiting, tmp_path) == (0 if rate == 3e-2 else one * 12)
    assert {job.id.partition("-")[0] for job in tuned(10, 20).waiting} == {"select"}


def test_a_trial_that_has_diverged_makes_nothing_dearer(tuned: Callable, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    now = tuned(40, 10, runs=runs)
    one = now.jobs[0].flops_per_step
    end(now, trials(now)[0], runs, [32])
    assert to_train(tuned(40, 10, runs=runs).waiting, runs) == one * 10
    tiny.edit(runs / trials(now)[0].id / "result.json", status="failed", failure="not finite", reason="no", hint="no")
    assert to_train(tuned(40, 10, runs=runs).waiting, runs) == one * 2


@pytest.mark.parametrize("share", [True, False])
def test_where_batch_sizes_are_tuned_each_trial_is_priced_by_its_own(
    tuned: Callable, tmp_path: Path, share: bool
) -> None:
    """Whichever is chosen sees as many examples, in other numbers of steps than those of the recipe's own size."""
    runs = tmp_path / "runs"
    runs.mkdir()
    sizes = '"recipe.batch_size" = [8, 32]'
    planned = partial(tuned, 640, 1280, 2560, axis="recipe.examples", over=sizes, share=share)
    now = planned(runs=runs)
    image = now.jobs[0].flops_per_step // now.jobs[0].run.recipe.batch_size
    further, alone = 0.2 * (1280 + 2560) + 0.8 * (2560 - 640), 1280 + 2560
    expected = image * (2 * 640 + (further if share else alone))
    assert to_train([*now.jobs, *now.waiting], runs) == expected
    assert trained_with_each(planned, runs, tmp_path) == [expected] * 2


def test_hundreds_of_runs_that_wait_are_priced_in_no_time(base: Path, tmp_path: Path) -> None:
    (tmp_path / "another-study-s-run").mkdir()  # so that any of theirs might lie there
    axes = f'[[axes]]\n"recipe.steps" = {list(range(10, 101, 10))}\nseed = {list(range(20))}\n'
    path = base / "study.toml"
    path.write_text(f'{TEXT}[select]\nover = {{ {RATES} }}\nper = ["model.name"]\n{axes}')
    study = load(path, base=base)
    start = time.process_time()
    now = current_plan(study, tmp_path)
    assert time.process_time() - start < 10  # far above what it takes: it catches a square, not a slow machine
    assert sum(job.role == "cell" and job.kind == "pretrain" for job in now.waiting) == 199
