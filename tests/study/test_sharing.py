"""Which runs share a trunk, where they leave it, and what that saves."""

from pathlib import Path
from typing import Any

import pytest

from studies import STUDY, write
from vitscale.study.job import Job
from vitscale.study.load import load
from vitscale.study.plan import plan
from vitscale.study.schedule import learning_rate


def study(axes: str, recipe: str = 'schedule = "constant"\ncooldown = 0.2\n') -> str:
    """Budgets of ViT-nano/7 on 400 images."""
    text = STUDY[: STUDY.index("[[axes]]")].replace("examples = 500\n", recipe)
    return text + f'[[axes]]\n"model.name" = ["ViT-nano/7"]\n"data.examples" = 400\n{axes}\n'


def planned(folder: Path, text: str, **facts: Any) -> list[Job]:
    jobs = plan(load(write(folder, text, **facts), base=folder), {}).jobs
    return [job for job in jobs if job.kind == "pretrain"]


def trunks(jobs: list[Job]) -> list[Job]:
    return [job for job in jobs if job.role == "trunk"]


TEN = '"recipe.steps" = [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]'


def test_ten_budgets_in_equal_steps_save_what_the_arithmetic_says(tmp_path: Path) -> None:
    jobs = planned(tmp_path, study(TEN))
    together, alone = sum(job.flops for job in jobs), sum(job.pretrain_flops for job in jobs)
    one = alone / 5500
    assert together == pytest.approx(one * (1000 + 0.2 * 4500))  # TK + f (T1 + ... + T(K-1))
    assert 1 - together / alone == pytest.approx(0.65, abs=0.005)
    (trunk,) = trunks(jobs)
    assert [step for step, _ in trunk.branches] == [80 * n for n in range(1, 11)]
    assert trunk.steps == 800


def test_a_branch_is_the_run_that_it_would_be_alone(tmp_path: Path) -> None:
    branches = [job for job in planned(tmp_path, study(TEN)) if job.role != "trunk"]
    for steps in (100, 700):
        (alone,) = planned(tmp_path, study(f'"recipe.steps" = [{steps}]'))
        (branch,) = [job for job in branches if job.steps == steps]
        assert alone.branch is None
        assert branch.branch is not None
        assert (branch.id, branch.run, branch.pretrain_flops) == (alone.id, alone.run, alone.flops)


def test_longer_budgets_later_find_the_same_trunk(tmp_path: Path) -> None:
    (before,) = trunks(planned(tmp_path, study('"recipe.steps" = [100, 200]')))
    (after,) = trunks(planned(tmp_path, study('"recipe.steps" = [200, 5000]')))
    assert before.id == after.id
    assert (before.steps, after.steps) == (160, 4000)


@pytest.mark.parametrize(
    ("axes", "recipe"),
    [
        ('"recipe.steps" = [100]', 'schedule = "constant"\ncooldown = 0.2\n'),
        ('"recipe.steps" = [100, 200]', 'schedule = "constant"\n'),
        ('"recipe.steps" = [100, 200]', 'schedule = "cosine"\ncooldown = 0.2\n'),
        ('"recipe.steps" = [100, 200]', 'schedule = "linear"\ncooldown = 0.2\n'),
        ('"recipe.lr" = [1e-3, 3e-3]', 'schedule = "constant"\ncooldown = 0.2\nsteps = 100\n'),
        ('seed = [0, 1]', 'schedule = "constant"\ncooldown = 0.2\nsteps = 100\n'),
    ],
)  # fmt: skip
def test_what_is_not_the_same_until_the_cool_down_is_not_shared(tmp_path: Path, axes: str, recipe: str) -> None:
    jobs = planned(tmp_path, study(axes, recipe))
    assert not trunks(jobs)
    assert all(job.branch is None and job.flops == job.pretrain_flops for job in jobs)


def test_seeds_and_rates_have_trunks_of_their_own(tmp_path: Path) -> None:
    jobs = planned(tmp_path, study('"recipe.steps" = [100, 200]\n"recipe.lr" = [1e-3, 3e-3]\nseed = [0, 1]'))
    found = trunks(jobs)
    assert len(found) == len({trunk.id for trunk in found}) == 4
    of_trunk = {trunk.id: (trunk.run.seed, trunk.run.recipe.lr) for trunk in found}
    for job in jobs:
        if job.branch:
            assert of_trunk[job.branch.trunk] == (job.run.seed, job.run.recipe.lr)


def test_cool_downs_of_other_length_and_shape_leave_the_same_trunk(tmp_path: Path) -> None:
    axes = '"recipe.cooldown" = [0.1, 0.5]\n"recipe.cooldown_shape" = ["linear", "sqrt"]\n"recipe.end_lr" = [0.0, 1e-5]'
    (trunk,) = trunks(planned(tmp_path, study(axes, 'schedule = "constant"\nsteps = 100\n')))
    assert [step for step, _ in trunk.branches] == [50] * 4 + [90] * 4


@pytest.mark.parametrize("schedule", ["constant", "rsqrt"])
def test_up_to_where_it_is_left_the_trunk_has_the_rates_of_every_branch(tmp_path: Path, schedule: str) -> None:
    recipe = f'schedule = "{schedule}"\ncooldown = 0.3\nend_lr = 1e-5\n'
    text = study('"recipe.steps" = [20, 60, 200]', recipe).replace("warmup_steps = 2", "warmup_steps = 10")
    jobs = planned(tmp_path, text)
    (trunk,) = trunks(jobs)
    for job in jobs:
        if job.branch:
            rates = [learning_rate(job.run.recipe, step, job.steps) for step in range(job.branch.step)]
            assert rates == [learning_rate(trunk.run.recipe, step, trunk.steps) for step in range(job.branch.step)]
