from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.data.order import (
    device_slots,
    global_batch,
    key_hashes,
    scramble,
    split_validation,
    stream,
    subset,
    uniform,
)
from vitscale.errors import VitscaleError

quick = settings(max_examples=40, deadline=None)


def epoch_order(n: int, *, seed: int, epoch: int, block: int) -> np.ndarray:
    """The order of samples 0 .. n-1 in one epoch: a batch that is all of it."""
    return global_batch(epoch, batch_size=n, n=n, seed=seed, block=block)[0]


def keys_of(n: int) -> np.ndarray:
    return np.array([f"image-{i:05d}" for i in range(n)])


def test_hash_is_splitmix64() -> None:
    # First outputs of splitmix64 with state 0, as published with xoshiro (prng.di.unimi.it).
    counters = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(x) for x in scramble(counters).tolist()] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_order_is_pinned_because_run_ids_promise_it() -> None:
    assert epoch_order(12, seed=0, epoch=0, block=4).tolist() == ORDER
    assert subset(keys_of(12), np.arange(12) % 3, examples=5, seed=0).tolist() == SUBSET


@quick
@given(st.integers(1, 2000), st.integers(0, 9), st.integers(0, 9), st.integers(1, 60))
def test_an_epoch_holds_every_sample_once(n: int, seed: int, epoch: int, block: int) -> None:
    order = epoch_order(n, seed=seed, epoch=epoch, block=block)
    assert sorted(order.tolist()) == list(range(n))


def test_epochs_and_seeds_differ() -> None:
    one = epoch_order(500, seed=0, epoch=0, block=16)
    assert not np.array_equal(one, epoch_order(500, seed=0, epoch=1, block=16))
    assert not np.array_equal(one, epoch_order(500, seed=1, epoch=0, block=16))


@quick
@given(st.integers(1, 90), st.integers(1, 200), st.integers(1, 40), st.integers(0, 5))
def test_batches_are_slices_of_the_endless_stream(n: int, batch_size: int, block: int, seed: int) -> None:
    steps = 4
    epochs = -(-steps * batch_size // n)
    endless = np.concatenate([epoch_order(n, seed=seed, epoch=e, block=block) for e in range(epochs)])
    for step in range(steps):
        index, epoch = global_batch(step, batch_size=batch_size, n=n, seed=seed, block=block)
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        np.testing.assert_array_equal(index, endless[positions])
        np.testing.assert_array_equal(epoch, positions // n)


@pytest.mark.parametrize("devices", [1, 2, 7])
def test_devices_share_a_batch_without_rest(devices: int) -> None:
    index, _ = global_batch(5, batch_size=42, n=100, seed=0, block=8)
    parts = [index[device_slots(42, device=device, devices=devices)] for device in range(devices)]
    assert {len(part) for part in parts} == {42 // devices}
    np.testing.assert_array_equal(np.concatenate(parts), index)


def test_a_late_step_needs_no_earlier_one() -> None:
    index, epoch = global_batch(10**9, batch_size=64, n=1000, seed=0, block=256)
    assert set(epoch.tolist()) == {64 * 10**9 // 1000}
    assert len(set(index.tolist())) == 64


@pytest.mark.parametrize(
    ("block", "least"), [(1, 9.5), (16, 6.2), (64, 6.2), (128, 6.4), (256, 6.8), (512, 7.2), (1024, 7.8)]
)
def test_blocks_of_a_class_sorted_set_are_spread_over_batches(block: int, least: float) -> None:
    """Effective number of the ten classes (inverse Simpson index) in a batch of 256, class after class on disk."""
    labels = np.repeat(np.arange(10), 2000)
    spread = []
    for step in range(60):
        index, _ = global_batch(step, batch_size=256, n=20_000, seed=0, block=block)
        share = np.bincount(labels[index], minlength=10) / 256
        spread.append(1 / float((share**2).sum()))
    assert np.mean(spread) > least


def test_draws_belong_to_a_sample_and_not_to_its_batch() -> None:
    epoch, sample = np.array([0, 0, 1, 3]), np.array([5, 6, 5, 2])
    together = uniform(7, epoch, sample, 5)
    alone = uniform(7, epoch[2:3], sample[2:3], 5)
    np.testing.assert_array_equal(together[2:3], alone)
    np.testing.assert_array_equal(together[:, :3], uniform(7, epoch, sample, 3))
    assert not np.array_equal(together[0], together[2])


def test_draws_are_uniform_and_independent() -> None:
    draws = uniform(0, np.zeros(20_000, np.int64), np.arange(20_000), 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose(draws.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(4), atol=0.03)


labelled = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(lambda found: np.array(found, dtype=np.int64))


@quick
@given(labelled, st.integers(0, 20))
def test_subsets_nest_and_are_stratified_for_all_pairs_of_sizes(labels: np.ndarray, seed: int) -> None:
    n = len(labels)
    counts = np.bincount(labels)
    before: set[int] = set()
    for examples in range(n + 1):
        chosen = subset(keys_of(n), labels, examples=examples, seed=seed)
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert len(chosen) == examples
        assert before <= set(chosen.tolist())
        before = set(chosen.tolist())
        held = np.bincount(labels[chosen], minlength=len(counts))
        assert (held >= examples * counts // n).all()
        assert (held <= -(-examples * counts // n)).all()


@quick
@given(labelled, st.integers(0, 20), st.randoms(use_true_random=False))
def test_a_subset_is_the_same_images_however_they_are_packed(labels: np.ndarray, seed: int, random: object) -> None:
    n = len(labels)
    order = np.array(random.sample(range(n), n))  # type: ignore[attr-defined]
    keys = keys_of(n)
    there = keys[subset(keys, labels, examples=n // 2, seed=seed)]
    here = keys[order][subset(keys[order], labels[order], examples=n // 2, seed=seed)]
    assert set(there) == set(here)


def test_dots_that_packing_escapes_choose_the_same_images() -> None:
    keys = np.array([f"photo.{i:04d}" for i in range(60)])
    packed = np.array([key.replace(".", "%2E") for key in keys])
    labels = np.arange(60) % 3
    np.testing.assert_array_equal(
        subset(keys, labels, examples=20, seed=1), subset(packed, labels, examples=20, seed=1)
    )


def test_seeds_choose_other_images() -> None:
    labels = np.arange(1000) % 10
    one, two = (set(subset(keys_of(1000), labels, examples=100, seed=s).tolist()) for s in (0, 1))
    assert len(one & two) < 30


def test_more_examples_than_there_are_is_an_error() -> None:
    with pytest.raises(VitscaleError, match="11 examples were asked for and the data set has 10") as error:
        subset(keys_of(10), np.zeros(10, np.int64), examples=11, seed=0)
    assert error.value.exit_code == 5


def test_validation_is_stratified_disjoint_and_the_same_for_everybody() -> None:
    labels = np.repeat(np.arange(4), [10, 20, 30, 40])
    train, val = split_validation(keys_of(100), labels, examples=10)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(100))
    assert np.bincount(labels[val]).tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(val, split_validation(keys_of(100), labels, examples=10)[1])
    assert len(split_validation(keys_of(100), labels, examples=0)[1]) == 0
    with pytest.raises(VitscaleError, match="leave nothing to train on"):
        split_validation(keys_of(100), labels, examples=100)


def test_a_key_hashes_the_same_in_a_wider_array() -> None:
    key = stream(1)
    narrow, wide = np.array(["a", "bé"]), np.array(["a", "bé", "a much longer key"])
    np.testing.assert_array_equal(key_hashes(narrow, key), key_hashes(wide, key)[:2])
    assert len(set(key_hashes(np.array(["ab", "ba", "a", "b", "aa"]), key).tolist())) == 5


ORDER = [6, 1, 10, 11, 5, 8, 2, 0, 9, 4, 3, 7]
SUBSET = [0, 1, 5, 6, 8]
