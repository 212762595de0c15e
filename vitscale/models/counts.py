"""What an architecture is made of and what one image through it costs, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal

Counting = Literal["dense", "valid"]
"""Which taps of a padded convolution count: all of them, as a device computes them, or those inside the image.

arXiv 2010.11929, Table 6 counts its ResNets and hybrids by the second; matrix products are the same in both.
"""


Precision = Literal["fp32", "bf16"]
"""Of matrix products, as `Recipe.precision`."""


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
class Activations:
    """Numbers that a training step keeps from the forward pass for the backward pass: of 4 bytes in fp32, of 2 in bf16
    but for those that are `wide`.

    Attention is fused: of its scores one number a query and head is kept. Dropout's masks are not counted. In bf16 they
    are what torch's autocast keeps on a processor: on a GPU it computes a ResNet's norms in fp32.
    """

    per_image: int
    fixed: int = 0
    """Whatever the batch: standardised kernels."""
    again: int = 0
    """Of an image: what the largest block that is computed again keeps, beside its input, until its own backward."""
    wide: int = 0
    """Of `per_image`, what keeps its 4 bytes in bf16: the sum that runs through a transformer's blocks, indices."""
    wide_fixed: int = 0
    """Of `fixed`, the same."""
    wide_again: int = 0
    """Of `again`, the same."""
    copies: int = 0
    """In bf16 alone, whatever the batch: weights of matrix products, rounded."""

    def bytes(self, batch: int, precision: Precision = "fp32") -> int:
        if precision == "fp32":
            return 4 * (self.per_image * batch + self.fixed)
        return 2 * ((self.per_image + self.wide) * batch + self.fixed + self.wide_fixed + self.copies)

    def peak_bytes(self, batch: int, precision: Precision = "fp32") -> int:
        """With what is computed again for a moment."""
        again = 4 * self.again if precision == "fp32" else 2 * (self.again + self.wide_again)
        return self.bytes(batch, precision) + again * batch

    def __add__(self, other: Activations) -> Activations:
        largest = max(self, other, key=lambda each: each.again)
        return Activations(
            per_image=self.per_image + other.per_image,
            fixed=self.fixed + other.fixed,
            again=largest.again,
            wide=self.wide + other.wide,
            wide_fixed=self.wide_fixed + other.wide_fixed,
            wide_again=largest.wide_again,
            copies=self.copies + other.copies,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What stands behind the representation.

    `num_classes` outputs of a linear layer; before it, where `pre_logits`, a dense layer of that width with tanh.
    """

    num_classes: int
    pre_logits: int | None = None
    patches: int = 0
    """Corrupted patches, each of which the linear layer predicts from its own token; 0: it reads the representation."""

    def params(self, width: int) -> int:
        hidden = (width + 1) * self.pre_logits if self.pre_logits else 0
        return hidden + ((self.pre_logits or width) + 1) * self.num_classes

    def macs(self, width: int) -> int:
        return width * (self.pre_logits or 0) + (self.pre_logits or width) * self.num_classes * (self.patches or 1)

    def weights(self, width: int) -> int:
        """Those of its matrix products: all parameters but biases."""
        return width * (self.pre_logits or 0) + (self.pre_logits or width) * self.num_classes

    def kept(self) -> int:
        """Activations of one image beside the representation."""
        return self.pre_logits or 0


def option(default: Any) -> Any:
    """A field of an architecture that is no part of its numbers at its default.

    So runs that were named before there was the option keep their ids.
    """
    return field(default=default, metadata={"option": True})


def conv_macs(
    side: int, kernel: int, inputs: int, outputs: int, *, stride: int = 1, counting: Counting = "dense"
) -> tuple[int, int]:
    """(MACs, side of the output) of a square convolution that is padded to keep its size but for the stride."""
    after = ceil(side / stride)
    taps = after * kernel if counting == "dense" else _taps_inside(side, kernel, stride)
    return taps * taps * inputs * outputs, after


def kernel_copies(how: str, inputs: int, outputs: int, kernel: int) -> int:
    """Numbers that standardising a kernel keeps: it centred, it standardised, and a divisor or two for each output."""
    return 2 * inputs * outputs * kernel**2 + (2 if how == "jax" else 1) * outputs


def kernel_sums(how: str, inputs: int, outputs: int, kernel: int) -> int:
    """Of `kernel_copies`, what standardising keeps in fp32 whatever the precision: all but the kernel that is used."""
    return kernel_copies(how, inputs, outputs, kernel) - inputs * outputs * kernel**2


def _taps_inside(side: int, kernel: int, stride: int) -> int:
    """Along one side, the kernel positions of all outputs that fall on the image.

    TensorFlow's "SAME" padding and a symmetric one of half the kernel give the same number: one mirrors the other.
    """
    after = ceil(side / stride)
    before = max((after - 1) * stride + kernel - side, 0) // 2
    starts = [position * stride - before for position in range(after)]
    return sum(min(start + kernel, side) - max(start, 0) for start in starts)
