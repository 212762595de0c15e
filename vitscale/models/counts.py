"""What an architecture is made of and what one image through it costs, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

Counting = Literal["dense", "valid"]
"""Which taps of a padded convolution count: all of them, as a device computes them, or those inside the image.

arXiv 2010.11929, Table 6 counts its ResNets and hybrids by the second; matrix products are the same in both.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Learned numbers by part."""

    embedding: int
    blocks: int
    head: int

    @property
    def total(self) -> int:
        return self.embedding + self.blocks + self.head


@dataclass(frozen=True, slots=True, kw_only=True)
class Macs:
    """Multiply-adds of one image's forward pass by part: matrix products and convolutions."""

    convolutions: int = 0
    patch_embedding: int = 0
    projections: int = 0
    attention: int = 0
    mlp: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        return self.convolutions + self.patch_embedding + self.projections + self.attention + self.mlp + self.head


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What stands behind the representation.

    `num_classes` outputs of a linear layer; before it, where `pre_logits`, a square dense layer with tanh.
    """

    num_classes: int
    pre_logits: bool = False

    def params(self, width: int) -> int:
        hidden = width * width + width if self.pre_logits else 0
        return hidden + (width + 1) * self.num_classes

    def macs(self, width: int) -> int:
        return (width * width if self.pre_logits else 0) + width * self.num_classes


def conv_macs(
    side: int, kernel: int, inputs: int, outputs: int, *, stride: int = 1, counting: Counting = "dense"
) -> tuple[int, int]:
    """(MACs, side of the output) of a square convolution that is padded to keep its size but for the stride."""
    after = ceil(side / stride)
    taps = after * kernel if counting == "dense" else _taps_inside(side, kernel, stride)
    return taps * taps * inputs * outputs, after


def _taps_inside(side: int, kernel: int, stride: int) -> int:
    """Along one side, the kernel positions of all outputs that fall on the image.

    TensorFlow's "SAME" padding and a symmetric one of half the kernel give the same number: one mirrors the other.
    """
    after = ceil(side / stride)
    before = max((after - 1) * stride + kernel - side, 0) // 2
    starts = [position * stride - before for position in range(after)]
    return sum(min(start + kernel, side) - max(start, 0) for start in starts)
