from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import vitscale.data
from small_sets import encoded, packed, write_tar
from vitscale.config import Task
from vitscale.data.downstream import load, support_sets
from vitscale.data.preprocess import Preprocess
from vitscale.errors import VitscaleError

TASKS = sorted((Path(vitscale.data.__file__).parent / "tasks").glob("*.toml"))


def digits() -> Task:
    return Task(**tomllib.loads((TASKS[0].parent / "digits.toml").read_text()))


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_task_files_hold_the_fields_of_a_task_and_their_licence(path: Path) -> None:
    task = Task(**tomllib.loads(path.read_text()))
    assert task.name == path.stem
    assert task.licence
    assert task.about


def test_digits_are_scikit_learns_in_a_fixed_split() -> None:
    task = load(digits())
    assert len(task.train) == len(task.train_labels) == 1000
    assert len(task.test) == len(task.test_labels) == 797
    assert set(np.bincount(task.test_labels).tolist()) <= {77, 78, 79, 80, 81}
    pixels, weights = task.test.eval_batch(np.arange(797), Preprocess(resolution=8))
    train, _ = task.train.eval_batch(np.arange(1000), Preprocess(resolution=8))
    assert weights.all()
    both = np.concatenate([pixels, train])
    expected = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, both[:, 0])) == sorted(map(bytes, expected))
    np.testing.assert_array_equal(both[:, 0], both[:, 2])
    again = load(digits())
    np.testing.assert_array_equal(again.test_labels, task.test_labels)
    np.testing.assert_array_equal(task.test_labels[:8], [1, 5, 9, 2, 3, 6, 7, 8])


def test_dev_split_is_fixed_stratified_and_disjoint() -> None:
    task = load(digits())
    train, dev = task.dev_split()
    assert sorted([*train.tolist(), *dev.tolist()]) == list(range(1000))
    assert len(dev) == 100
    assert set(np.bincount(task.train_labels[dev]).tolist()) <= {9, 10, 11}
    np.testing.assert_array_equal(dev, load(digits()).dev_split()[1])


def test_support_sets_nest_in_shots_and_differ_between_draws() -> None:
    labels = load(digits()).train_labels
    for draw in range(20):
        sets = {shots: support_sets(labels, shots=shots, draw=draw) for shots in (1, 5, 10)}
        for shots, chosen in sets.items():
            assert np.bincount(labels[chosen]).tolist() == [shots] * 10
        assert set(sets[1].tolist()) < set(sets[5].tolist()) < set(sets[10].tolist())
    draws = {tuple(support_sets(labels, shots=5, draw=draw).tolist()) for draw in range(20)}
    assert len(draws) == 20


def test_too_many_shots_is_an_error() -> None:
    with pytest.raises(VitscaleError, match="class 1 has 2 training images, and 3 shots"):
        support_sets(np.array([0, 0, 0, 1, 1]), shots=3, draw=0)


def test_a_task_of_shards(tmp_path: Path) -> None:
    train, test = packed(tmp_path, name="train").folder, packed(tmp_path, name="test", per_class=4).folder
    task = Task(name="mine", version=1, source="shards", num_classes=3, train=str(train), test=str(test))
    loaded = load(task)
    assert len(loaded.train) == 24
    assert len(loaded.test_labels) == 12
    with pytest.raises(VitscaleError, match="3 classes, and task 'mine' says 7") as error:
        load(replace(task, num_classes=7))
    assert error.value.exit_code == 5
    with pytest.raises(VitscaleError, match="24 train images, and its file says 30"):
        load(replace(task, train_examples=30))
    with pytest.raises(VitscaleError, match="no such folder"):
        load(replace(task, test=str(tmp_path / "gone")))


def test_digits_with_another_class_count_are_refused() -> None:
    with pytest.raises(VitscaleError, match="label 9 in the train data is outside its 9 classes"):
        load(replace(digits(), num_classes=9))


def test_a_task_with_a_sample_that_has_no_label_is_refused_by_name(tmp_path: Path) -> None:
    members = {
        name: data for i in range(6) for name, data in ((f"{i}.png", encoded(i)), (f"{i}.cls", str(i % 2).encode()))
    }
    write_tar(tmp_path / "test" / "a.tar", members)
    del members["3.cls"]
    write_tar(tmp_path / "train" / "a.tar", members)
    task = Task(
        name="own",
        version=1,
        source="shards",
        num_classes=2,
        train=str(tmp_path / "train"),
        test=str(tmp_path / "test"),
    )
    with pytest.raises(VitscaleError, match=r"train/a\.tar: sample '3' of task 'own': it has no label") as error:
        load(task)
    assert error.value.exit_code == 5
