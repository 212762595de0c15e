"""Images, labels and splits of a downstream task."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from vitscale.config import Task
from vitscale.data.dedup import ArrayPictures, Pictures, ShardPictures
from vitscale.data.images import ArrayImages, Images
from vitscale.data.order import key_hashes, stream, subset
from vitscale.data.shards import open_shards
from vitscale.errors import MISSING, VitscaleError
from vitscale.sampling import SUPPORT

# A task's splits and support sets are part of its definition: they never follow a run's seed.
TEST_SEED, DEV_SEED, SUPPORT_SEED = 1_797, 101, 2_101


@dataclass(frozen=True)
class Downstream:
    """What a transfer trains and is tested on."""

    task: Task
    train: ArrayImages | Images
    train_labels: Int64[np.ndarray, " train"]
    test: ArrayImages | Images
    test_labels: Int64[np.ndarray, " test"]

    def dev_split(self) -> tuple[Int64[np.ndarray, " t"], Int64[np.ndarray, " d"]]:
        """Training and dev indices into `train`, stratified by class and fixed; dev holds `task.dev_fraction` of it."""
        count = max(1, round(self.task.dev_fraction * len(self.train_labels)))
        dev = subset(_numbered(len(self.train_labels)), self.train_labels, examples=count, seed=DEV_SEED)
        return np.setdiff1d(np.arange(len(self.train_labels)), dev), dev


def load(task: Task) -> Downstream:
    """The task's data. Raises `VitscaleError` where it is missing or is not what the task file says."""
    down = _digits(task) if task.source == "digits" else _from_shards(task)
    _check(task, "train", down.train_labels, task.train_examples)
    _check(task, "test", down.test_labels, task.test_examples)
    return down


def test_pictures(task: Task) -> Pictures:
    """The images of its test split, to be compared with others."""
    if task.source == "shards":
        return ShardPictures(open_shards(task.test))
    test = load(task).test
    assert isinstance(test, ArrayImages)  # digits
    return ArrayPictures(test.pixels)


def _check(task: Task, split: str, labels: Int64[np.ndarray, " n"], expected: int) -> None:
    hint = f"correct the task file, or {split} data that is not the task's"
    if expected and len(labels) != expected:
        message = f"task {task.name!r}: {len(labels):,} {split} images, and its file says {expected:,}"
        raise VitscaleError(message, hint=hint, exit_code=MISSING)
    if int(labels.max(initial=0)) >= task.num_classes:
        message = (
            f"task {task.name!r}: label {labels.max()} in the {split} data is outside its {task.num_classes} classes"
        )
        raise VitscaleError(message, hint=hint, exit_code=MISSING)


def _digits(task: Task) -> Downstream:
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # the values are 0 to 16
    pixels = np.repeat(grey[..., None], 3, axis=3)
    test = subset(_numbered(len(labels)), labels, examples=task.test_examples, seed=TEST_SEED)
    train = np.setdiff1d(np.arange(len(labels)), test)
    return Downstream(task, ArrayImages(pixels[train]), labels[train], ArrayImages(pixels[test]), labels[test])


def _from_shards(task: Task) -> Downstream:
    train, test = open_shards(task.train), open_shards(task.test)
    for shards in (train, test):
        if shards.num_classes != task.num_classes:
            raise VitscaleError(
                f"{shards.location}: {shards.num_classes} classes, and task {task.name!r} says {task.num_classes}",
                hint="correct num_classes in the task file, or its folders",
                exit_code=MISSING,
            )
        if shards.problems:
            i, reason = min(shards.problems.items())
            raise VitscaleError(
                f"{shards.shard(i)}: sample {str(shards.keys[i])!r} of task {task.name!r}: {reason}",
                hint="a task is the same for everybody: mend it; vitscale data verify names all that is wrong",
                exit_code=MISSING,
            )
    return Downstream(task, Images(train), train.labels, Images(test), test.labels)


def support_sets(labels: Int64[np.ndarray, " n"], *, shots: int, draw: int) -> Int64[np.ndarray, " s"]:
    """Sorted indices of `shots` samples of each class: the same for every model, nested in `shots` within one draw."""
    values, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(counts) and counts.min() < shots:
        c = int(counts.argmin())
        raise VitscaleError(
            f"class {values[c]} has {counts[c]} training images, and {shots} shots were asked for",
            hint=f"ask for at most {counts[c]} shots",
            exit_code=MISSING,
        )
    order = np.lexsort((key_hashes(_numbered(len(labels)), stream(SUPPORT, SUPPORT_SEED, draw)), codes))
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[rank < shots])


def _numbered(count: int) -> np.ndarray:
    """Positions as keys."""
    return np.arange(count).astype(np.str_)
