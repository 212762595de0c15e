"""Accuracy and loss of a network, and its features, over a set of images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from vitscale.config import Recipe
from vitscale.data.images import ArrayImages, Images
from vitscale.data.preprocess import Preprocess
from vitscale.errors import MISSING, VitscaleError
from vitscale.failures import Failure
from vitscale.train import group
from vitscale.train.objective import Network, per_image_loss, to_device
from vitscale.train.outcome import measured
from vitscale.train.reader import Reader
from vitscale.train.stop import Interrupted, Stop

CHUNK = 500
"""Images at once, unless no more than fewer fit in training."""

AnyImages = Images | ArrayImages


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    accuracy: float
    loss: float
    images: int

    @property
    def value(self) -> float:
        """What checkpoints and settings are chosen by; larger is better."""
        return self.accuracy

    def rows(self) -> list[dict[str, Any]]:
        """As results."""
        accuracy = measured({}, metric="accuracy", value=self.accuracy, n_test=self.images)
        return [accuracy, {"metric": "loss", "value": self.loss, "n_test": self.images}]


def chunks(
    images: AnyImages, index: Int64[np.ndarray, n], how: Preprocess, stop: Stop, size: int = CHUNK
) -> Iterator[tuple[Int64[np.ndarray, b], UInt8[np.ndarray, "b 3 r r"]]]:
    """This device's share of the readable images among `index`, at most `size` at a time, in order.

    All devices go round equally often: at ZeRO stage 3 they give each other the weights for every forward pass.

    Raises:
        Interrupted: a signal came.
    """
    rank, devices = group.rank(), group.world_size()
    starts = range(0, len(index), size * devices)
    parts = [index[start + rank : start + size * devices : devices] for start in starts]

    def read(part: Int64[np.ndarray, p]) -> tuple[Int64[np.ndarray, b], UInt8[np.ndarray, "b 3 r r"]]:
        if not len(part):  # the last round has fewer images than devices
            return part, np.empty((0, 3, how.resolution, how.resolution), np.uint8)
        pixels, weights = images.eval_batch(part, how)
        good = weights > 0
        return part[good], pixels[good]

    with closing(Reader(read, parts, stop)) as reader:
        for _ in parts:
            stop.at("measuring accuracy", together=True)
            if stop.asked():
                raise Interrupted
            yield reader.take()


@torch.no_grad()
def evaluate(
    network: Network,
    images: AnyImages,
    labels: Int64[np.ndarray, all],
    index: Int64[np.ndarray, n],
    *,
    how: Preprocess,
    recipe: Recipe,
    stop: Stop,
    at_once: int = CHUNK,
) -> Score:
    """Accuracy and loss of a network in evaluation mode over the images of `index`; unreadable ones do not count.

    Raises:
        Interrupted: a signal came.
    """
    device = group.device()

    def logits_of(pixels: Tensor) -> Float[Tensor, "batch classes"]:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            return network(to_device(pixels, device)).float()

    correct, loss, count = 0.0, 0.0, 0.0
    for part, pixels in chunks(images, index, how, stop, at_once):
        truth = torch.from_numpy(labels[part]).to(device)
        logits = logits_of(torch.from_numpy(pixels))
        correct += int((logits.argmax(dim=1) == truth).sum())
        loss += float(per_image_loss(logits, truth, recipe).sum())
        count += len(part)
    correct, loss, count = group.summed(correct, loss, count)
    return Score(accuracy=correct / max(count, 1), loss=loss / max(count, 1), images=int(count))


def readable(images: AnyImages, index: Int64[np.ndarray, b], how: Preprocess) -> UInt8[np.ndarray, "b 3 r r"]:
    """The images of `index`, of which none may be broken: a task's support sets and tests are the same for everybody.

    Raises:
        VitscaleError: one cannot be decoded (exit 5).
    """
    pixels, weights = images.eval_batch(index, how)
    if (weights == 0).any():
        first = int(index[weights == 0][0])
        where = (
            f"sample {str(images.shards.keys[first])!r} of {images.shards.shard(first)}"
            if isinstance(images, Images)
            else f"image {first}"
        )
        raise VitscaleError(
            f"{where}, of a downstream task, cannot be decoded",
            hint="a task is the same for everybody: mend it; vitscale data verify names all that is wrong",
            exit_code=MISSING,
            failure=Failure.BAD_DATA,
        )
    return pixels


@torch.no_grad()
def features(
    features_of: Network,
    images: AnyImages,
    index: Int64[np.ndarray, m],
    *,
    how: Preprocess,
    stop: Stop,
    at_once: int = CHUNK,
) -> Float64[np.ndarray, "m features"]:
    """Representations of the images of `index`, from the test-time preprocessing: all of them in every process.

    Raises:
        Interrupted: a signal came.
    """
    device, devices = group.device(), group.world_size()
    starts = range(0, len(index), at_once * devices)
    rounds = [index[start : start + at_once * devices] for start in starts]

    def read(together: Int64[np.ndarray, t]) -> UInt8[np.ndarray, "b 3 r r"]:
        own = together[group.rank() :: devices]
        if not len(own):  # the last round may have fewer images than devices
            return np.empty((0, 3, how.resolution, how.resolution), np.uint8)
        return readable(images, own, how)

    parts = []
    with closing(Reader(read, rounds, stop)) as reader:
        for together in rounds:
            stop.at("computing features", together=True)
            if stop.asked():
                raise Interrupted
            found = features_of(to_device(torch.from_numpy(reader.take()), device)).float()
            parts.append(group.interleaved(found, len(together)).double().cpu().numpy())
    return np.concatenate(parts)
