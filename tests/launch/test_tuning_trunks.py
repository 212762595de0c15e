"""Trunks that trials of [select] leave, and the runs that wait for the choice."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from trunk_folders import TEXT, begin, finish, left_at

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

    def made(*steps: int, over: str = '"recipe.lr" = [1e-3, 3e-2]', share: bool = True) -> Plan:
        path = base / "study.toml"
        select = f'[select]\nover = {{ {over} }}\nby = "upstream_val"\nper = ["model.name"]\n'
        path.write_text(f'{TEXT}{select}[[axes]]\n"recipe.steps" = {list(steps)}\n')
        return current_plan(load(path, base=base), tmp_path, share=share)

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
    assert totals([*now.jobs, *now.waiting], {})[1].startswith("2 shared trunks: ")
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
