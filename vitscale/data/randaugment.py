"""RandAugment (arXiv 1909.13719) with the operations and strengths of big_vision, which arXiv 2106.10270 used for ViTs.

That list, first of the TPU code for EfficientNet, holds 16 operations. It is kept with its quirks: posterize and
solarize are strongest at magnitude 0 and weakest at 10. What differs: translations and cutout, there 100 and 40 pixels
at 224, follow the resolution; posterize keeps 1 to 8 bits; contrast is measured against the image's own mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image, ImageEnhance, ImageOps

from vitscale.data.order import Indices, uniform
from vitscale.data.preprocess import DRAWS

DRAWS_A_LAYER = 4  # operation, sign, and the two coordinates of a cutout
GREY = (128, 128, 128)  # what comes in from outside of the image
PER_PIXEL = 1 / 224  # strengths in pixels are meant for this resolution


class Strength(NamedTuple):
    level: float
    """Magnitude / 10."""
    sign: float
    x: float
    y: float
    """A place in the image, 0 to 1."""


def draw(seed: int, epoch: Indices, sample: Indices, layers: int) -> Float64[np.ndarray, "b draws"]:
    """Numbers for `augment`; none of them is one that a crop or a flip is drawn by."""
    return uniform(seed, epoch, sample, DRAWS + DRAWS_A_LAYER * layers)[:, DRAWS:]


def augment(
    pixels: UInt8[np.ndarray, "r r 3"], draws: Float64[np.ndarray, " draws"], magnitude: int
) -> UInt8[np.ndarray, "r r 3"]:
    """The image after one operation for each four draws."""
    image = Image.fromarray(pixels)
    for which, sign, x, y in draws.reshape(-1, DRAWS_A_LAYER).tolist():
        operation = OPERATIONS[int(which * len(OPERATIONS))]
        image = operation(image, Strength(magnitude / 10, -1.0 if sign < 0.5 else 1.0, x, y))
    return np.asarray(image)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, s: kind(image).enhance(1.8 * s.level + 0.1)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=GREY)


def _rotate(image: Image.Image, s: Strength) -> Image.Image:
    return image.rotate(30 * s.level * s.sign, Image.Resampling.NEAREST, fillcolor=GREY)


def _shift(image: Image.Image, s: Strength) -> float:
    return 100 * s.level * s.sign * image.width * PER_PIXEL


def _cutout(image: Image.Image, s: Strength) -> Image.Image:
    """Twice the padding wide, around a pixel of the image."""
    pad = int(40 * s.level * image.width * PER_PIXEL)
    x, y = int(s.x * image.width), int(s.y * image.height)
    out = image.copy()
    out.paste(GREY, (max(x - pad, 0), max(y - pad, 0), x + pad, y + pad))
    return out


def _solarize_add(image: Image.Image, s: Strength) -> Image.Image:
    added = int(110 * s.level)
    return image.point([min(value + added, 255) if value < 128 else value for value in range(256)] * 3)


Operation = Callable[[Image.Image, Strength], Image.Image]
OPERATIONS: tuple[Operation, ...] = (
    lambda image, _: ImageOps.autocontrast(image),
    lambda image, _: ImageOps.equalize(image),
    lambda image, _: ImageOps.invert(image),
    _rotate,
    lambda image, s: ImageOps.posterize(image, min(max(int(4 * s.level), 1), 8)),
    lambda image, s: ImageOps.solarize(image, int(256 * s.level)),
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    lambda image, s: _affine(image, 1, 0.3 * s.level * s.sign, 0, 0, 1, 0),
    lambda image, s: _affine(image, 1, 0, 0, 0.3 * s.level * s.sign, 1, 0),
    lambda image, s: _affine(image, 1, 0, _shift(image, s), 0, 1, 0),
    lambda image, s: _affine(image, 1, 0, 0, 0, 1, _shift(image, s)),
    _cutout,
    _solarize_add,
)
