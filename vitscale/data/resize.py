"""A box of an image as a square, in the three ways that `data.resize` names."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitscale.data.preprocess import Box

Method = Literal["pillow", "torch", "bilinear"]


def resize(
    pixels: UInt8[np.ndarray, "h w 3"],
    resolution: int,
    box: Box,
    method: Method = "pillow",
) -> UInt8[np.ndarray, "r r 3"]:
    """`pillow` looks a little over the edges of the box, as antialiasing asks; the others end at its whole pixels."""
    if method == "pillow":
        square = Image.fromarray(pixels).resize((resolution, resolution), Image.Resampling.BILINEAR, box=box)
        return np.asarray(square)
    return _by_torch(_cut(pixels, box), resolution, antialias=method == "torch")


def lowest_row(box: Box, resolution: int, smaller: int = 1) -> int:
    """How many rows of an image `resize` may look at, where it was decoded at 1 / `smaller` of its size."""
    support = max((box[3] - box[1]) / resolution, smaller)
    return math.ceil(box[3] + support + smaller)


def whole_factor(box: Box, resolution: int) -> int:
    """The largest of 8, 4, 2 and 1 by which the box may be divided and is still as large as the square."""
    side = min(box[2] - box[0], box[3] - box[1])
    return next((factor for factor in (8, 4, 2) if side >= factor * resolution), 1)


def _cut(pixels: UInt8[np.ndarray, "h w 3"], box: Box) -> UInt8[np.ndarray, "a b 3"]:
    """The pixels nearest to the box, at least one."""
    height, width = pixels.shape[:2]
    left, upper = min(round(box[0]), width - 1), min(round(box[1]), height - 1)
    return pixels[upper : max(round(box[3]), upper + 1), left : max(round(box[2]), left + 1)]


def _by_torch(pixels: UInt8[np.ndarray, "h w 3"], resolution: int, *, antialias: bool) -> UInt8[np.ndarray, "r r 3"]:
    """Half-pixel centres; torch's kernel for bytes starts no threads, whatever their number is set to."""
    import torch  # packing and indexing do without it
    from torch.nn.functional import interpolate

    # A copy in one piece, turned: the strides of a channels-last image, for which the kernel is fast.
    image = torch.from_numpy(pixels.copy().reshape(1, *pixels.shape).transpose(0, 3, 1, 2))
    square = interpolate(image, (resolution, resolution), mode="bilinear", align_corners=False, antialias=antialias)
    out: np.ndarray = square.numpy()[0].transpose(1, 2, 0)
    return out
