"""Few-shot regression beside scikit-learn's, and the pixel baseline."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from vitscale.data import downstream
from vitscale.data.preprocess import preprocess
from vitscale.study.datasets import load_task
from vitscale.train.fewshot import few_shot, ridge_accuracy
from vitscale.train.finetune import raw_pixels
from vitscale.train.stop import Stop


@pytest.mark.parametrize(("count", "width"), [(12, 40), (200, 40)])
def test_both_forms_equal_scikit_learn_s_ridge(count: int, width: int) -> None:
    generator = np.random.default_rng(count)
    centres = generator.normal(size=(4, width))
    # Unequal classes: with equal ones the constant feature moves all outputs alike.
    labels, test_labels = np.arange(count) % 10 // 3, np.arange(800) % 4
    x = centres[labels] + generator.normal(size=(count, width))
    test = centres[test_labels] + 2 * generator.normal(size=(800, width))
    mean, std = x.mean(0), x.std(0) + 1e-5
    design = np.column_stack([(x - mean) / std, np.full(count, 100.0)])
    model = Ridge(alpha=16.0, fit_intercept=False).fit(design, 2.0 * np.eye(4)[labels] - 1)
    outputs = model.predict(np.column_stack([(test - mean) / std, np.full(800, 100.0)]))
    expected = (outputs.argmax(1) == test_labels).mean()
    assert 0.3 < expected < 1.0
    got = ridge_accuracy(x, labels, test, test_labels, num_classes=4, ridge=16.0)
    assert got == pytest.approx(expected)


def test_raw_pixels_of_digits_give_a_baseline_that_rises_with_shots() -> None:
    task = load_task("digits", base=Path())
    data = downstream.load(task)
    how = preprocess(task, 28)
    rows = few_shot(raw_pixels(data.train, how), raw_pixels(data.test, how), data, task, (1, 5, 10), Stop())
    assert len(rows) == 3 * 20
    means = [float(np.mean([a for shots, _, a in rows if shots == wanted])) for wanted in (1, 5, 10)]
    assert 0.45 < means[0] < means[1] < means[2] < 0.92
    assert means[1] > 0.74
    assert means[2] > 0.80
    spread = float(np.std([a for shots, _, a in rows if shots == 1]))
    assert 0.02 < spread < 0.10  # draws of one image a class differ by some points
