"""Masked patch prediction (arXiv 2010.11929, B.1.2): predict what some corrupted patches of an image looked like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vitscale.config import MaskedTarget, Recipe
from vitscale.data.images import Images
from vitscale.data.masking import corruption
from vitscale.data.preprocess import Preprocess
from vitscale.models.masked import COLOURS, SQUARES
from vitscale.models.vit.masked import taken
from vitscale.train import group
from vitscale.train.evaluate import chunks
from vitscale.train.objective import Batch, Corrupted, Network, to_device
from vitscale.train.stop import Stop

CHUNK = 50
"""Images that are evaluated at once: of 16 x 512 logits a corrupted patch, 160 MB at ViT-B/16 and 224 px."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedScore:
    """Means over the corrupted patches of all images; what is drawn for an image is the same at every evaluation."""

    loss: float
    images: int
    accuracy: float | None
    """Share of the colours that are predicted; None where pixels are."""
    accuracy_se: float | None
    """Its standard error over images."""

    @property
    def value(self) -> float:
        """What checkpoints and settings are chosen by; larger is better."""
        return -self.loss if self.accuracy is None else self.accuracy

    def rows(self) -> list[dict[str, Any]]:
        """As results; under no name that the accuracy or the loss of a classification has."""
        found: list[dict[str, Any]] = [{"metric": "patch_loss", "value": self.loss, "n_test": self.images}]
        if self.accuracy is not None:
            se = self.accuracy_se
            found.insert(0, {"metric": "patch_accuracy", "value": self.accuracy, "value_se": se, "n_test": self.images})
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedPatches:
    """The objective; `patch` is in pixels, `patches` are those of an image, `corrupted` that many of them."""

    target: MaskedTarget
    patch: int
    patches: int
    corrupted: int

    @property
    def score_name(self) -> str:
        return "negative_patch_loss" if self.target == "pixels" else "patch_accuracy"

    def draw(self, epoch: Int64[np.ndarray, b], sample: Int64[np.ndarray, b], *, seed: int | None) -> Corrupted:
        """What a batch carries of its corruption; without a seed that of evaluation."""
        drawn = corruption(epoch, sample, patches=self.patches, corrupted=self.corrupted, seed=seed)
        return Corrupted(places=torch.from_numpy(drawn.places), sources=torch.from_numpy(drawn.sources))

    def __call__(self, net: Network, batch: Batch, part: slice, device: torch.device) -> Float[Tensor, batch]:
        assert batch.corrupted is not None, "batches of this objective carry what is corrupted"
        predicted, wanted = self._predicted(net, batch.images[part], batch.corrupted.part(part), device)
        return per_image_loss(predicted, wanted)

    def _predicted(
        self, net: Network, images: UInt8[Tensor, "b 3 h w"], corrupted: Corrupted, device: torch.device
    ) -> tuple[Float[Tensor, "b corrupted outputs"], Tensor]:
        """Predictions of the corrupted patches and the truth about them, as of `targets`."""
        images, places = images.to(device), corrupted.places.to(device)
        predicted = net(to_device(images, device), places, corrupted.sources.to(device))
        return predicted.float(), taken(targets(images, self.patch, self.target), places)

    @torch.no_grad()
    def evaluate(
        self,
        network: Network,
        images: Images,
        index: Int64[np.ndarray, n],
        *,
        how: Preprocess,
        recipe: Recipe,
        stop: Stop,
        at_once: int = CHUNK,
    ) -> MaskedScore:
        """How well a network in evaluation mode does over the images of `index`; unreadable ones do not count.

        Raises:
            Interrupted: a signal came.
        """
        device = group.device()

        def predicted(pixels: Tensor, samples: Int64[np.ndarray, b]) -> tuple[Tensor, Tensor]:
            drawn = self.draw(np.zeros_like(samples), samples, seed=None)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                return self._predicted(network, pixels, drawn, device)

        loss, right, squares, count = 0.0, 0.0, 0.0, 0.0
        for part, pixels in chunks(images, index, how, stop, min(at_once, CHUNK)):
            found, wanted = predicted(torch.from_numpy(pixels), part)
            loss += float(per_image_loss(found, wanted).double().sum())
            if self.target != "pixels":
                share = per_image_accuracy(found, wanted)
                right, squares = right + float(share.sum()), squares + float(share.square().sum())
            count += len(part)
        loss, right, squares, count = group.summed(loss, right, squares, count)
        mean, mean_square = right / max(count, 1), squares / max(count, 1)
        told = self.target != "pixels"
        return MaskedScore(
            loss=loss / max(count, 1),
            images=int(count),
            accuracy=mean if told else None,
            accuracy_se=math.sqrt(max(mean_square - mean**2, 0.0) / max(count, 1)) if told else None,
        )


def targets(images: UInt8[Tensor, "b 3 h w"], patch: int, target: MaskedTarget) -> Tensor:
    """What is to be predicted of each patch, patches in the order of the network's tokens.

    Colours: [b, patches, squares], 0 to 511, the upper 3 bits of the mean of each of red, green and blue, which is
    rounded down; squares in rows. Pixels: [b, patches, 3 patch^2] in [-1, 1], channels first.
    """
    if target == "pixels":
        return _cut(to_device(images, images.device), patch)
    squares = SQUARES[target]
    side = patch // squares
    sums = images.unflatten(3, (-1, side)).unflatten(2, (-1, side)).sum(dim=(3, 5))  # exact: of bytes they are int64
    red, green, blue = (sums // (32 * side**2)).unbind(1)
    return _cut((64 * red + 8 * green + blue)[:, None], squares)


def _cut(
    images: Float[Tensor, "b channels h w"] | Int64[Tensor, "b channels h w"], side: int
) -> Float[Tensor, "b patches inside"] | Int64[Tensor, "b patches inside"]:
    """Squares of `side` x `side`, in rows, each flat."""
    cut = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def per_image_loss(predicted: Float[Tensor, "b corrupted outputs"], wanted: Tensor) -> Float[Tensor, b]:
    """Mean over an image's corrupted patches: cross-entropy of their colours, or squared difference of their pixels."""
    if wanted.is_floating_point():
        return F.mse_loss(predicted, wanted, reduction="none").mean(dim=(1, 2))
    logits = predicted.unflatten(2, (-1, COLOURS))
    losses = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none")
    return losses.view(wanted.shape).mean(dim=(1, 2))


def per_image_accuracy(
    predicted: Float[Tensor, "b corrupted outputs"], wanted: Int64[Tensor, "b corrupted squares"]
) -> Float[Tensor, b]:
    """Share of an image's colours that are predicted, in float64."""
    return (predicted.unflatten(2, (-1, COLOURS)).argmax(dim=3) == wanted).double().mean(dim=(1, 2))
