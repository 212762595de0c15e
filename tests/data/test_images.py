from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from small_sets import class_folders, encoded, packed, photos, write_tar
from vitscale.data.decode import decode
from vitscale.data.images import ArrayImages, Images
from vitscale.data.pack import Plan, pack
from vitscale.data.preprocess import Preprocess
from vitscale.data.shards import Shards, open_shards
from vitscale.data.sources import open_source
from vitscale.errors import VitscaleError


def augmented(resolution: int) -> Preprocess:
    return Preprocess(resolution=resolution, crop="inception", crop_area=0.2, flip=True)


def zeros(index: np.ndarray) -> np.ndarray:
    return np.zeros(len(index), dtype=np.int64)


def test_pixels_do_not_depend_on_where_they_are_kept(tmp_path: Path) -> None:
    shards = open_shards(packed(tmp_path).folder)
    index = np.array([5, 0, 23, 5, 11])
    epoch = np.array([0, 0, 1, 1, 2])
    kept, fetched = Images(shards), Images(shards, memory_bytes=0)
    arrays = ArrayImages(np.stack([decode(shards.read(i)) for i in range(len(shards))]))
    for resolution in (8, 12, 100):
        batches = [x.train_batch(index, epoch, augmented(resolution), seed=3)[0] for x in (kept, fetched, arrays)]
        np.testing.assert_array_equal(batches[0], batches[1])
        np.testing.assert_array_equal(batches[0], batches[2])
        plain = [x.eval_batch(index, Preprocess(resolution=resolution))[0] for x in (kept, fetched, arrays)]
        np.testing.assert_array_equal(plain[0], plain[1])
        np.testing.assert_array_equal(plain[0], plain[2])


def test_images_of_several_sizes_are_kept_too_where_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {}
    for i in range(12):
        data = encoded(i, "JPEG" if i % 2 else "PNG", width=20 + 7 * i, height=60)
        members |= {f"{i}.{'jpg' if i % 2 else 'png'}": data, f"{i}.cls": b"0"}
    write_tar(tmp_path / "a.tar", members)
    shards, index = open_shards(tmp_path), np.arange(12)
    kept, some, fetched = (Images(shards, memory_bytes=size) for size in (2**20, 60 * 20 * 3 * 13, 0))
    expected = [fetched.train_batch(index, zeros(index) + epoch, augmented(16), seed=0)[0] for epoch in (0, 1)]
    reads: list[int] = []
    read = Shards.read
    monkeypatch.setattr(Shards, "read", lambda self, i: reads.append(i) or read(self, i))
    for images, most in ((kept, 12), (some, 24)):
        reads.clear()
        for epoch in (0, 1):
            pixels = images.train_batch(index, zeros(index) + epoch, augmented(16), seed=0)[0]
            np.testing.assert_array_equal(pixels, expected[epoch])
        assert len(reads) <= most + 1  # one is looked at first, for its size
    assert len(reads) > 13  # there was room for some only


def test_augmentation_belongs_to_seed_epoch_and_sample() -> None:
    images = ArrayImages(np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8))
    index = np.arange(50)
    whole, weights = images.train_batch(index, zeros(index), augmented(16), seed=3)
    part, _ = images.train_batch(index[20:30][::-1], zeros(index[:10]), augmented(16), seed=3)
    np.testing.assert_array_equal(whole[20:30][::-1], part)
    assert whole.shape == (50, 3, 16, 16)
    assert whole.flags.c_contiguous
    assert weights.dtype == np.float32
    assert weights.tolist() == [1.0] * 50
    other, _ = images.train_batch(index, zeros(index) + 1, augmented(16), seed=3)
    assert not np.array_equal(whole, other)


def test_whole_images_come_out_as_they_are_and_half_of_them_mirrored() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), dtype=np.uint8)
    images, index = ArrayImages(pixels), np.arange(400)
    plain, _ = images.train_batch(index, zeros(index), Preprocess(resolution=8, flip=False), seed=0)
    np.testing.assert_array_equal(plain, pixels.transpose(0, 3, 1, 2))
    flipped, _ = images.train_batch(index, zeros(index), Preprocess(resolution=8, flip=True), seed=0)
    mirrored = (flipped == plain[..., ::-1]).all(axis=(1, 2, 3))
    assert 150 < mirrored.sum() < 250
    np.testing.assert_array_equal(flipped[~mirrored], plain[~mirrored])


def test_a_batch_does_not_change_the_data_set() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    before, index = pixels.copy(), np.arange(20)
    batch, _ = ArrayImages(pixels).train_batch(index, zeros(index), Preprocess(resolution=8, flip=True), seed=0)
    batch[:] = 0
    np.testing.assert_array_equal(pixels, before)


def test_evaluation_is_pillows_bilinear_resize_to_a_square() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 30, 50, 3), dtype=np.uint8)
    batch, _ = ArrayImages(pixels).eval_batch(np.array([1]), Preprocess(resolution=20))
    expected = Image.fromarray(pixels[1]).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(batch[0].transpose(1, 2, 0), np.asarray(expected))


def test_a_bad_image_keeps_its_slot_with_weight_zero_and_is_told_of_once(tmp_path: Path) -> None:
    members = {}
    for i in range(10):
        members |= {f"{i}.png": encoded(i) if i != 4 else encoded(i)[:70], f"{i}.cls": b"0"}
    write_tar(tmp_path / "a.tar", members)
    told: list[tuple[str, str, str]] = []
    images = Images(open_shards(tmp_path), max_bad=0.1, on_bad=lambda *facts: told.append(facts))
    index = np.array([3, 4, 5, 4])
    for batch, weights in (
        images.train_batch(index, zeros(index), augmented(10), seed=3),
        images.eval_batch(index, Preprocess(resolution=10)),
    ):
        assert weights.tolist() == [1, 0, 1, 0]
        assert not batch[1].any()
        assert batch[0].any()
    assert [(Path(shard).name, key) for shard, key, _ in told] == [("a.tar", "4")]
    with pytest.raises(VitscaleError, match=r"a\.tar: sample '4' cannot be used .* 1 of 10 are too many") as error:
        Images(open_shards(tmp_path)).eval_batch(index, Preprocess(resolution=10))
    assert error.value.exit_code == 5


@pytest.mark.parametrize("memory_bytes", [0, 2 << 30])
def test_what_the_index_knows_to_be_bad_is_not_even_read(tmp_path: Path, memory_bytes: int) -> None:
    shards = open_shards(packed(tmp_path).folder)
    object.__setattr__(shards, "problems", {2: "no label"})
    told: list[str] = []
    images = Images(
        shards, memory_bytes=memory_bytes, max_bad=0.1, on_bad=lambda _, key, reason: told.append(f"{key}: {reason}")
    )
    for _ in range(2):
        batch, weights = images.eval_batch(np.array([1, 2]), Preprocess(resolution=10))
        assert weights.tolist() == [1, 0]
        assert not batch[1].any()
    assert told == [f"{shards.keys[2]}: no label"]


def test_bad_images_in_memory_are_counted_once(tmp_path: Path) -> None:
    done = packed(tmp_path)
    shards = open_shards(done.folder)
    shard, offset, size = (int(x) for x in shards.places[7])
    path = done.folder / shards.names[shard]
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = bytes(size)
    path.write_bytes(data)
    told: list[tuple[str, str]] = []
    images = Images(open_shards(done.folder), max_bad=0.05, on_bad=lambda _, key, reason: told.append((key, reason)))
    for _ in range(3):
        _, weights = images.eval_batch(np.array([6, 7]), Preprocess(resolution=12))
        assert weights.tolist() == [1, 0]
    assert told == [(shards.keys[7], "not an image")]


def test_only_what_is_asked_for_is_decoded(tmp_path: Path) -> None:
    images = class_folders(tmp_path / "in", per_class=30)
    pack(open_source(images), tmp_path / "out", Plan(name="a"))
    loaded = Images(open_shards(tmp_path / "out"))
    loaded.eval_batch(np.array([3, 4]), Preprocess(resolution=12))
    assert loaded._seen.sum() == 2


def test_the_number_of_workers_does_not_change_a_pixel(tmp_path: Path) -> None:
    shards = open_shards(photos(tmp_path, 12))
    index = np.arange(12)
    how = replace(augmented(40), randaugment_layers=2)
    batches = [Images(shards, workers=n).train_batch(index, zeros(index), how, seed=3) for n in (1, 2, 7)]
    for pixels, weights in batches[1:]:
        np.testing.assert_array_equal(pixels, batches[0][0])
        assert weights.tolist() == [1.0] * 12


def test_scaled_decoding_gives_nearly_the_same_image_wherever_it_is_kept(tmp_path: Path) -> None:
    shards = replace(open_shards(photos(tmp_path, 6)), image_size=(240, 180))
    index = np.arange(6)
    how = Preprocess(resolution=40, crop="inception", crop_area=0.5, resize="torch")
    full, _ = Images(shards).train_batch(index, zeros(index), how, seed=3)
    kept, fetched = (
        Images(shards, memory_bytes=size).train_batch(index, zeros(index), replace(how, decode="scaled"), seed=3)[0]
        for size in (0, 2 << 30)
    )
    np.testing.assert_array_equal(kept, fetched)
    difference = np.abs(kept.astype(int) - full.astype(int))
    assert 0.1 < difference.mean() < 4


def test_an_evaluation_in_the_centre_is_torchvision_s(tmp_path: Path) -> None:
    shards = open_shards(photos(tmp_path, 2))
    image = Image.fromarray(decode(shards.read(1)))
    assert image.size == (240, 180)
    small = image.resize((64, 48), Image.Resampling.BILINEAR).crop((11, 3, 53, 45))
    how = Preprocess(resolution=42, eval_crop="center")
    batch, _ = Images(shards).eval_batch(np.array([1]), how)
    difference = np.abs(batch[0].transpose(1, 2, 0).astype(int) - np.asarray(small).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_training_without_crop_ignores_how_images_are_evaluated() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 20, 30, 3), dtype=np.uint8)
    index, images = np.arange(4), ArrayImages(pixels)
    how = Preprocess(resolution=10, eval_crop="center")
    trained, _ = images.train_batch(index, zeros(index), how, seed=0)
    np.testing.assert_array_equal(trained, images.eval_batch(index, Preprocess(resolution=10))[0])
    assert not np.array_equal(trained, images.eval_batch(index, how)[0])


def test_packing_and_reading_load_no_torch() -> None:
    code = "import sys, vitscale.data.pack, vitscale.data.inspect, vitscale.data.images; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
