from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from small_sets import photo, saved
from vitscale.data.decode import Picture
from vitscale.data.resize import lowest_row, resize, whole_factor

PIXELS = np.asarray(photo(0, 120, 90))
BOXES = [(0, 0, 120, 90), (10, 5, 50, 65), (3, 40, 118, 90), (7, 7, 8, 8), (20.25, 10.5, 99.75, 70.5)]
WHOLE_BOXES = BOXES[:4]
TASKS = Path("/proc/self/task")


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("resolution", [1, 16, 40, 200])
def test_no_row_below_the_lowest_one_matters(box: tuple[float, ...], resolution: int) -> None:
    blank = PIXELS.copy()
    blank[lowest_row(box, resolution) :] = 0
    for method in ("pillow", "torch", "bilinear"):
        whole = resize(PIXELS, resolution, box, method)
        np.testing.assert_array_equal(resize(blank, resolution, box, method), whole)


def test_a_jpeg_decoded_as_far_as_its_box_is_resized_as_the_whole_one_is() -> None:
    data = saved(photo(1, 75, 377), "JPEG", quality=92)  # so tall that Pillow takes its passes in another order
    whole = np.asarray(Image.open(io.BytesIO(data)))
    generator = np.random.default_rng(0)
    for _ in range(150):
        left, upper = (int(x) for x in generator.integers(0, (60, 340)))
        box = (left, upper, int(generator.integers(left + 1, 76)), int(generator.integers(upper + 1, 378)))
        for resolution in (8, 32, 224):
            expected = Image.fromarray(whole).resize((resolution, resolution), Image.Resampling.BILINEAR, box=box)
            rows = Picture(data).rows(lowest_row(box, resolution))
            np.testing.assert_array_equal(resize(rows, resolution, box), np.asarray(expected))


@pytest.mark.parametrize("box", WHOLE_BOXES)
@pytest.mark.parametrize("resolution", [16, 40, 200])
def test_torch_is_within_one_level_of_pillow_on_the_same_crop(box: tuple[int, ...], resolution: int) -> None:
    crop = Image.fromarray(PIXELS).crop(box)
    expected = np.asarray(crop.resize((resolution, resolution), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(resize(PIXELS, resolution, box, "torch") - expected).max() <= 1


@pytest.mark.parametrize("box", WHOLE_BOXES)
@pytest.mark.parametrize("resolution", [16, 40, 200])
def test_bilinear_interpolates_between_the_four_nearest_pixels(box: tuple[int, ...], resolution: int) -> None:
    """Half-pixel centres and no antialiasing: `tf.image.resize`."""
    left, upper, right, lower = box
    crop = torch.from_numpy(PIXELS[upper:lower, left:right].astype(np.float64)).permute(2, 0, 1)[None]
    exact = interpolate(crop, (resolution, resolution), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    assert np.abs(resize(PIXELS, resolution, box, "bilinear") - exact.numpy()).max() <= 1.01


@pytest.mark.parametrize(
    ("side", "factor"), [(10, 1), (31, 1), (32, 2), (63, 2), (64, 4), (127, 4), (128, 8), (5000, 8)]
)
def test_the_factor_leaves_the_box_as_large_as_the_square(side: int, factor: int) -> None:
    assert whole_factor((5, 0, 5 + side, 9_000), 16) == whole_factor((0, 3, 9_000, 3 + side), 16) == factor


def test_torch_s_kernel_starts_no_threads_of_its_own() -> None:
    pixels = np.asarray(photo(0, 2000, 1500))
    threads = torch.get_num_threads()
    torch.set_num_threads(4)  # which starts them for this thread, so another one has to ask

    def started() -> int:
        before = len(list(TASKS.iterdir()))
        resize(pixels, 1000, (0, 0, 2000, 1500), "torch")
        return len(list(TASKS.iterdir())) - before

    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(started).result() == 0
    finally:
        torch.set_num_threads(threads)
