"""From the settings of `[model]` to an architecture."""

from __future__ import annotations

import re

from vitscale import models
from vitscale.config import Model, Recipe

TRANSFORMER = ("width", "depth", "mlp", "heads", "gelu", "pool", "pos_embedding", "attention")
CONVOLUTIONS = ("weight_standardization", "group_norm_eps")

IN_ARCH = ("name", "stem", "patch", *TRANSFORMER, *CONVOLUTIONS)
"""Settings that the numbers of the architecture say, so that a run's identity need not repeat them."""


HEAD_BIAS_SIGMOID = -10.0
"""So that thousands of classes start as "absent"; said by the authors of arXiv 2010.11929."""


def default_head_bias(recipe: Recipe) -> float:
    """Where the head's bias starts unless `model.head_bias` says otherwise."""
    return HEAD_BIAS_SIGMOID if recipe.loss == "sigmoid" else 0.0


def arch_of(model: Model, sizes: models.Sizes) -> models.Arch | None:
    """The architecture that the settings describe, those that mean nothing to its family left out; None where the name
    is unknown."""
    # The 0 keeps it from being a published name that means another number: R+ViT-Ti/16, whose ratio is 32.
    name = model.name if model.patch is None else re.sub(r"/\d+$", f"/0{model.patch}", model.name)
    arch = models.parse(name, stem=model.stem, sizes=sizes)
    if arch is None:
        return None
    without = meaningless(model, arch)
    return models.with_options(arch, {key: v for key, v in _given(model).items() if key not in without})


def meaningless(model: Model, arch: models.Arch) -> list[str]:
    """The settings that were given and that the family does not have."""
    known = {"vit": TRANSFORMER, "hybrid": (*TRANSFORMER, *CONVOLUTIONS), "resnet": CONVOLUTIONS}[arch.family]
    found = [key for key in _given(model) if key not in known]
    return [*found, "patch"] if model.patch is not None and "/" not in model.name else found


def _given(model: Model) -> dict[str, object]:
    return {key: getattr(model, key) for key in (*TRANSFORMER, *CONVOLUTIONS) if getattr(model, key) is not None}
