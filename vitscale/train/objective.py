"""What a step minimises: from a part of a batch to a loss for each of its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from vitscale.config import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrupted:
    """Which patches of each image are corrupted, and how: as `vitscale.data.masking.Corruption`."""

    places: Int64[Tensor, "batch corrupted"]
    sources: Int64[Tensor, "batch patches"]

    def part(self, part: slice) -> Corrupted:
        return Corrupted(places=self.places[part], sources=self.sources[part])


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """This device's part of the global batch of one step. `weights` is 0 where an image could not be read, else 1."""

    images: UInt8[Tensor, "batch 3 height width"]
    labels: Int64[Tensor, batch]
    weights: Float[Tensor, batch]
    share: float = 1.0
    """What each image keeps of itself; the rest is the next image of the global batch, after the last one the first.
    Below 1 the image that follows this part's last one stands behind it."""
    corrupted: Corrupted | None = None
    """Of masked patch prediction."""

    def pinned(self) -> Batch:
        """The batch in memory from which a GPU takes it while it computes; as it is where there is none."""
        if not torch.cuda.is_available():
            return self
        return replace(self, **{name: getattr(self, name).pin_memory() for name in ("images", "labels", "weights")})


Network = Callable[..., Tensor]
"""A network, or the engine around it."""

Objective = Callable[[Network, Batch, slice, torch.device], Tensor]
"""(network, batch, part, device) -> a loss for each image of that part of the batch."""


@dataclass(frozen=True, slots=True)
class Classification:
    """Softmax or sigmoid cross-entropy of the labels, with mixup where the batch has a share."""

    recipe: Recipe

    def __call__(self, net: Network, batch: Batch, part: slice, device: torch.device) -> Float[Tensor, batch]:
        if batch.share < 1:
            return self._mixed(net, batch, part, device)
        logits = net(to_device(batch.images[part], device))
        return per_image_loss(logits.float(), batch.labels[part].to(device, non_blocking=True), self.recipe)

    def _mixed(self, net: Network, batch: Batch, part: slice, device: torch.device) -> Float[Tensor, batch]:
        """Images and losses, each with those of the next position of the global batch."""
        following = slice(part.start + 1, part.stop + 1)
        # One that could not be read is black: what it follows stays as it is.
        share = torch.where(batch.weights[following] > 0, batch.share, 1.0).to(device)
        own, other = (to_device(batch.images[which], device) for which in (part, following))
        weight = share[:, None, None, None]
        logits = net(own.mul_(weight).add_(other.mul_(1 - weight))).float()
        one, two = (per_image_loss(logits, batch.labels[which].to(device), self.recipe) for which in (part, following))
        return share * one + (1 - share) * two


def per_image_loss(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, batch], recipe: Recipe
) -> Float[Tensor, batch]:
    """Cross-entropy of each image: softmax, or the sum of sigmoid terms over classes."""
    if recipe.loss == "softmax":
        return nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=recipe.label_smoothing)
    targets = nn.functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    targets = targets * (1 - recipe.label_smoothing) + recipe.label_smoothing / logits.shape[1]
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)


def to_device(
    images: UInt8[Tensor, "batch 3 height width"], device: torch.device
) -> Float[Tensor, "batch 3 height width"]:
    """Bytes to the device, and there to [-1, 1]."""
    return images.to(device, non_blocking=True).float().div_(127.5).sub_(1.0)
