from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vitscale.data.dedup import ArrayPictures, HashedImages, correlations, near_duplicates, perceptual_hashes


def scene(seed: int, side: int = 64) -> np.ndarray:
    """A picture with structure at all scales, as photographs have."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize(
                (side, side), Image.Resampling.BICUBIC
            ),
            np.float64,
        )
        for n in (3, 6, 12, 24)
    ]
    weights = np.array([8.0, 4, 2, 1])
    return np.tensordot(weights / weights.sum(), layers, 1).astype(np.uint8)


def scenes(seeds: range) -> np.ndarray:
    return np.stack([scene(seed) for seed in seeds])


def recompressed(pixels: np.ndarray) -> np.ndarray:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="JPEG", quality=40)
    return np.asarray(Image.open(out))


def resized(pixels: np.ndarray) -> np.ndarray:
    small = Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC))


def brighter(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels.astype(int) * 1.1 + 8, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("change", [recompressed, resized, brighter, lambda p: p[:, ::-1], lambda p: p])
def test_copies_are_found_and_nothing_else(change: object) -> None:
    test = scenes(range(40))
    train = scenes(range(1000, 1200))
    for place, of in ((3, 7), (77, 0), (199, 39)):
        train[place] = change(test[of])  # type: ignore[operator]
    found = near_duplicates(ArrayPictures(train), HashedImages.of([ArrayPictures(test)]))
    assert [(match.image, match.of) for match in found] == [(3, 7), (77, 0), (199, 39)]
    assert all(match.correlation >= 0.99 and match.distance <= 10 for match in found)


def test_several_test_sets_are_numbered_through() -> None:
    tests = HashedImages.of([ArrayPictures(scenes(range(5))), ArrayPictures(scenes(range(5, 9)))])
    found = near_duplicates(ArrayPictures(scenes(range(6, 7))), tests)
    assert [match.of for match in found] == [6]


def test_flat_pictures_match_equally_bright_ones_only() -> None:
    flat = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (0, 128)])
    found = near_duplicates(
        ArrayPictures(flat), HashedImages.of([ArrayPictures(flat[:1]), ArrayPictures(scenes(range(3)))])
    )
    assert [(match.image, match.of) for match in found] == [(0, 0)]


def test_correlation_is_pearson_s() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (32, 32), dtype=np.uint8), rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)
    expected = [np.corrcoef(a.ravel(), other.ravel())[0, 1] for other in b]
    np.testing.assert_allclose(correlations(a, b), expected, atol=1e-5)


def test_a_hash_is_that_of_the_frequencies_and_ignores_contrast() -> None:
    thumb = np.asarray(Image.fromarray(scene(5)).convert("L").resize((32, 32)))[None]
    halved = (thumb // 2 + 40).astype(np.uint8)
    assert int(np.bitwise_count(perceptual_hashes(thumb) ^ perceptual_hashes(halved))[0]) <= 4
    assert int(np.bitwise_count(perceptual_hashes(thumb))[0]) == 32


def test_unreadable_pictures_are_passed_over() -> None:
    class Broken(ArrayPictures):
        def picture(self, i: int) -> np.ndarray | None:  # type: ignore[override]
            return None if i == 1 else super().picture(i)

    pictures = scenes(range(3))
    found = near_duplicates(Broken(pictures), HashedImages.of([Broken(pictures)]))
    assert [(match.image, match.of) for match in found] == [(0, 0), (2, 2)]
