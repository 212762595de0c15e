"""Bytes of an image file to pixels, and what can be wrong with them."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MAX_PIXELS = 178_956_970  # a billion bytes as RGB and more is a bomb, not a picture; twice Pillow's own warning


class BadImage(Exception):  # noqa: N818
    """An image that cannot be used; the message is the reason."""


def open_image(data: bytes) -> Image.Image:
    """The decoded picture in its own mode. Raises `BadImage` for anything that is not a whole picture."""
    if not data:
        raise BadImage("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"{image.width} x {image.height} pixels are too many")
        image.load()
    except BadImage:
        raise
    except Exception as error:  # what Pillow's plug-ins raise on broken bytes has no common base
        raise BadImage(_reason(error)) from error
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB with 8 bits a channel: transparency is dropped, 16-bit grey keeps its upper byte, EXIF is ignored."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(np.clip(np.asarray(image), 0, 255).astype(np.uint8))
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def decode(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of an encoded image as RGB. Raises `BadImage`."""
    image = open_image(data)
    try:
        return np.asarray(to_rgb(image))
    except Exception as error:
        raise BadImage(_reason(error)) from error


def encode_png(pixels: UInt8[np.ndarray, " ..."] | Image.Image) -> bytes:
    """The same bytes for the same pixels and Pillow."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()
