"""Masked patch prediction (arXiv 2010.11929, B.1.2): a ViT of which some patch embeddings are corrupted."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from vitscale.models.counts import Head
from vitscale.models.vit import net
from vitscale.models.vit.arch import Arch


class Net(net.Net):
    """Images to predictions of their corrupted patches, each from the patch's own token behind the last norm."""

    def __init__(
        self, arch: Arch, *, resolution: int, head: Head, dropout: float = 0.0, head_bias: float = 0.0
    ) -> None:
        super().__init__(arch, resolution=resolution, head=head, dropout=dropout, head_bias=head_bias)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, arch.width))  # starts as the class token does

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        places: Int64[Tensor, "batch corrupted"] | None = None,
        sources: Int64[Tensor, "batch patches"] | None = None,
        *,
        features_only: bool = False,
    ) -> Float[Tensor, "batch corrupted outputs"] | Float[Tensor, "batch features"]:
        """`places`: the patches to be predicted; `sources`: as of `corrupt`. Features are those of the whole image."""
        if features_only:
            return self.features(images)
        assert places is not None, "what is predicted is drawn by the caller"
        assert sources is not None, "and so is what it is replaced by"
        tokens = self.encoded(self.corrupt(self.embedded(images), sources))[:, self.class_token is not None :]
        return self.head(self.norm(taken(tokens, places)))

    def corrupt(
        self, patches: Float[Tensor, "batch patches width"], sources: Int64[Tensor, "batch patches"]
    ) -> Float[Tensor, "batch patches width"]:
        """At each place the embedding of the place that `sources` says, or where that is below 0 the mask token."""
        shown = (sources >= 0).to(patches.dtype)[:, :, None]
        return taken(patches, sources.clamp(min=0)) * shown + self.mask_token * (1 - shown)


def taken(
    x: Shaped[Tensor, "batch all size"], places: Int64[Tensor, "batch some"]
) -> Shaped[Tensor, "batch some size"]:
    """The rows of each image at its own places."""
    return x[torch.arange(len(x), device=x.device)[:, None], places]
