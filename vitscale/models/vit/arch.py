"""Vision Transformers by name: sizes, parameters, multiply-adds; no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from vitscale.models.counts import Activations, Counting, Head, Macs, Params, option


@dataclass(frozen=True, slots=True)
class Size:
    width: int
    depth: int
    mlp: int
    heads: int


# width, depth, mlp, heads. Ti, S: arXiv 2012.12877, Table 1; B, L, H: arXiv 2010.11929, Table 1;
# mu, M, g, G: arXiv 2106.04560, Table 2; So400m: arXiv 2305.13035.
SIZES = {
    "mu": Size(32, 1, 128, 2),
    "Ti": Size(192, 12, 768, 3),
    "S": Size(384, 12, 1536, 6),
    "M": Size(512, 12, 2048, 8),
    "B": Size(768, 12, 3072, 12),
    "L": Size(1024, 24, 4096, 16),
    "H": Size(1280, 32, 5120, 16),
    "g": Size(1408, 40, 6144, 16),
    "G": Size(1664, 48, 8192, 16),
    "So400m": Size(1152, 27, 4304, 16),
}

NAME = re.compile(r"ViT-(?P<size>\w+)/(?P<patch>\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """A ViT: `channels` is 3 for images, and the width of the feature map in a hybrid."""

    family: ClassVar[str] = "vit"
    width: int
    depth: int
    mlp: int
    heads: int
    patch: int
    channels: int = 3
    gelu: Literal["exact", "tanh"] = option("exact")
    pool: Literal["token", "gap"] = option("token")
    pos_embedding: Literal["1d", "2d", "none", "relative"] = option("1d")
    attention: Literal["full", "axial"] = option("full")

    @property
    def ratio(self) -> int:
        """Pixels of the input along one side of a token."""
        return self.patch

    @property
    def feature_width(self) -> int:
        """Numbers in the representation that the head sees."""
        return self.width

    def problems(self, resolution: int, *, trained_at: int | None = None) -> list[str]:
        """Why no such network can be built for square images of `resolution` pixels, or, of weights that were
        trained at another resolution, cannot be carried there."""
        found = self.shape_problems(resolution, trained_at)
        if resolution % self.patch or resolution < self.patch:
            found.append(f"patch {self.patch} does not divide resolution {resolution}")
        return found

    def shape_problems(self, resolution: int, trained_at: int | None) -> list[str]:
        """Those that do not ask how the image is cut up: a hybrid's transformer has them, too."""
        found = []
        if self.width % self.heads:
            found.append(f"{self.heads} heads do not divide width {self.width}")
        if self.attention == "axial" and self.pool == "token":
            found.append("axial attention has no place for a class token: it needs pool = 'gap'")
        if self.attention == "axial" and self.pos_embedding == "relative":
            found.append("axial attention takes pos_embedding = '1d', '2d' or 'none'")
        if self.pos_embedding == "2d" and self.width % 2:
            found.append(f"2-D position embeddings halve the width, and {self.width} is odd")
        if self.pos_embedding == "relative" and trained_at not in (None, resolution):
            found.append(f"relative positions learned at {trained_at} px mean other distances at {resolution} px")
        return found

    def side(self, resolution: int) -> int:
        """Patches along one side."""
        return resolution // self.patch

    def tokens(self, resolution: int) -> int:
        """Sequence length, class token included."""
        return self.side(resolution) ** 2 + (self.pool == "token")

    @property
    def layers(self) -> int:
        """Pairs of attention and MLP: an axial block has two, one along rows and one along columns."""
        return self.depth * (2 if self.attention == "axial" else 1)

    def params(self, resolution: int, head: Head) -> Params:
        width, mlp, tokens = self.width, self.mlp, self.tokens(resolution)
        patches = self.patch**2 * self.channels * width + width
        learned = (self.pool == "token") + (head.patches > 0)  # class token, mask token
        positions = {"1d": tokens * width, "2d": self.side(resolution) * width}.get(self.pos_embedding, 0)
        attention = 4 * (width * width + width)
        distances = (2 * tokens - 1) * (width // self.heads) if self.pos_embedding == "relative" else 0
        dense = width * mlp + mlp + mlp * width + width
        norms = 4 * width
        return Params(
            embedding=patches + learned * width + positions,
            blocks=self.layers * (attention + distances + dense + norms) + 2 * width,
            head=head.params(width),
        )

    def macs(self, resolution: int, head: Head, counting: Counting = "dense") -> Macs:  # noqa: ARG002  # no padding
        tokens, width, side = self.tokens(resolution), self.width, self.side(resolution)
        keys = side if self.attention == "axial" else tokens
        distances = 2 * tokens - 1 if self.pos_embedding == "relative" else 0
        return Macs(
            patch_embedding=side**2 * self.patch**2 * self.channels * width,
            projections=self.layers * tokens * 4 * width * width,
            attention=self.layers * tokens * (2 * keys + distances) * width,
            mlp=self.layers * tokens * 2 * width * self.mlp,
            head=head.macs(width),
        )

    def activations(self, resolution: int, head: Head, *, recompute: bool = False) -> Activations:
        """What is kept for the backward pass; with `recompute`, of a block its input alone."""
        image = Activations(per_image=3 * resolution**2)
        return image + self.activations_behind_image(resolution, head, recompute=recompute)

    def activations_behind_image(self, resolution: int, head: Head, *, recompute: bool) -> Activations:
        """All but the image, which is a feature map in a hybrid."""
        tokens, width = self.tokens(resolution), self.width
        # The sum that runs through the blocks is in fp32 also where products are in bf16: what is learned of places, or
        # of the class or mask token, is added to it in fp32.
        sum_is_wide = self.pool == "token" or self.pos_embedding in ("1d", "2d") or head.patches > 0
        wide_layer = self._wide_layer_activations(tokens, sum_is_wide=sum_is_wide)
        inputs = self.depth * tokens * width
        blocks = inputs if recompute else self.layers * self._layer_activations(tokens)
        wide = inputs * sum_is_wide if recompute else self.layers * wide_layer
        if head.patches:
            # For each patch the place that its embedding is from (8 bytes) and two factors of it; for each corrupted
            # one its own place, its token, two statistics, and the token's norm; twice the number of the image.
            around = 4 * self.side(resolution) ** 2 + head.patches * (2 + 2 * width + 2) + 4
            wide += around - head.patches * width - 2 * self.side(resolution) ** 2
        else:
            statistics = 2 if self.pool == "token" else 2 * tokens
            around = tokens * width + statistics + width
            wide += (tokens * width + statistics) * sum_is_wide
        each = self.layers // self.depth
        return Activations(
            per_image=blocks + around + head.kept(),
            again=each * self._layer_activations(tokens) - tokens * width if recompute else 0,
            wide=wide,
            wide_again=each * wide_layer - tokens * width * sum_is_wide if recompute else 0,
            copies=self._product_weights(tokens, head, recompute=recompute),
        )

    def _product_weights(self, tokens: int, head: Head, *, recompute: bool) -> int:
        """Those of products outside the blocks, and unless they are computed again of the blocks, too."""
        distances = (2 * tokens - 1) * (self.width // self.heads) if self.pos_embedding == "relative" else 0
        block = 4 * self.width**2 + 2 * self.width * self.mlp + distances
        blocks = 0 if recompute else self.layers * block
        return self.patch**2 * self.channels * self.width + blocks + head.weights(self.width)

    def _layer_activations(self, tokens: int) -> int:
        """Input, its norm, queries, keys and values, what they mix to, the sum, its norm, both sides of the GELU;
        two statistics for each norm."""
        shared = 8 * self.width + 2 * self.mlp + 4
        if self.pos_embedding != "relative":
            return tokens * (shared + self.heads)
        # A learned bias keeps attention from being fused: its scores, its softmax and scaled copies are kept.
        return tokens * (shared + self.width + self.heads * (2 * tokens - 1 + tokens))

    def _wide_layer_activations(self, tokens: int, *, sum_is_wide: bool) -> int:
        """Of these, the input and the sum, with the statistics of their norms; and one number a query and head."""
        sums = (2 * self.width + 4) * sum_is_wide
        # Attention that is not fused works in fp32: on queries, keys and values, and in its softmax.
        attention = 3 * self.width + self.heads * tokens if self.pos_embedding == "relative" else self.heads
        return tokens * (sums + attention)


def size_of(name: str, sizes: Mapping[str, Mapping[str, Any]]) -> Size | None:
    """A size of the study's own, or one of the literature's."""
    if name in sizes and "width" in sizes[name]:
        own = sizes[name]
        return Size(own["width"], own["depth"], own["mlp"], own["heads"])
    return SIZES.get(name)


def parse(name: str, *, stem: str, sizes: Mapping[str, Mapping[str, Any]]) -> Arch | None:  # noqa: ARG001
    """`ViT-SIZE/PATCH`, or None where the name is another family's or its size is unknown."""
    match = NAME.fullmatch(name)
    size = size_of(match["size"], sizes) if match else None
    if match is None or size is None or int(match["patch"]) == 0:
        return None
    return Arch(width=size.width, depth=size.depth, mlp=size.mlp, heads=size.heads, patch=int(match["patch"]))


def names(sizes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names that `parse` knows, for suggestions and listings."""
    own = [size for size, numbers in sizes.items() if "width" in numbers]
    return [f"ViT-{size}/{patch}" for size in [*SIZES, *own] for patch in (4, 7, 14, 16, 32)]
