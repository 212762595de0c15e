"""The learning rate at a step, and how many steps there are."""

import itertools
import math
from dataclasses import replace

import pytest

from vitscale.config import Recipe
from vitscale.study.schedule import learning_rate, total_steps

BASE = Recipe(lr=2.0, warmup_steps=10, steps=110)


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    assert learning_rate(BASE, 0, 110) == pytest.approx(0.2)
    assert learning_rate(BASE, 9, 110) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("schedule", "middle", "last"),
    [("linear", 1.0, 0.02), ("cosine", 1.0, 1 + math.cos(math.pi * 0.99)), ("constant", 2.0, 2.0)],
)
def test_shapes_at_the_middle_and_the_last_step(schedule: str, middle: float, last: float) -> None:
    recipe = replace(BASE, schedule=schedule)
    assert learning_rate(recipe, 60, 110) == pytest.approx(middle)
    assert learning_rate(recipe, 109, 110) == pytest.approx(last)


def test_reciprocal_square_root_follows_the_step_and_not_the_length() -> None:
    recipe = replace(BASE, schedule="rsqrt")
    assert learning_rate(recipe, 40, 110) == learning_rate(recipe, 40, 10_000) == pytest.approx(1.0)


def test_a_cooldown_falls_from_where_the_shape_stands_to_the_end_value() -> None:
    recipe = replace(BASE, schedule="constant", cooldown=0.2, end_lr=0.5)
    rates = [learning_rate(recipe, step, 110) for step in range(88, 110)]
    assert learning_rate(recipe, 87, 110) == 2.0
    assert rates[0] == pytest.approx(2.0 - 1.5 / 23)
    assert rates[-1] == pytest.approx(0.5 + 1.5 / 23)
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_a_square_root_cooldown_falls_fast_at_first_and_ends_alike() -> None:
    linear = replace(BASE, schedule="constant", cooldown=0.2)
    root = replace(linear, cooldown_shape="sqrt")
    assert learning_rate(root, 87, 110) == 2.0
    for step in range(88, 110):
        share = (step - 87) / 23
        assert learning_rate(root, step, 110) == pytest.approx(2.0 * (1 - math.sqrt(share)))
        assert learning_rate(root, step, 110) < learning_rate(linear, step, 110)


def test_a_trunk_does_not_depend_on_its_length() -> None:
    recipe = replace(BASE, schedule="constant")
    assert [learning_rate(recipe, s, 100) for s in range(50)] == [learning_rate(recipe, s, 1000) for s in range(50)]


def test_durations_are_whole_steps() -> None:
    recipe = Recipe(batch_size=64)
    assert total_steps(replace(recipe, steps=7), 1000) == 7
    assert total_steps(replace(recipe, examples=129), 1000) == 3
    assert total_steps(replace(recipe, epochs=2.5), 1000) == 40
    for bad in (recipe, replace(recipe, steps=1, epochs=1.0)):
        with pytest.raises(ValueError, match="exactly one"):
            total_steps(bad, 1000)
