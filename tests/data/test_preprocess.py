from __future__ import annotations

import numpy as np
import pytest

from vitscale.config import Data, Task
from vitscale.data.order import uniform
from vitscale.data.preprocess import DRAWS, InceptionCrops, Preprocess, center_box, preprocess


@pytest.mark.parametrize(("width", "height"), [(28, 28), (500, 375), (1, 1), (300, 2), (3, 200)])
def test_crops_have_the_area_and_ratio_that_were_asked_for(width: int, height: int) -> None:
    draws = uniform(0, np.zeros(4000, np.int64), np.arange(4000), DRAWS)
    crops = InceptionCrops(draws, 0.25)
    left, upper, right, lower = np.array([crops.box(b, width, height) for b in range(len(draws))]).T
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


def test_images_too_long_for_any_crop_give_their_centre() -> None:
    crops = InceptionCrops(uniform(0, np.zeros(50, np.int64), np.arange(50), DRAWS), 0.9)
    assert {crops.box(b, 400, 30) for b in range(50)} == {(180, 0, 220, 30)}
    assert {crops.box(b, 30, 401) for b in range(50)} == {(0, 180, 30, 220)}


def test_the_centre_is_what_torchvision_cuts_out_of_the_resized_image() -> None:
    # 500 x 375 becomes 341 x 256; from there 58 to 282 (half of 117 is rounded to the even number), 16 to 240.
    box = center_box(500, 375, 224, 0.875)
    assert box == pytest.approx((58 * 500 / 341, 16 * 375 / 256, 282 * 500 / 341, 240 * 375 / 256))
    assert center_box(375, 500, 224, 0.875) == pytest.approx((box[1], box[0], box[3], box[2]))
    assert center_box(64, 64, 32, 1.0) == (0, 0, 64, 64)


def test_a_run_s_data_and_a_task_say_how_their_images_are_seen() -> None:
    data = Data(resolution=28, randaugment_layers=2, crop_area=0.3, decode="scaled")
    assert preprocess(data, 28) == Preprocess(
        resolution=28, crop="inception", crop_area=0.3, flip=True, randaugment_layers=2, decode="scaled"
    )
    task = Task(name="t", version=1, source="digits", num_classes=10, flip=False, eval_crop="center", resize="bilinear")
    assert preprocess(task, 384) == Preprocess(
        resolution=384, crop="inception", crop_area=0.05, flip=False, eval_crop="center", resize="bilinear"
    )
