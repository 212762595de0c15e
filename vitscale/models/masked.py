"""What a network says of corrupted patches (arXiv 2010.11929, B.1.2), in numbers; no torch."""

from __future__ import annotations

from vitscale.config import MaskedTarget, Recipe
from vitscale.models.counts import Head

COLOURS = 512
"""3 bits for each of red, green and blue."""

SQUARES: dict[MaskedTarget, int] = {"mean-colour": 1, "4x4": 4}
"""Squares along a side of the patch, each of which has a colour to be predicted; pixels are no colours."""


def outputs(target: MaskedTarget, patch: int) -> int:
    """Numbers that are predicted of one patch of `patch` x `patch` pixels."""
    return SQUARES[target] ** 2 * COLOURS if target in SQUARES else 3 * patch**2


def masked_head(recipe: Recipe, patch: int, resolution: int) -> Head:
    """The head of masked patch prediction; `patches` may be 0 where the recipe is impossible."""
    corrupted = round(recipe.masked_fraction * (resolution // patch) ** 2)
    return Head(num_classes=outputs(recipe.masked_target, patch), patches=corrupted)
