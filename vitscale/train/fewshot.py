"""Few-shot transfer: ridge regression in closed form on frozen features, as big_vision does it."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from jaxtyping import Float64, Int64

from vitscale.config import Task
from vitscale.data.downstream import Downstream, support_sets
from vitscale.train.stop import Stop

BIAS = 100.0
"""The constant feature: so large that the ridge hardly touches its weight."""


def ridge_accuracy(
    support: Float64[np.ndarray, "s features"],
    support_labels: Int64[np.ndarray, s],
    test: Float64[np.ndarray, "t features"],
    test_labels: Int64[np.ndarray, t],
    *,
    num_classes: int,
    ridge: float,
) -> float:
    """Share of test images whose largest output is their class.

    Features are standardised by the support set, one constant is added, and the targets are -1, and 1 for the class.
    """
    mean, std = support.mean(axis=0), support.std(axis=0) + 1e-5

    def prepared(x: Float64[np.ndarray, "n features"]) -> Float64[np.ndarray, "n features_and_bias"]:
        return np.pad((x - mean) / std, ((0, 0), (0, 1)), constant_values=BIAS)

    x = prepared(support)
    targets = np.where(support_labels[:, None] == np.arange(num_classes), 1.0, -1.0)
    if len(x) < x.shape[1]:
        # The dual form: a system of the size of the support set.
        weights = x.T @ scipy.linalg.solve(x @ x.T + ridge * np.eye(len(x)), targets, assume_a="pos")
    else:
        weights = scipy.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ targets, assume_a="pos")
    return float(((prepared(test) @ weights).argmax(axis=1) == test_labels).mean())


def few_shot(
    train: Float64[np.ndarray, "n features"],
    test: Float64[np.ndarray, "t features"],
    data: Downstream,
    task: Task,
    shots: tuple[int, ...],
    stop: Stop,
) -> list[tuple[int, int, float]]:
    """(shots, draw, accuracy) for every number of shots and every draw of the support set.

    Raises:
        Interrupted: a signal came.
    """
    rows = []
    for shot in shots:
        for draw in range(task.draws):
            stop.at("solving few-shot regressions")
            stop.raise_if_requested()
            chosen = support_sets(data.train_labels, shots=shot, draw=draw)
            accuracy = ridge_accuracy(
                train[chosen],
                data.train_labels[chosen],
                test,
                data.test_labels,
                num_classes=task.num_classes,
                ridge=task.ridge,
            )
            rows.append((shot, draw, accuracy))
    return rows
