"""BiT ResNets by name (pre-activation, arXiv 1912.11370): stages, parameters, multiply-adds; no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar

from vitscale.models.counts import Counting, Head, Macs, Params, conv_macs

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

    def problems(self, resolution: int) -> list[str]:
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
        blocks, inputs = 0, self.width
        for stage, count in enumerate(self.blocks):
            inside = self.width * 2**stage
            outside = 4 * inside
            for _ in range(count):
                blocks += inputs * inside + 9 * inside * inside + inside * outside
                blocks += inputs * outside if inputs != outside else 0
                blocks += 2 * (inputs + inside + inside)
                inputs = outside
        return Params(
            embedding=3 * kernel**2 * self.width,
            blocks=blocks + 2 * inputs,
            head=head.params(inputs),
        )

    def macs(self, resolution: int, head: Head, counting: Counting = "dense") -> Macs:
        convolutions, side = stem_macs(self.stem, self.width, resolution, counting)
        convolutions += stage_macs(self.blocks, self.width, side, counting)[0]
        return Macs(convolutions=convolutions, head=head.macs(self.feature_width))


def stage_macs(blocks: tuple[int, ...], width: int, side: int, counting: Counting) -> tuple[int, int]:
    """(MACs, side of the last feature map) of stages of bottlenecks over a stem's output of `width` channels."""
    macs, inputs = 0, width
    for stage, count in enumerate(blocks):
        inside = width * 2**stage
        outside = 4 * inside
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            first, _ = conv_macs(side, 1, inputs, inside)
            second, after = conv_macs(side, 3, inside, inside, stride=stride, counting=counting)
            third, _ = conv_macs(after, 1, inside, outside)
            shortcut = conv_macs(side, 1, inputs, outside, stride=stride)[0] if inputs != outside else 0
            macs += first + second + third + shortcut
            inputs, side = outside, after
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
