"""The recipes' optimizers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from vitscale.config import Recipe


def make_optimizer(net: nn.Module, recipe: Recipe, kind: Literal["adamw", "sgd"]) -> torch.optim.Optimizer:
    """AdamW with decay on matrices and kernels only (no bias, norm, embedding, learned token), or SGD, momentum 0.9."""
    if kind == "sgd":
        return torch.optim.SGD(net.parameters(), lr=recipe.lr, momentum=0.9)
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in net.named_parameters():
        matrix = (
            parameter.ndim >= 2 and "pos_embedding" not in name and not name.endswith(("class_token", "mask_token"))
        )
        (decayed if matrix else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), fused=True)
