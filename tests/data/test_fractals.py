from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from vitscale.data.fractals import FILL, draw, fill_rate, find_classes, render, write
from vitscale.data.images import Images
from vitscale.data.order import stream
from vitscale.data.preprocess import Preprocess
from vitscale.data.shards import open_shards


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_bytes_whatever_the_number_of_workers(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 4)):
        write(tmp_path / name, classes=6, per_class=30, resolution=24, seed=5, workers=workers)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    shards = open_shards(tmp_path / "one")
    assert len(shards) == 180
    assert np.bincount(shards.labels).tolist() == [30] * 6
    pixels, weights = Images(shards).eval_batch(np.arange(180), Preprocess(resolution=24))
    assert weights.all()
    assert (pixels.max(axis=(1, 2, 3)) > 100).all()
    assert len({image.tobytes() for image in pixels}) == 180


def test_an_image_does_not_depend_on_its_company() -> None:
    systems = find_classes(5, seed=0, side=72)
    label, instance = np.array([0, 3, 4, 3]), np.array([0, 1, 7, 2])
    together = render(systems, label, instance, seed=0, resolution=24)
    for i in range(4):
        alone = render(systems, label[i : i + 1], instance[i : i + 1], seed=0, resolution=24)
        np.testing.assert_array_equal(together[i], alone[0])


def test_smaller_sets_lie_inside_larger_ones(tmp_path: Path) -> None:
    images = {}
    for name, classes, per_class in (("small", 2, 3), ("large", 4, 6)):
        write(tmp_path / name, classes=classes, per_class=per_class, resolution=16, seed=0)
        shards = open_shards(tmp_path / name)
        images[name] = {str(key): shards.read(i) for i, key in enumerate(shards.keys)}
    assert images["small"].items() <= images["large"].items()


def test_seeds_and_resolutions_are_other_data_sets(tmp_path: Path) -> None:
    prints = set()
    for seed, resolution in ((0, 16), (1, 16), (0, 20)):
        done = write(tmp_path / f"{seed}-{resolution}", classes=2, per_class=2, resolution=resolution, seed=seed)
        prints.add(done.description["fingerprint"])
    assert len(prints) == 3


def test_classes_fill_the_picture_and_can_be_told_apart() -> None:
    systems = find_classes(20, seed=0, side=96)
    pictures = draw(systems, np.arange(20, dtype=np.uint64) + stream(1), 96)
    assert (fill_rate(pictures) > 0.9 * FILL).all()
    label, instance = np.repeat(np.arange(20), 20), np.tile(np.arange(20), 20)
    images = render(systems, label, instance, seed=0, resolution=32).reshape(400, -1).astype(np.float64)
    # Nearest class mean over mirrored images: far from chance (5 %), though only pixels are compared.
    train, test = instance < 15, instance >= 15
    means = np.stack([images[train & (label == c)].mean(axis=0) for c in range(20)])
    nearest = ((images[test][:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == label[test]).mean() > 0.4


def test_rate_at_32_pixels(tmp_path: Path) -> None:
    write(tmp_path / "warm", classes=1, per_class=1, resolution=32, seed=0)  # loads webdataset
    start = time.process_time()
    write(tmp_path / "set", classes=50, per_class=20, resolution=32, seed=0)
    assert 1000 / (time.process_time() - start) > 250, "images per second of processor time; 500/s on two cores"
