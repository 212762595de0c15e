"""What is tried for [select], what that costs, what is chosen, and what waits for it."""

from pathlib import Path

import pytest

from studies import STUDY, finished, ids, planned, pretraining, untuned, write
from vitscale.errors import VitscaleError
from vitscale.study.load import load
from vitscale.study.plan import plan
from vitscale.study.select import choose, edges


def test_cells_wait_until_every_tuning_run_has_ended(tmp_path: Path) -> None:
    study = load(write(tmp_path), base=tmp_path)
    first = plan(study, {})
    tuning = [job for job in first.jobs if job.role == "tuning"]
    assert len(tuning) == 6
    assert sum(job.kind == "pretrain" for job in first.waiting) == 8 - 2  # two will be one of their trials
    assert len(plan(study, {job.id: 0.5 for job in tuning[:-1]}).waiting) == 3 + 8  # one family is decided
    assert finished(study).waiting == ()


def test_what_waits_is_counted_once(tmp_path: Path) -> None:
    study = load(write(tmp_path), base=tmp_path)
    first, last = plan(study, {}), finished(study)
    assert len(first.jobs) + len(first.waiting) == len(last.jobs)
    assert sum(job.flops for job in [*first.jobs, *first.waiting]) == sum(job.flops for job in last.jobs)


def test_what_waits_is_no_run_of_the_default_settings(tmp_path: Path) -> None:
    """That may have been trained, and would say how far this one is."""
    waiting = {job.id for job in plan(load(write(tmp_path), base=tmp_path), {}).waiting}
    assert waiting
    assert waiting.isdisjoint(ids(planned(tmp_path, untuned(STUDY))))


def test_a_published_row_is_not_tuned_and_needs_no_value_to_tune_near(tmp_path: Path) -> None:
    (tmp_path / "B.npz").write_bytes(b"published")
    text = STUDY.replace('per = ["model.name"]', 'per = ["recipe.steps"]\nat = { "recipe.steps" = [20] }')
    text = text.replace("examples = 500\n", "").replace("seed = [0, 1]", '"recipe.steps" = [20, 40]')
    published = '[[axes]]\n"model.name" = "ViT-B/16"\n"model.checkpoint" = "B.npz"\n"data.resolution" = 224\n"model.stem" = "standard"\n'
    assert len(planned(tmp_path, text + published).waiting) > 0
    with pytest.raises(VitscaleError, match=r"near recipe\.steps = none"):
        planned(tmp_path, text + '[[axes]]\n"model.name" = "R5"\n"recipe.epochs" = 1\n')


def test_settings_that_make_one_run_are_paid_for_once(tmp_path: Path) -> None:
    # Without a cool-down its shape has no effect: two combinations for each rate, and one run.
    over = '"recipe.lr" = [1e-3, 3e-3, 1e-2], "recipe.cooldown_shape" = ["linear", "sqrt"]'
    study = load(write(tmp_path, STUDY.replace('"recipe.lr" = [1e-3, 3e-3, 1e-2]', over)), base=tmp_path)
    assert sum(job.role == "tuning" for job in plan(study, {}).jobs) == 6
    first = next(job for job in pretraining(finished(study, best=3e-3)) if job.role == "cell")
    assert first.flops_tuning == 2 * first.flops


def test_what_stands_twice_in_a_study_waits_once(tmp_path: Path) -> None:
    transfer = STUDY[STUDY.index("[[transfer]]") : STUDY.rindex("[[transfer]]")]
    shapes = '"recipe.cooldown_shape" = ["linear", "sqrt"]\nseed'  # of no cool-down
    once = load(write(tmp_path), base=tmp_path)
    again = load(write(tmp_path, STUDY.replace("seed", shapes, 1) + transfer), base=tmp_path)
    assert sorted(ids(plan(again, {}))) == sorted(ids(plan(once, {})))


def test_the_choice_is_the_best_by_validation_and_is_shared_with_its_cell(tmp_path: Path) -> None:
    study = load(write(tmp_path), base=tmp_path)
    result = finished(study, best=3e-3)
    cells = [job for job in pretraining(result) if job.role == "cell"]
    assert {job.run.recipe.lr for job in cells} == {3e-3}
    assert all(job.at_edge is False for job in cells)
    assert sum(job.role == "tuning" for job in result.jobs) == 4  # of 6 two became cells
    assert len({job.id for job in cells}) == 8
    first = cells[0]
    assert first.flops_tuning == 2 * first.flops  # beside itself
    assert first.tried == tuple({"recipe.lr": lr, "score": 0.5 + 0.5 * (lr == 3e-3)} for lr in (1e-3, 3e-3, 1e-2))
    assert cells[1].flops_tuning == 3 * first.flops


def test_an_edge_is_that_of_each_setting_alone() -> None:
    grid = [(1e-3, 0.1, 0.4), (1e-2, 0.1, 0.5), (1e-1, 0.1, None), (1e-2, 0.3, 0.2)]
    tried = [
        {"recipe.lr": lr, "recipe.weight_decay": decay, "recipe.ema": True, "recipe.loss": "softmax", "score": score}
        for lr, decay, score in grid
    ]
    assert edges(tried) == {"recipe.weight_decay": 0.1}
    assert edges([{**trial, "score": None} for trial in tried]) == {}
    assert edges(tried[:1]) == {}
    scores = [(trial, trial["score"]) for trial in tried if trial["score"] is not None]
    choice = choose(scores, tried)
    assert choice.rate_at_edge is False
    without = [{key: value for key, value in trial.items() if key != "recipe.lr"} for trial in tried]
    assert choose([(trial, 1.0) for trial in without], without).rate_at_edge is None


def test_an_optimum_on_the_edge_is_flagged_and_a_failed_trial_is_passed_over(tmp_path: Path) -> None:
    study = load(write(tmp_path), base=tmp_path)
    assert all(job.at_edge for job in pretraining(finished(study, best=1e-2)) if job.role == "cell")
    tuning = [job for job in plan(study, {}).jobs if job.role == "tuning"]
    scores = {job.id: None if job.run.recipe.lr == 1e-2 else job.run.recipe.lr for job in tuning}
    cells = [job for job in pretraining(plan(study, scores)) if job.role == "cell"]
    assert {job.run.recipe.lr for job in cells} == {3e-3}
    assert cells[0].tried[-1] == {"recipe.lr": 1e-2, "score": None}


def test_sizes_that_are_not_tuned_take_the_nearest_choice(tmp_path: Path) -> None:
    text = STUDY.replace('per = ["model.name"]', 'per = ["data.examples"]\nat = { "data.examples" = [100, 800] }')
    text = text.replace("[100, 400]", "[100, 200, 400, 800]")
    study = load(write(tmp_path, text), base=tmp_path)
    best = {100: 1e-3, 800: 1e-2}
    scores = {
        job.id: float(job.run.recipe.lr == best[job.examples]) for job in plan(study, {}).jobs if job.role == "tuning"
    }
    assert len(scores) == 6
    chosen = {job.examples: job.run.recipe.lr for job in pretraining(plan(study, scores)) if job.role == "cell"}
    assert chosen == {100: 1e-3, 200: 1e-3, 400: 1e-2, 800: 1e-2}
