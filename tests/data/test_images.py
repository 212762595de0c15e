from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from small_sets import class_folders, encoded, packed, write_tar
from vitscale.data.decode import BadImage, decode
from vitscale.data.images import ArrayImages, Images, crop_boxes
from vitscale.data.order import uniform
from vitscale.data.pack import Plan, pack
from vitscale.data.shards import open_shards
from vitscale.data.sources import open_source
from vitscale.errors import VitscaleError

AUGMENTED = {"seed": 3, "crop": "inception", "crop_area": 0.2, "flip": True}


def zeros(index: np.ndarray) -> np.ndarray:
    return np.zeros(len(index), dtype=np.int64)


def test_pixels_do_not_depend_on_where_they_are_kept(tmp_path: Path) -> None:
    shards = open_shards(packed(tmp_path).folder)
    index = np.array([5, 0, 23, 5, 11])
    epoch = np.array([0, 0, 1, 1, 2])
    kept, fetched = Images(shards), Images(shards, memory_bytes=0)
    arrays = ArrayImages(np.stack([decode(shards.read(i)) for i in range(len(shards))]))
    for resolution in (8, 12, 100):
        batches = [x.train_batch(index, epoch, resolution=resolution, **AUGMENTED)[0] for x in (kept, fetched, arrays)]
        np.testing.assert_array_equal(batches[0], batches[1])
        np.testing.assert_array_equal(batches[0], batches[2])
        plain = [x.eval_batch(index, resolution=resolution)[0] for x in (kept, fetched, arrays)]
        np.testing.assert_array_equal(plain[0], plain[1])
        np.testing.assert_array_equal(plain[0], plain[2])


def test_augmentation_belongs_to_seed_epoch_and_sample() -> None:
    images = ArrayImages(np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8))
    index = np.arange(50)
    whole, weights = images.train_batch(index, zeros(index), resolution=16, **AUGMENTED)
    part, _ = images.train_batch(index[20:30][::-1], zeros(index[:10]), resolution=16, **AUGMENTED)
    np.testing.assert_array_equal(whole[20:30][::-1], part)
    assert whole.shape == (50, 3, 16, 16)
    assert whole.flags.c_contiguous
    assert weights.dtype == np.float32
    assert weights.tolist() == [1.0] * 50
    other, _ = images.train_batch(index, zeros(index) + 1, resolution=16, **AUGMENTED)
    assert not np.array_equal(whole, other)


def test_whole_images_come_out_as_they_are_and_half_of_them_mirrored() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), dtype=np.uint8)
    images, index = ArrayImages(pixels), np.arange(400)
    plain, _ = images.train_batch(index, zeros(index), seed=0, resolution=8, crop="none", crop_area=1.0, flip=False)
    np.testing.assert_array_equal(plain, pixels.transpose(0, 3, 1, 2))
    flipped, _ = images.train_batch(index, zeros(index), seed=0, resolution=8, crop="none", crop_area=1.0, flip=True)
    mirrored = (flipped == plain[..., ::-1]).all(axis=(1, 2, 3))
    assert 150 < mirrored.sum() < 250
    np.testing.assert_array_equal(flipped[~mirrored], plain[~mirrored])


def test_a_batch_does_not_change_the_data_set() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    before, index = pixels.copy(), np.arange(20)
    batch, _ = ArrayImages(pixels).train_batch(
        index, zeros(index), seed=0, resolution=8, crop="none", crop_area=1.0, flip=True
    )
    batch[:] = 0
    np.testing.assert_array_equal(pixels, before)


def test_evaluation_is_pillows_bilinear_resize_to_a_square() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 30, 50, 3), dtype=np.uint8)
    batch, _ = ArrayImages(pixels).eval_batch(np.array([1]), resolution=20)
    expected = Image.fromarray(pixels[1]).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(batch[0].transpose(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize(("width", "height"), [(28, 28), (500, 375), (1, 1), (300, 2), (3, 200)])
def test_crops_have_the_area_and_ratio_that_were_asked_for(width: int, height: int) -> None:
    draws = uniform(0, np.zeros(4000, np.int64), np.arange(4000), 23)
    left, upper, right, lower = crop_boxes(draws, width, height, 0.25).T
    assert (left >= 0).all()
    assert (upper >= 0).all()
    assert (right <= width).all()
    assert (lower <= height).all()
    assert (right > left).all()
    assert (lower > upper).all()
    if width == 500:
        share = (right - left) * (lower - upper) / (width * height)
        ratio = (right - left) / (lower - upper)
        assert 0.24 < share.min() < 0.27
        assert 0.9 < share.max() <= 1
        assert 0.74 < ratio.min() < 0.77
        assert 1.30 < ratio.max() < 1.35
        assert {int(left.min()), int(upper.min())} == {0}
        assert right.max() == width


def test_a_bad_image_keeps_its_slot_with_weight_zero(tmp_path: Path) -> None:
    members = {}
    for i in range(10):
        members |= {f"{i}.png": encoded(i) if i != 4 else encoded(i)[:70], f"{i}.cls": b"0"}
    write_tar(tmp_path / "a.tar", members)
    images = Images(open_shards(tmp_path), max_bad=0.1)
    index = np.array([3, 4, 5, 4])
    for batch, weights in (
        images.train_batch(index, zeros(index), resolution=10, **AUGMENTED),
        images.eval_batch(index, resolution=10),
    ):
        assert weights.tolist() == [1, 0, 1, 0]
        assert not batch[1].any()
        assert batch[0].any()
    assert [(Path(shard).name, key) for shard, key, _ in images.bad] == [("a.tar", "4")]
    with pytest.raises(VitscaleError, match=r"a\.tar: sample '4' cannot be decoded") as error:
        Images(open_shards(tmp_path)).eval_batch(index, resolution=10)
    assert error.value.exit_code == 5


def test_bad_images_in_memory_are_counted_once(tmp_path: Path) -> None:
    done = packed(tmp_path)
    shards = open_shards(done.folder)
    shard, offset, size = (int(x) for x in shards.places[7])
    path = done.folder / shards.names[shard]
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = bytes(size)
    path.write_bytes(data)
    images = Images(open_shards(done.folder), max_bad=0.05)
    for _ in range(3):
        _, weights = images.eval_batch(np.array([6, 7]), resolution=12)
        assert weights.tolist() == [1, 0]
    assert [(key, reason) for _, key, reason in images.bad] == [(shards.keys[7], "not an image")]


def test_only_what_is_asked_for_is_decoded(tmp_path: Path) -> None:
    images = class_folders(tmp_path / "in", per_class=30)
    pack(open_source(images), tmp_path / "out", Plan(name="a"))
    loaded = Images(open_shards(tmp_path / "out"))
    loaded.eval_batch(np.array([3, 4]), resolution=12)
    assert loaded._seen.sum() == 2


def saved(image: Image.Image, fmt: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=fmt, **options)  # type: ignore[arg-type]
    return out.getvalue()


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


def test_a_decompression_bomb_is_bad_before_it_is_decoded() -> None:
    png = bytearray(saved(Image.new("L", (10, 10))))
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    with pytest.raises(BadImage):
        decode(bytes(png))


def test_mutated_bytes_decode_or_are_bad() -> None:
    generator = np.random.default_rng(0)
    for fmt in ("JPEG", "PNG", "WEBP"):
        data = encoded(0, fmt)
        for _ in range(60):
            mutated = bytearray(data)
            for place in generator.integers(0, len(data), 3):
                mutated[place] = generator.integers(0, 256)
            with contextlib.suppress(BadImage):
                assert decode(bytes(mutated)).ndim == 3
