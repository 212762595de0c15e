"""Weight standardisation (arXiv 1903.10520) in the three ways in which it was published."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Standardization = Literal["jax", "timm", "bit"]

_EPS = {"timm": 1e-8, "bit": 1e-10}


def standardize(
    weight: Float[Tensor, "outputs inputs rows columns"], how: Standardization
) -> Float[Tensor, "outputs inputs rows columns"]:
    """Every output's kernel with mean 0 and variance 1.

    `jax`: (w - mean) / (std + 1e-5), of the hybrids of arXiv 2010.11929; `timm`: / sqrt(var + 1e-8), of timm's copies
    of them; `bit`: / sqrt(var + 1e-10), of arXiv 1912.11370.
    """
    if how == "jax":
        std, mean = torch.std_mean(weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        return (weight - mean) / (std + 1e-5)
    variance, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
    return (weight - mean) * torch.rsqrt(variance + _EPS[how])
