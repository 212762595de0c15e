"""Hybrids by name: a ViT over the feature map of a post-activation ResNet; no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar, Literal

from vitscale.models.counts import Activations, Counting, Head, Macs, Params, kernel_copies, kernel_sums, option
from vitscale.models.resnet.arch import BLOCKS, Backbone, backbone_of, bottlenecks, kernels, stage_macs, stem_macs
from vitscale.models.vit.arch import SIZES, size_of
from vitscale.models.vit.arch import Arch as ViT

NAME = re.compile(r"(?P<backbone>R\w*?)(?:x(?P<factor>\d+(?:\.\d+)?))?\+ViT-(?P<size>\w+)/(?P<ratio>\d+)")

# The number after the slash is the whole down-sampling ratio; this published name counts only part of it.
ALIASES = {"R+ViT-Ti/16": "R+ViT-Ti/32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """A ResNet stem, `blocks` bottlenecks a stage (none: the stem alone) and a ViT with patches of the feature map."""

    family: ClassVar[str] = "hybrid"
    blocks: tuple[int, ...]
    backbone_width: int
    groups: int
    stem: str
    width: int
    depth: int
    mlp: int
    heads: int
    patch: int
    weight_standardization: Literal["jax", "timm", "bit"] = option("jax")
    group_norm_eps: float = option(1e-6)
    gelu: Literal["exact", "tanh"] = option("exact")
    pool: Literal["token", "gap"] = option("token")
    pos_embedding: Literal["1d", "2d", "none", "relative"] = option("1d")
    attention: Literal["full", "axial"] = option("full")

    @property
    def backbone_ratio(self) -> int:
        return (1 if self.stem == "small" else 4) << max(len(self.blocks) - 1, 0)

    @property
    def ratio(self) -> int:
        return self.backbone_ratio * self.patch

    @property
    def channels(self) -> int:
        """Of the feature map that is cut into patches."""
        return self.backbone_width << (len(self.blocks) + 1) if self.blocks else self.backbone_width

    @property
    def feature_width(self) -> int:
        return self.width

    @property
    def vit(self) -> ViT:
        """The transformer on top; its images are the feature map."""
        return ViT(
            width=self.width,
            depth=self.depth,
            mlp=self.mlp,
            heads=self.heads,
            patch=self.patch,
            channels=self.channels,
            gelu=self.gelu,
            pool=self.pool,
            pos_embedding=self.pos_embedding,
            attention=self.attention,
        )

    def problems(self, resolution: int, *, trained_at: int | None = None) -> list[str]:
        found = self.vit.shape_problems(resolution, trained_at)
        if self.backbone_width % self.groups:
            found.append(f"{self.groups} groups of GroupNorm do not divide width {self.backbone_width}")
        if resolution % self.ratio or resolution < self.ratio:
            found.append(f"a down-sampling of {self.ratio} does not divide resolution {resolution}")
        return found

    def tokens(self, resolution: int) -> int:
        return self.vit.tokens(resolution // self.backbone_ratio)

    def params(self, resolution: int, head: Head) -> Params:
        kernel = 3 if self.stem == "small" else 7
        backbone = 3 * kernel**2 * self.backbone_width + 2 * self.backbone_width
        for inputs, inside, _ in bottlenecks(self.blocks, self.backbone_width):
            outside = 4 * inside
            backbone += inputs * inside + 9 * inside * inside + inside * outside
            backbone += 2 * (inside + inside + outside)
            backbone += inputs * outside + 2 * outside if inputs != outside else 0
        vit = self.vit.params(resolution // self.backbone_ratio, head)
        return Params(embedding=backbone + vit.embedding, blocks=vit.blocks, head=vit.head)

    def macs(self, resolution: int, head: Head, counting: Counting = "dense") -> Macs:
        root, side = stem_macs(self.stem, self.backbone_width, resolution, counting)
        stages, side = stage_macs(self.blocks, self.backbone_width, side, counting)
        vit = self.vit.macs(side, head)
        return Macs(
            convolutions=root + stages,
            patch_embedding=vit.patch_embedding,
            projections=vit.projections,
            attention=vit.attention,
            mlp=vit.mlp,
            head=vit.head,
        )

    def activations(self, resolution: int, head: Head, *, recompute: bool = False) -> Activations:
        """What is kept for the backward pass; with `recompute`, of a block its input alone."""
        side, kept = self._stem_activations(resolution)
        how, norm = self.weight_standardization, 2 * self.groups
        root = 3, self.backbone_width, 3 if self.stem == "small" else 7
        fixed, sums = kernel_copies(how, *root), kernel_sums(how, *root)
        again = 0
        for inputs, inside, stride in bottlenecks(self.blocks, self.backbone_width):
            after, outside, projected = ceil(side / stride), 4 * inside, inputs != 4 * inside
            kept += outside * after**2
            padded = inside * (side + 1) ** 2 if stride == 2 and side % 2 == 0 else 0
            block = 2 * inside * side**2 + padded + (2 * inside + outside) * after**2 + 3 * norm
            block += outside * after**2 + norm if projected else 0
            if recompute:
                again = max(again, block)
            else:
                kept += block
                fixed += sum(kernel_copies(how, *each) for each in kernels(inputs, inside))
                sums += sum(kernel_sums(how, *each) for each in kernels(inputs, inside))
            side = after
        transformer = self.vit.activations_behind_image(side, head, recompute=recompute)
        maxima = 0 if self.stem == "small" else 2 * self.backbone_width * ceil(ceil(resolution / 2) / 2) ** 2
        return Activations(per_image=kept, fixed=fixed, again=again, wide=maxima, wide_fixed=sums) + transformer

    def _stem_activations(self, resolution: int) -> tuple[int, int]:
        """(side of the stem's output, what is kept of it: the image, both sides of the norm's ReLU, the pooling's)."""
        width, norm = self.backbone_width, 2 * self.groups
        if self.stem == "small":
            return resolution, (3 + 2 * width) * resolution**2 + norm
        half = ceil(resolution / 2)
        quarter = ceil(half / 2)
        image = 3 * (resolution if resolution % 2 else resolution + 5) ** 2
        pooled = width * (half + (2 if half % 2 else 1)) ** 2 + (2 + 1) * width * quarter**2
        return quarter, image + 2 * width * half**2 + norm + pooled


def parse(name: str, *, stem: str, sizes: Mapping[str, Mapping[str, Any]]) -> Arch | None:
    """`R50+ViT-B/16` and any other backbone and size; `R+ViT-...` is the stem alone.

    Stages that would down-sample beyond the ratio are dropped and their blocks moved into the last one kept,
    as published for R50+ViT-B/16: [3, 4, 9]. What then lacks of the ratio is the patch.
    """
    published = stem == "standard" and "Ti" not in sizes
    match = NAME.fullmatch(ALIASES.get(name, name) if published else name)
    if match is None:
        return None
    size = size_of(match["size"], sizes)
    backbone = Backbone(()) if match["backbone"] == "R" else backbone_of(match["backbone"], sizes)
    width = backbone.width(match["factor"]) if backbone else None
    if size is None or backbone is None or width is None:
        return None
    stem_ratio = 1 if stem == "small" else 4
    ratio = int(match["ratio"])
    blocks = _fit(backbone.blocks, ratio // stem_ratio)
    reached = stem_ratio * 2 ** max(len(blocks) - 1, 0)
    if ratio < reached or ratio % reached:
        return None
    return Arch(
        blocks=blocks,
        backbone_width=width,
        groups=backbone.groups,
        stem=stem,
        width=size.width,
        depth=size.depth,
        mlp=size.mlp,
        heads=size.heads,
        patch=ratio // reached,
    )


def _fit(blocks: tuple[int, ...], ratio: int) -> tuple[int, ...]:
    kept = min(len(blocks), max(ratio.bit_length(), 1))
    if kept == len(blocks):
        return blocks
    return (*blocks[: kept - 1], sum(blocks[kept - 1 :]))


def names(sizes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names that `parse` knows, for suggestions and listings."""
    own_sizes = [name for name, numbers in sizes.items() if "width" in numbers]
    own_backbones = [name for name, numbers in sizes.items() if "blocks" in numbers]
    return [
        f"{backbone}+ViT-{size}/{ratio}"
        for backbone in ["R", *BLOCKS, *own_backbones]
        for size in [*SIZES, *own_sizes]
        for ratio in (4, 16, 32)
    ]
