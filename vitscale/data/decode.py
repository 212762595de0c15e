"""Bytes of an image file to pixels, and what can be wrong with them."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitscale.data.jpeg import decode_jpeg, read_frame

PROGRAMS = ("EPS", "WMF")  # Pillow hands them to an interpreter
MAX_PIXELS = 178_956_970  # half a gigabyte as RGB; more is a bomb, not a picture; twice Pillow's own warning


class BadImage(Exception):  # noqa: N818
    """An image that cannot be used; the message is the reason."""


class Picture:
    """An image file whose header was read; its pixels are decoded when they are asked for."""

    def __init__(self, data: bytes) -> None:
        """Raises `BadImage` for what is no image, or one that is too large; no pixels are allocated."""
        self._data = data
        self._image: Image.Image | None = None
        self._frame = read_frame(data)
        if self._frame is not None and self._frame.plain:
            self.width, self.height = self._frame.width, self._frame.height
            _check_size(self.width, self.height)
            return
        self._image = open_header(data)
        self.width, self.height = self._image.size
        if self._image.format != "JPEG":
            self._frame = None

    def rows(self, count: int, *, smaller: int = 1, exact: bool = True) -> UInt8[np.ndarray, "h w 3"]:
        """The picture as RGB, of which only the first `count` rows may be filled.

        A JPEG may come at 1 / `smaller` (2, 4 or 8) of its size, or not `exact`, with less smooth colours.
        Raises `BadImage`, whichever rows of the file are broken.
        """
        if self._frame is not None:
            pixels = decode_jpeg(self._data, self._frame, rows=count, smaller=smaller, exact=exact)
            if pixels is not None:
                return pixels
        image = _load(self._image or open_header(self._data))
        try:
            return np.asarray(to_rgb(image))
        except Exception as error:
            raise BadImage(_reason(error)) from error


def open_image(data: bytes) -> Image.Image:
    """The decoded picture in its own mode. Raises `BadImage` for anything that is not a whole picture."""
    return _load(open_header(data))


def open_header(data: bytes) -> Image.Image:
    """Size, mode and format; no pixels yet. Raises `BadImage`."""
    if not data:
        raise BadImage("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:  # what Pillow's plug-ins raise on broken bytes has no common base
        raise BadImage(_reason(error)) from error
    _check_size(*image.size)
    if image.format in PROGRAMS:
        raise BadImage(f"{image.format} files are programs, not pixels")
    return image


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels are too many")


def _load(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except Exception as error:
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
    picture = Picture(data)
    return picture.rows(picture.height)


def encode_png(pixels: UInt8[np.ndarray, " ..."] | Image.Image) -> bytes:
    """The same bytes for the same pixels and Pillow."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()
