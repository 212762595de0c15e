"""Stochastic depth (arXiv 1603.09382): in training a residual branch is left out for some of the images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DropBranch(nn.Module):
    """Zeroes a branch for each entry of the batch with probability `rate`, and scales the others by 1 / (1 - rate).

    At rate 0 it draws nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.0

    def forward(self, branch: Tensor) -> Tensor:
        if not self.rate or not self.training:
            return branch
        kept = torch.rand(len(branch), *(1,) * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * kept.to(branch.dtype).div_(1 - self.rate)


def set_rates(blocks: Sequence[nn.Module], last: float) -> None:
    """Rates that grow linearly from 0 in the first block to `last` in the last one."""
    for i, block in enumerate(blocks):
        for module in block.modules():
            if isinstance(module, DropBranch):
                module.rate = last * i / max(len(blocks) - 1, 1)
