"""Which part of an image is looked at, by published recipes: boxes in the pixels of the encoded image."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from jaxtyping import Float64

from vitscale.config import Data, Task

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge, in pixels of the encoded image."""

TRIES = 10  # random boxes tried before the centre is taken, as in timm and torchvision
RATIO = (3 / 4, 4 / 3)
DRAWS = 1 + 2 + 2 * TRIES  # flip; x and y of the box; area and ratio of each try


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How an encoded image becomes a square of `resolution` pixels; `config.Data` says what the fields mean."""

    resolution: int
    crop: Literal["none", "inception"] = "none"
    crop_area: float = 1.0
    flip: bool = False
    randaugment_layers: int = 0
    randaugment_magnitude: int = 10
    eval_crop: Literal["none", "center"] = "none"
    eval_crop_ratio: float = 0.875
    decode: Literal["full", "scaled"] = "full"
    resize: Literal["pillow", "torch", "bilinear"] = "pillow"


def preprocess(settings: Data | Task, resolution: int) -> Preprocess:
    """The settings of an upstream data set or of a task; what a task has no field for keeps its default."""
    named = {f.name: getattr(settings, f.name) for f in fields(Preprocess) if hasattr(settings, f.name)}
    return Preprocess(**{**named, "resolution": resolution})


class InceptionCrops:
    """Random crops of the images of a batch (arXiv 1409.4842, as timm's RandomResizedCrop).

    The first of ten boxes, of `crop_area` to 1 of the area and ratio 3/4 to 4/3, that fits; else the largest centred
    box whose ratio is in the range.
    """

    def __init__(self, draws: Float64[np.ndarray, "b draws"], crop_area: float) -> None:
        low, high = np.log(RATIO[0]), np.log(RATIO[1])
        shares = crop_area + (1 - crop_area) * draws[:, 3 : 3 + TRIES]
        ratios = np.exp(low + (high - low) * draws[:, 3 + TRIES : DRAWS])
        self._places: list[list[float]] = draws[:, 1:3].tolist()
        self._tries: list[list[list[float]]] = np.stack([shares, ratios], axis=2).tolist()

    def part(self, part: slice) -> InceptionCrops:
        """Those of these images."""
        found = copy(self)
        found._places, found._tries = self._places[part], self._tries[part]
        return found

    def box(self, b: int, width: int, height: int) -> Box:
        """Of image `b`, in whole pixels. One image at a time, as each has a size of its own."""
        x, y = self._places[b]
        for share, ratio in self._tries[b]:
            area = width * height * share
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, upper = math.floor(x * (width - w + 1)), math.floor(y * (height - h + 1))
                return left, upper, left + w, upper + h
        w = min(width, max(1, round(height * RATIO[1])))
        h = min(height, max(1, round(width / RATIO[0])))
        left, upper = (width - w) // 2, (height - h) // 2
        return left, upper, left + w, upper + h


def center_box(width: int, height: int, resolution: int, ratio: float) -> Box:
    """What is left of a width x height image by torchvision's Resize(resolution / ratio) and CenterCrop(resolution).

    In the image's own pixels, so that the two steps are one resize of this box; the edges are no whole numbers.
    """
    short = int(resolution / ratio)
    long = int(short * max(width, height) / min(width, height))
    w, h = (short, long) if width <= height else (long, short)
    left, upper = round((w - resolution) / 2), round((h - resolution) / 2)
    return left * width / w, upper * height / h, (left + resolution) * width / w, (upper + resolution) * height / h
