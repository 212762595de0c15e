"""The learning rate at a step: a function of the step and the total alone, so that checkpoints hold no schedule."""

from __future__ import annotations

from math import cos, pi, sqrt

from vitscale.config import Recipe


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """Rate of optimizer step `step` (0 is the first) out of `total`.

    Linear warm-up to `recipe.lr`; then the schedule's shape; over the last `recipe.cooldown` of the steps a descent to
    `recipe.end_lr` from wherever the shape then stands, linear or as 1 - sqrt (arXiv 2405.18392). The reciprocal square
    root follows the step, not the share done (arXiv 2106.04560), with the warm-up as its time scale.
    """
    warmup = recipe.warmup_steps
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    first = cooldown_start(recipe, total)
    if step >= first:
        share = (step - first + 1) / (total - first + 1)
        start = _shape(recipe, first, total)
        return start + (recipe.end_lr - start) * (sqrt(share) if recipe.cooldown_shape == "sqrt" else share)
    return _shape(recipe, step, total)


def cooldown_start(recipe: Recipe, total: int) -> int:
    """The first step of the cool-down; `total` without one."""
    return total - round(recipe.cooldown * total)


def knows_its_end(recipe: Recipe) -> bool:
    """Whether the rate before the cool-down depends on how long the run is."""
    return recipe.schedule not in ("constant", "rsqrt")


def _shape(recipe: Recipe, step: int, total: int) -> float:
    warmup = recipe.warmup_steps
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "rsqrt":
        scale = max(warmup, 1)
        return recipe.lr * sqrt(scale / max(step, scale))
    share = (step - warmup) / max(total - warmup, 1)
    fall = share if recipe.schedule == "linear" else (1 - cos(pi * share)) / 2
    return recipe.lr + (recipe.end_lr - recipe.lr) * fall


def total_steps(recipe: Recipe, examples: int) -> int:
    """Optimizer steps of a run over `examples` unique images; a started batch counts whole.

    Raises:
        ValueError: not exactly one of steps, epochs and examples is given.
    """
    given = [recipe.steps, recipe.epochs, recipe.examples]
    if sum(value is not None for value in given) != 1:
        raise ValueError("exactly one of recipe.steps, recipe.epochs and recipe.examples is needed")
    if recipe.steps is not None:
        return recipe.steps
    seen = recipe.examples if recipe.examples is not None else round((recipe.epochs or 0) * examples)
    return -(-seen // recipe.batch_size)
