"""Masked patch prediction in a study: what it cannot be combined with, and whose scores compare."""

from __future__ import annotations

from typing import Any, NamedTuple

from vitscale import models
from vitscale.config import Recipe, Run
from vitscale.models.masked import SQUARES, masked_head
from vitscale.study.archs import arch_of

OTHER_TABLE = "give classification and the other models an [[axes]] table of their own"


class Problem(NamedTuple):
    key: str
    message: str
    hint: str


def problems(run: Run, arch: models.Arch) -> list[Problem]:
    """What makes a run that predicts patches impossible."""
    recipe, name = run.recipe, run.model.name
    if recipe.objective != "masked-patch" or not 0 <= recipe.masked_fraction <= 1:  # which is complained of by itself
        return []
    if arch.family != "vit":
        reason = (
            "has no patch embeddings"
            if arch.family == "resnet"
            else "sees what is masked through the backbone of the patches around it"
        )
        return [Problem("recipe.objective", f"{name} {reason}: it cannot predict patches", OTHER_TABLE)]
    found = [
        Problem(key, f"{key} = {value} means nothing to masked-patch, which has no labels", OTHER_TABLE)
        for key, value in _of_labels(run).items()
    ]
    return found or _impossible(recipe, name, arch.ratio, run.data.resolution)


def _of_labels(run: Run) -> dict[str, Any]:
    """Settings that only a classification has, where they were given."""
    recipe = run.recipe
    told = {
        "recipe.loss": recipe.loss if recipe.loss != "softmax" else None,
        "recipe.label_smoothing": recipe.label_smoothing or None,
        "recipe.mixup": recipe.mixup or None,
        "model.head_bias": run.model.head_bias,
    }
    return {key: value for key, value in told.items() if value is not None}


def _impossible(recipe: Recipe, name: str, patch: int, resolution: int) -> list[Problem]:
    """What the patches do not allow."""
    found = []
    patches = (resolution // patch) ** 2
    if patches < 2:
        message = f"{name} sees {resolution} px as one patch: nothing is left to predict it from"
        found.append(Problem("recipe.objective", message, "take a smaller patch"))
    elif not masked_head(recipe, patch, resolution).patches:
        message = f"recipe.masked_fraction = {recipe.masked_fraction} corrupts none of {patches} patches"
        found.append(Problem("recipe.masked_fraction", message, "corrupt more; the paper takes 0.5"))
    if patch % SQUARES.get(recipe.masked_target, 1):
        message = f"patches of {patch} px cannot be cut into 4x4 squares"
        hint = "take a patch that 4 divides, or masked_target = 'mean-colour'"
        found.append(Problem("recipe.masked_target", message, hint))
    return found


def judged_by(run: Run, sizes: models.Sizes) -> tuple[Any, ...]:
    """What a run's upstream score is a score of: only equal ones compare."""
    recipe, arch = run.recipe, arch_of(run.model, sizes)
    if recipe.objective == "classification" or arch is None:
        return (recipe.objective,)
    return (recipe.objective, recipe.masked_target, recipe.masked_fraction, arch.ratio, run.data.resolution)
