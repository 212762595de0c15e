from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from small_sets import photo, saved
from vitscale.data.decode import BadImage, Picture, decode, open_image, to_rgb
from vitscale.data.jpeg import read_frame


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(to_rgb(open_image(data)))


def odd_images() -> dict[str, bytes]:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    palette = Image.fromarray(grey).convert("P")
    return {
        "grey": saved(Image.fromarray(grey)),
        "16 bits": saved(Image.fromarray(grey.astype(np.uint16) * 257)),
        "transparent": saved(Image.fromarray(grey).convert("RGBA")),
        "palette": saved(palette, transparency=bytes(range(256))),
        "cmyk": saved(Image.fromarray(grey).convert("CMYK"), "JPEG"),
        "animated": saved(palette, "GIF", save_all=True, append_images=[palette.copy()]),
        "black and white": saved(Image.fromarray(grey).convert("1")),
        "one pixel": saved(Image.fromarray(grey[:1, :1])),
        "rotated": saved(
            Image.fromarray(grey[:8]),
            "JPEG",
            exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
        ),
    }


@pytest.mark.parametrize("name", odd_images())
def test_odd_images_become_rgb(name: str) -> None:
    pixels = decode(odd_images()[name])
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    if name in ("grey", "16 bits", "transparent"):
        np.testing.assert_array_equal(pixels[..., 0], np.arange(256).reshape(16, 16))
    if name == "rotated":
        assert pixels.shape == (8, 16, 3)


def claiming(png: bytes, width: int, height: int) -> bytes:
    """The same PNG with another size in its header, whose checksum is right."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


def jpeg_claiming(data: bytes, width: int, height: int) -> bytes:
    frame = read_frame(data)
    assert frame is not None
    at = frame.height_at
    return data[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 4 :]


def with_text(png: bytes, chunk: bytes) -> bytes:
    """The same PNG with a chunk of its own before the pixels."""
    framed = len(chunk).to_bytes(4, "big") + b"zTXt" + chunk + zlib.crc32(b"zTXt" + chunk).to_bytes(4, "big")
    return png[:33] + framed + png[33:]


GREY = saved(Image.new("L", (10, 10), 128))
JPEG = saved(photo(0), "JPEG", quality=90)
BROKEN = {
    "nothing": b"",
    "half a jpeg": JPEG[: len(JPEG) // 2],
    "half a png": saved(photo(0))[:20_000],
    "a png's bomb": claiming(GREY, 60_000, 60_000),
    "a jpeg's bomb": jpeg_claiming(JPEG, 60_000, 60_000),
    "a png that lies about its size": claiming(saved(photo(0)), 480, 360),
    "a jpeg that lies about its size": jpeg_claiming(JPEG[:-100], 12_000, 12_000),
    "a text that unpacks to 100 MB": with_text(GREY, b"a\0\0" + zlib.compress(bytes(100 << 20))),
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("rows", [1, 10_000])
def test_a_broken_file_is_bad_whatever_part_is_looked_at_and_takes_little_memory(name: str, rows: int) -> None:
    tracemalloc.start()
    with pytest.raises(BadImage):
        Picture(BROKEN[name]).rows(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_a_long_text_beside_the_pixels_does_no_harm() -> None:
    data = with_text(GREY, b"a\0\0" + zlib.compress(b"x" * 500_000))
    np.testing.assert_array_equal(decode(data), decode(GREY))


def animated(fmt: str) -> bytes:
    first, second = photo(1, 32, 32), photo(2, 32, 32)
    return saved(first, fmt, save_all=True, append_images=[second], **({"lossless": True} if fmt == "WEBP" else {}))


@pytest.mark.parametrize("fmt", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(fmt: str) -> None:
    np.testing.assert_array_equal(decode(animated(fmt)), np.asarray(photo(1, 32, 32)))


def jpegs() -> dict[str, bytes]:
    """One for each way of writing that libjpeg has a path of its own for."""
    image, grey = photo(3, 61, 187), photo(4, 61, 187).convert("L")
    pixels = np.asarray(image)
    return {
        **{f"{s}": simplejpeg.encode_jpeg(pixels, quality=91, colorsubsampling=s) for s in SUBSAMPLINGS},
        "grey": saved(grey, "JPEG"),
        "progressive": saved(image, "JPEG", progressive=True),
        "restarts": saved(image, "JPEG", restart_marker_blocks=5),
        "rgb": saved(image, "JPEG", keep_rgb=True),
        "cmyk": saved(image.convert("CMYK"), "JPEG"),
        "exif, icc and comment": saved(image, "JPEG", exif=Image.Exif(), icc_profile=bytes(99), comment=b"hello"),
        "coarse": saved(image, "JPEG", quality=5),
    }


SUBSAMPLINGS = ("444", "422", "420", "440", "411")


@pytest.mark.parametrize("name", jpegs())
def test_pixels_are_those_of_pillow_as_far_as_they_are_asked_for(name: str) -> None:
    data = jpegs()[name]
    whole = by_pillow(data)
    np.testing.assert_array_equal(decode(data), whole)
    for rows in range(1, len(whole) + 20):
        some = Picture(data).rows(rows)
        assert some.shape == whole.shape
        np.testing.assert_array_equal(some[:rows], whole[:rows])


@pytest.mark.parametrize("name", sorted(set(jpegs()) - {"cmyk", "progressive"}))
def test_rows_below_what_is_asked_for_are_not_decoded(name: str) -> None:
    assert not Picture(jpegs()[name]).rows(40)[60:].any()


@pytest.mark.parametrize("smaller", [2, 4, 8])
def test_scaled_decoding_is_close_to_the_mean_of_the_pixels(smaller: int) -> None:
    image = photo(5, 64 * smaller, 32 * smaller)
    data = saved(image, "JPEG", quality=95, subsampling=0)
    for rows in (8 * smaller, 32 * smaller):
        small = Picture(data).rows(rows, smaller=smaller, exact=False)
        assert small.shape == (32, 64, 3)
        means = np.asarray(image).astype(float).reshape(32, smaller, 64, smaller, 3).mean(axis=(1, 3))
        assert np.abs(small - means)[: rows // smaller].mean() < 3


@settings(max_examples=200, deadline=None)
@given(
    fmt=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
    rows=st.integers(1, 200),
)
def test_mutated_bytes_are_judged_and_decoded_as_pillow_does(
    fmt: str, changes: list[tuple[float, int]], kept: float, rows: int
) -> None:
    data = bytearray(MUTATED[fmt])
    for place, value in changes:
        data[int(place * len(data))] = value
    broken = bytes(data[: int(kept * len(data))])
    try:
        expected = by_pillow(broken)
    except BadImage:
        with pytest.raises(BadImage):
            Picture(broken).rows(rows)
        return
    np.testing.assert_array_equal(Picture(broken).rows(rows)[:rows], expected[:rows])


MUTATED = {fmt: saved(photo(6, 40, 90), fmt) for fmt in ("JPEG", "PNG", "WEBP")}
