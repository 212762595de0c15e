"""Activation checkpointing: keep what enters a block and compute the rest again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def through(blocks: Iterable[nn.Module], x: Tensor, *, recompute: bool) -> Tensor:
    """`x` through the blocks in turn; with `recompute` each keeps only its input for the backward pass."""
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
    return x
