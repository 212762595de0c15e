"""Accuracy and loss of a network, and its features, over a set of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
"""Images that are read together, so that every reader has some; and the most that go through a network at once."""

FORWARD = 2e11
"""MACs that a processor does at once for a network that is not trained meanwhile: seconds of a single slow core."""

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


def images_at_once(macs: int) -> int:
    """Of a network whose training does not tell what is fine here, at so many MACs an image.

    A portion that took minutes would be deaf to a signal, and look to the watchdog like a run that stands still.
    """
    return CHUNK if group.device().type == "cuda" else min(max(int(FORWARD // macs), 1), CHUNK)


def in_turn(
    read: Callable[[Int64[np.ndarray, p]], tuple[np.ndarray, ...]],
    index: Int64[np.ndarray, n],
    size: int,
    stop: Stop,
    doing: str,
) -> Iterator[tuple[int, Sequence[np.ndarray]]]:
    """What is read of this device's share of `index`, at most `size` images at a time, in order; with it, how many
    images all devices have of this turn.

    All devices have equally many turns, the last ones perhaps without an image: at ZeRO stage 3 they give each other
    the weights for every forward pass. Before each turn the run moves and hears of a signal.

    Raises:
        Interrupted: a signal came; to whichever device, all leave before the same turn.
    """
    rank, devices = group.rank(), group.world_size()
    together = size * max(CHUNK // size, 1)
    portions = [index[start : start + together * devices] for start in range(0, len(index), together * devices)]
    with closing(Reader(lambda portion: read(portion[rank::devices]), portions, stop)) as reader:
        for portion in portions:
            found: tuple[np.ndarray, ...] | None = None
            for first in range(0, len(portion), size * devices):
                stop.at(doing, together=True)
                if stop.asked():
                    raise Interrupted
                found = found or reader.take()
                own = first // devices
                yield min(size * devices, len(portion) - first), [each[own : own + size] for each in found]


def chunks(
    images: AnyImages, index: Int64[np.ndarray, n], how: Preprocess, stop: Stop, size: int = CHUNK
) -> Iterator[tuple[Int64[np.ndarray, b], UInt8[np.ndarray, "b 3 r r"]]]:
    """This device's share of the readable images among `index`, by `in_turn`.

    Raises:
        Interrupted: as there.
    """

    def read(part: Int64[np.ndarray, p]) -> tuple[np.ndarray, ...]:
        if not len(part):  # the last portion has fewer images than devices
            return part, np.empty((0, 3, how.resolution, how.resolution), np.uint8), np.empty(0, np.float32)
        return part, *images.eval_batch(part, how)

    for _, (part, pixels, weights) in in_turn(read, index, size, stop, "measuring accuracy"):
        good = weights > 0
        yield part[good], pixels[good]


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
    device = group.device()

    def read(part: Int64[np.ndarray, p]) -> tuple[np.ndarray, ...]:
        if not len(part):  # the last portion may have fewer images than devices
            return (np.empty((0, 3, how.resolution, how.resolution), np.uint8),)
        return (readable(images, part, how),)

    parts = []
    for together, (pixels,) in in_turn(read, index, at_once, stop, "computing features"):
        found = features_of(to_device(torch.from_numpy(pixels), device)).float()
        parts.append(group.interleaved(found, together).double().cpu().numpy())
    return np.concatenate(parts)
