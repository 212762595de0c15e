"""BiT ResNets by name (pre-activation, arXiv 1912.11370): stages, parameters, multiply-adds; no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar, Literal

from vitscale.models.counts import (
    Activations,
    Counting,
    Head,
    Macs,
    Params,
    conv_macs,
    kernel_copies,
    kernel_sums,
    option,
)

# Bottleneck blocks a stage: arXiv 1512.03385, Table 1; R200: arXiv 1603.05027;
# R26: the smallest backbone that the authors of arXiv 2010.11929 published.
BLOCKS = {
    "R26": (2, 2, 2, 2),
    "R50": (3, 4, 6, 3),
    "R101": (3, 4, 23, 3),
    "R152": (3, 8, 36, 3),
    "R200": (3, 24, 36, 3),
}

NAME = re.compile(r"(?P<backbone>R\w*?)(?:x(?P<factor>\d+(?:\.\d+)?))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """A BiT ResNet: `blocks` bottlenecks in each stage, the first stage `width` wide inside and 4 x `width` outside."""

    family: ClassVar[str] = "resnet"
    blocks: tuple[int, ...]
    width: int
    groups: int = 32
    stem: str = "standard"
    weight_standardization: Literal["jax", "timm", "bit"] = option("bit")
    group_norm_eps: float = option(1e-5)

    @property
    def depth(self) -> int:
        """Layers with weights, as in R50."""
        return 3 * sum(self.blocks) + 2

    @property
    def ratio(self) -> int:
        """Pixels of the input along one side of a position of the last feature map."""
        return (1 if self.stem == "small" else 4) << (len(self.blocks) - 1)

    @property
    def feature_width(self) -> int:
        return (4 * self.width) << (len(self.blocks) - 1)

    def problems(self, resolution: int, *, trained_at: int | None = None) -> list[str]:  # noqa: ARG002
        found = []
        if self.width % self.groups:
            found.append(f"{self.groups} groups of GroupNorm do not divide width {self.width}")
        if resolution <= self.ratio:
            found.append(
                f"a down-sampling of {self.ratio} leaves one position of {resolution} px images"
                + ("" if self.stem == "small" else "; model.stem = 'small' keeps 4 times the side")
            )
        return found

    def tokens(self, resolution: int) -> int:
        """Positions of the last feature map."""
        return ceil(resolution / self.ratio) ** 2

    def params(self, resolution: int, head: Head) -> Params:  # noqa: ARG002
        kernel = 3 if self.stem == "small" else 7
        blocks = 0
        for inputs, inside, _ in bottlenecks(self.blocks, self.width):
            outside = 4 * inside
            blocks += inputs * inside + 9 * inside * inside + inside * outside
            blocks += inputs * outside if inputs != outside else 0
            blocks += 2 * (inputs + inside + inside)
        return Params(
            embedding=3 * kernel**2 * self.width,
            blocks=blocks + 2 * self.feature_width,
            head=head.params(self.feature_width),
        )

    def macs(self, resolution: int, head: Head, counting: Counting = "dense") -> Macs:
        convolutions, side = stem_macs(self.stem, self.width, resolution, counting)
        convolutions += stage_macs(self.blocks, self.width, side, counting)[0]
        return Macs(convolutions=convolutions, head=head.macs(self.feature_width))

    def activations(self, resolution: int, head: Head, *, recompute: bool = False) -> Activations:
        """What is kept for the backward pass; with `recompute`, of a block its input alone."""
        how, norm = self.weight_standardization, 2 * self.groups
        kernel = 3 if self.stem == "small" else 7
        kept = 3 * resolution**2
        fixed, sums = kernel_copies(how, 3, self.width, kernel), kernel_sums(how, 3, self.width, kernel)
        side, wide = resolution, 0
        if self.stem == "standard":
            half = ceil(resolution / 2)
            side = ceil(half / 2)
            wide = 2 * self.width * side**2  # where the maxima lie
            kept += self.width * (half + 2) ** 2 + wide  # of the padded map
        again = 0
        for inputs, inside, stride in bottlenecks(self.blocks, self.width):
            after = ceil(side / stride)
            kept += inputs * side**2
            block = (inputs + 2 * inside) * side**2 + 2 * inside * after**2 + 3 * norm
            if recompute:
                again = max(again, block)
            else:
                kept += block
                fixed += sum(kernel_copies(how, *each) for each in kernels(inputs, inside))
                sums += sum(kernel_sums(how, *each) for each in kernels(inputs, inside))
            side = after
        features = self.feature_width
        kept += 2 * features * side**2 + norm + features + head.kept()
        copies = head.weights(features)
        return Activations(per_image=kept, fixed=fixed, again=again, wide=wide, wide_fixed=sums, copies=copies)


def bottlenecks(blocks: tuple[int, ...], width: int) -> Iterator[tuple[int, int, int]]:
    """(channels in, channels inside, stride) of each bottleneck in turn; four times its inside go out."""
    inputs = width
    for stage, count in enumerate(blocks):
        inside = width * 2**stage
        for block in range(count):
            yield inputs, inside, 2 if stage > 0 and block == 0 else 1
            inputs = 4 * inside


def kernels(inputs: int, inside: int) -> list[tuple[int, int, int]]:
    """(channels in, channels out, side) of each kernel of a bottleneck."""
    outside = 4 * inside
    found = [(inputs, inside, 1), (inside, inside, 3), (inside, outside, 1)]
    return [*found, (inputs, outside, 1)] if inputs != outside else found


def stage_macs(blocks: tuple[int, ...], width: int, side: int, counting: Counting) -> tuple[int, int]:
    """(MACs, side of the last feature map) of stages of bottlenecks over a stem's output of `width` channels."""
    macs = 0
    for inputs, inside, stride in bottlenecks(blocks, width):
        outside = 4 * inside
        first, _ = conv_macs(side, 1, inputs, inside)
        second, after = conv_macs(side, 3, inside, inside, stride=stride, counting=counting)
        third, _ = conv_macs(after, 1, inside, outside)
        shortcut = conv_macs(side, 1, inputs, outside, stride=stride)[0] if inputs != outside else 0
        macs += first + second + third + shortcut
        side = after
    return macs, side


def stem_macs(stem: str, width: int, resolution: int, counting: Counting) -> tuple[int, int]:
    """(MACs, side of its output, after pooling) of the root convolution."""
    if stem == "small":
        return conv_macs(resolution, 3, 3, width, counting=counting)
    macs, side = conv_macs(resolution, 7, 3, width, stride=2, counting=counting)
    return macs, ceil(side / 2)


@dataclass(frozen=True, slots=True)
class Backbone:
    blocks: tuple[int, ...]
    channels: int = 64
    """Of the first stage's inside at width factor 1."""
    groups: int = 32

    def width(self, factor: str | None) -> int | None:
        """The first stage's width; None where the factor leaves no whole number of channels."""
        width = self.channels * float(factor or 1)
        return int(width) if width == int(width) and width > 0 else None


def backbone_of(name: str, sizes: Mapping[str, Mapping[str, Any]]) -> Backbone | None:
    """A published backbone, or one of the study's own."""
    if name in sizes and "blocks" in sizes[name]:
        own = sizes[name]
        return Backbone(tuple(own["blocks"]), own.get("channels", 64), own.get("groups", 32))
    return Backbone(BLOCKS[name]) if name in BLOCKS else None


def parse(name: str, *, stem: str, sizes: Mapping[str, Mapping[str, Any]]) -> Arch | None:
    """`R50x2`, `R26x0.5`, or an own backbone's name with or without a width factor."""
    match = NAME.fullmatch(name)
    backbone = backbone_of(match["backbone"], sizes) if match else None
    width = backbone.width(match["factor"]) if match and backbone else None
    if backbone is None or width is None or not backbone.blocks:
        return None
    return Arch(blocks=backbone.blocks, groups=backbone.groups, width=width, stem=stem)


def names(sizes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    own = [name for name, numbers in sizes.items() if "blocks" in numbers]
    return [*own, *(f"{backbone}x{factor}" for backbone in [*BLOCKS, *own] for factor in (1, 2, 3, 4))]
