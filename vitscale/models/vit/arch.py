"""Vision Transformers by name: sizes, parameters, multiply-adds; no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vitscale.models.counts import Counting, Head, Macs, Params


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

    @property
    def ratio(self) -> int:
        """Pixels of the input along one side of a token."""
        return self.patch

    @property
    def feature_width(self) -> int:
        """Numbers in the representation that the head sees."""
        return self.width

    def problems(self, resolution: int) -> list[str]:
        """Why no such network can be built for square images of `resolution` pixels."""
        found = []
        if self.width % self.heads:
            found.append(f"{self.heads} heads do not divide width {self.width}")
        if resolution % self.ratio or resolution < self.ratio:
            found.append(f"patch {self.ratio} does not divide resolution {resolution}")
        return found

    def tokens(self, resolution: int) -> int:
        """Sequence length, class token included."""
        return (resolution // self.patch) ** 2 + 1

    def params(self, resolution: int, head: Head) -> Params:
        width, mlp = self.width, self.mlp
        patches = self.patch**2 * self.channels * width + width
        attention = 4 * (width * width + width)
        dense = width * mlp + mlp + mlp * width + width
        norms = 4 * width
        return Params(
            embedding=patches + width + self.tokens(resolution) * width,
            blocks=self.depth * (attention + dense + norms) + 2 * width,
            head=head.params(width),
        )

    def macs(self, resolution: int, head: Head, counting: Counting = "dense") -> Macs:  # noqa: ARG002  # no padding
        tokens, width = self.tokens(resolution), self.width
        return Macs(
            patch_embedding=(tokens - 1) * self.patch**2 * self.channels * width,
            projections=self.depth * tokens * 4 * width * width,
            attention=self.depth * 2 * tokens * tokens * width,
            mlp=self.depth * tokens * 2 * width * self.mlp,
            head=head.macs(width),
        )


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
