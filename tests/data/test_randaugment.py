from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from small_sets import photo
from vitscale.data.images import ArrayImages
from vitscale.data.preprocess import Preprocess
from vitscale.data.randaugment import DRAWS_A_LAYER, OPERATIONS, augment, draw

IMAGE = np.asarray(photo(0, 64, 64))
NAMES = ["AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast", "Brightness",
         "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout", "SolarizeAdd"]  # fmt: skip


def apply(name: str, magnitude: int, *, sign: float = 0.9, pixels: np.ndarray = IMAGE) -> np.ndarray:
    return augment(pixels, np.array([(NAMES.index(name) + 0.5) / 16, sign, 0.5, 0.5]), magnitude).astype(int)


def test_the_operations_are_the_published_ones() -> None:
    assert len(OPERATIONS) == len(NAMES)
    image = IMAGE.astype(int)
    np.testing.assert_array_equal(apply("Invert", 10), 255 - image)
    np.testing.assert_array_equal(apply("Posterize", 10), image & 0xF0)
    np.testing.assert_array_equal(apply("Solarize", 10), image)
    np.testing.assert_array_equal(apply("Solarize", 5), np.where(image < 128, image, 255 - image))
    np.testing.assert_array_equal(apply("SolarizeAdd", 10), np.where(image < 128, np.minimum(image + 110, 255), image))
    assert np.abs(apply("Brightness", 10) - np.minimum(1.9 * image, 255)).max() <= 1
    assert np.abs(apply("Color", 5) - image).max() <= 1
    assert np.abs(apply("Contrast", 5) - image).max() <= 1
    stretched = apply("AutoContrast", 10, pixels=IMAGE // 2)
    assert stretched.max() == 255
    brightness = [np.bincount(x[..., 0].ravel() // 32, minlength=8).std() for x in (apply("Equalize", 10), IMAGE)]
    assert brightness[0] < 0.5 * brightness[1]


def test_geometry_moves_pixels_either_way_and_fills_with_grey() -> None:
    shift = int(100 * 64 / 224)
    moved = apply("TranslateX", 10)
    np.testing.assert_array_equal(moved[:, : 63 - shift], IMAGE[:, shift + 1 :][:, : 63 - shift])
    assert (moved[:, -shift:] == 128).all()
    assert (apply("TranslateY", 10, sign=0.1)[:shift] == 128).all()
    for name in ("Rotate", "ShearX", "ShearY"):
        assert not np.array_equal(apply(name, 10), apply(name, 10, sign=0.1))
        assert 0.02 < (apply(name, 10) == 128).all(axis=2).mean() < 0.3
    turned = np.asarray(Image.fromarray(IMAGE).rotate(30, fillcolor=(128,) * 3))
    np.testing.assert_array_equal(apply("Rotate", 10), turned)
    hole = (apply("Cutout", 10) == 128).all(axis=2)
    pad = int(40 * 64 / 224)
    assert hole[32 - pad : 32 + pad, 32 - pad : 32 + pad].all()
    assert hole.sum() < 4 * pad**2 + 5


@pytest.mark.parametrize("magnitude", [0, 1, 10, 20, 30])
@pytest.mark.parametrize("name", NAMES)
def test_every_operation_takes_every_magnitude_and_size(name: str, magnitude: int) -> None:
    for side in (1, 8, 64):
        out = apply(name, magnitude, pixels=IMAGE[:side, :side].copy())
        assert out.shape == (side, side, 3)


def test_draws_are_uniform_and_a_sample_s_own() -> None:
    index = np.arange(8000)
    draws = draw(3, np.zeros_like(index), index, 2)
    assert draws.shape == (8000, 2 * DRAWS_A_LAYER)
    counts = np.bincount((draws[:, 0] * 16).astype(int), minlength=16)
    assert counts.min() > 400
    np.testing.assert_array_equal(draws[[5, 70]], draw(3, np.zeros(2, np.int64), np.array([5, 70]), 2))


def test_training_images_are_augmented_after_crop_and_flip_and_evaluation_is_not() -> None:
    images, index = ArrayImages(np.stack([np.asarray(photo(i, 40, 30)) for i in range(12)])), np.arange(12)
    plain = Preprocess(resolution=20, crop="inception", crop_area=0.4, flip=True)
    how = Preprocess(resolution=20, crop="inception", crop_area=0.4, flip=True, randaugment_layers=1)
    epoch = np.ones(12, dtype=np.int64)
    before, _ = images.train_batch(index, epoch, plain, seed=4)
    after, _ = images.train_batch(index, epoch, how, seed=4)
    draws = draw(4, epoch, index, 1)
    for b in range(12):
        square = np.ascontiguousarray(before[b].transpose(1, 2, 0))
        np.testing.assert_array_equal(after[b].transpose(1, 2, 0), augment(square, draws[b], 10))
    assert not np.array_equal(before, after)
    np.testing.assert_array_equal(images.eval_batch(index, how)[0], images.eval_batch(index, plain)[0])
