from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.config import Data, Run
from vitscale.data.subsets import Split, split
from vitscale.errors import VitscaleError
from vitscale.exclusions import Exclusions
from vitscale.study.datasets import Dataset
from vitscale.study.subsets import selected, subset_seed

quick = settings(max_examples=60, deadline=None)
CLASSES = 7

labelled = st.lists(st.integers(-1, CLASSES - 1), min_size=12, max_size=150).map(
    lambda found: np.array([0, 1, 2, *found], dtype=np.int64)
)
fractions = st.none() | st.floats(0.01, 1.0)


def keys_of(n: int) -> np.ndarray:
    return np.array([f"image-{i:05d}" for i in range(n)])


def taken(labels: np.ndarray, data: Data, seed: int = 0, excluded: Exclusions | None = None) -> Split:
    return split(keys_of(len(labels)), labels, data, num_classes=CLASSES, seed=seed, excluded=excluded)


def described(labels: np.ndarray) -> Dataset:
    counts = np.bincount(labels[labels >= 0], minlength=CLASSES)
    return Dataset(
        name="x", samples=len(labels), num_classes=CLASSES, fingerprint="f", class_counts=tuple(counts.tolist())
    )


@quick
@given(labelled, fractions, st.none() | st.integers(2, 3), st.integers(0, 5), st.integers(0, 3), st.integers(0, 3))
def test_planning_counts_what_reading_finds(
    labels: np.ndarray, fraction: float | None, classes: int | None, val: int, seed: int, left_out: int
) -> None:
    data = Data(fraction=fraction, classes=classes, val_examples=val, subset_seed=seed)
    keys = keys_of(len(labels)).tolist()
    excluded = Exclusions(dict(zip(keys[:left_out], labels.tolist(), strict=False)), "f")
    present = np.unique(labels[left_out:])
    if classes is not None and (present >= 0).sum() < classes:
        return
    there = taken(labels, data, seed, excluded)
    here = selected(described(labels).without(excluded), data, subset_seed(Run(data=data)))
    assert here.examples == len(there.train)
    assert here.validation == len(there.validation)
    assert here.classes == there.classes
    assert not set(there.train.tolist()) & {*there.validation.tolist(), *range(left_out)}


@quick
@given(labelled, st.integers(0, 9), st.data())
def test_smaller_sets_lie_inside_larger_ones(labels: np.ndarray, seed: int, draw: st.DataObject) -> None:
    most = int((np.unique(labels) >= 0).sum())
    few, many = sorted(draw.draw(st.tuples(st.integers(2, most), st.integers(2, most))))
    low, high = sorted(draw.draw(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1))))
    base = Data(val_examples=3)
    small, large = (
        set(taken(labels, replace(base, classes=c, fraction=f), seed).train.tolist())
        for c, f in ((few, low), (many, high))
    )
    assert small <= large


def test_chosen_classes_are_numbered_anew_everywhere() -> None:
    labels = np.repeat(np.arange(CLASSES), 10)
    found = taken(labels, Data(classes=3, val_examples=14), seed=4)
    assert found.classes is not None
    assert len(found.classes) == 3
    assert len(found.validation) == 6
    assert len(found.train) == 24
    new = found.labels(labels)
    for number, label in enumerate(found.classes):
        assert (new[labels == label] == number).all()
    assert (new[~np.isin(labels, found.classes)] == -1).all()
    assert (found.labels(np.array([-1, found.classes[2]])) == [-1, 2]).all()
    assert found.classes != taken(labels, Data(classes=3), seed=5).classes


def test_all_classes_are_the_set_as_it_is() -> None:
    labels = np.repeat(np.arange(CLASSES), 3)
    assert taken(labels, Data(classes=CLASSES)).classes is None


def test_examples_of_some_classes_and_a_fraction_are_counted_exactly() -> None:
    labels = np.repeat(np.arange(CLASSES), 30)
    found = taken(labels, Data(classes=2, examples=7))
    assert len(found.train) == 7
    assert sorted(np.bincount(found.labels(labels)[found.train]).tolist()) == [3, 4]
    assert len(taken(labels, Data(fraction=0.1)).train) == 21
    with pytest.raises(VitscaleError, match="61 examples were asked for and the data set has 60"):
        taken(labels, Data(classes=2, examples=61))


def test_excluded_images_are_gone_and_unknown_ones_are_named() -> None:
    labels = np.zeros(10, np.int64)
    found = taken(labels, Data(val_examples=2), excluded=Exclusions({"image-00003": 0, "image-00008": 0}, None))
    assert sorted([*found.train.tolist(), *found.validation.tolist()]) == [0, 1, 2, 4, 5, 6, 7, 9]
    with pytest.raises(VitscaleError, match="'image-x' is excluded and not in the data set") as error:
        taken(labels, Data(), excluded=Exclusions({"image-00003": 0, "image-x": 0}, None))
    assert error.value.exit_code == 5
