"""Which patches are corrupted and how: drawn for each image alone, in the published shares."""

import numpy as np
import pytest

from vitscale.data.masking import MASK, Corruption, corruption


def drawn(samples: int, *, patches: int = 49, corrupted: int = 24, seed: int | None = 3, epoch: int = 0) -> Corruption:
    index = np.arange(samples, dtype=np.int64)
    return corruption(np.full_like(index, epoch), index, patches=patches, corrupted=corrupted, seed=seed)


def others(found: Corruption) -> tuple[np.ndarray, np.ndarray]:
    """Places with another patch's embedding, and whose it is."""
    moved = (found.sources != MASK) & (found.sources != np.arange(found.sources.shape[1]))
    return np.nonzero(moved)[1], found.sources[moved]


def test_exactly_as_many_patches_as_asked_for_are_corrupted_and_no_other_is_touched() -> None:
    found = drawn(500)
    assert found.places.shape == (500, 24)
    assert (np.diff(found.places) > 0).all()
    untouched = np.ones((500, 49), dtype=bool)
    np.put_along_axis(untouched, found.places, False, axis=1)
    assert (found.sources == np.arange(49))[untouched].all()


def test_of_the_corrupted_80_percent_are_masked_10_are_others_and_10_are_kept() -> None:
    found = drawn(20_000)
    fate = np.take_along_axis(found.sources, found.places, axis=1)
    count = fate.size
    masked, kept = (fate == MASK).sum(), (fate == found.places).sum()
    for share, hits in ((0.8, masked), (0.1, kept), (0.1, count - masked - kept)):
        assert abs(hits / count - share) < 4 * np.sqrt(share * (1 - share) / count)  # binomial: each is drawn alone


def test_each_patch_is_as_likely_to_be_corrupted_and_each_other_one_to_stand_for_it() -> None:
    found = drawn(40_000, patches=9, corrupted=4)
    counts = np.bincount(found.places.ravel(), minlength=9)
    assert np.abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())
    places, sources = others(found)
    table = np.zeros((9, 9))
    np.add.at(table, (places, sources), 1)
    assert (table.diagonal() == 0).all()
    off = table[~np.eye(9, dtype=bool)]
    assert ((off - off.mean()) ** 2).sum() / off.mean() < 71 + 4 * np.sqrt(2 * 71)  # chi-squared


def test_no_two_places_of_an_image_take_the_same_other_patch() -> None:
    found = drawn(500, corrupted=49)
    for row in found.sources:
        moved = row[(row != MASK) & (row != np.arange(49))]
        assert len(moved) == len(np.unique(moved))
    assert len(others(found)[0]) > 2_000


def test_what_happens_to_an_image_does_not_depend_on_its_batch() -> None:
    whole = drawn(64)
    for part in (slice(0, 1), slice(13, 40), slice(63, None, -7)):
        index = np.arange(64, dtype=np.int64)[part]
        alone = corruption(np.zeros_like(index), index, patches=49, corrupted=24, seed=3)
        assert (alone.places == whole.places[part]).all()
        assert (alone.sources == whole.sources[part]).all()


@pytest.mark.parametrize("other", [{"seed": 4}, {"epoch": 1}, {"seed": None}])
def test_seed_epoch_and_purpose_each_draw_anew(other: dict[str, int | None]) -> None:
    one, two = drawn(200), drawn(200, **other)  # type: ignore[arg-type]
    assert 0.3 < np.mean([len(set(a) & set(b)) / 24 for a, b in zip(one.places, two.places, strict=True)]) < 0.7


def test_the_draws_are_these_ones() -> None:
    """Pinned: other ones would be other runs under the same ids."""
    found = drawn(2, patches=8, corrupted=4, seed=0)
    assert found.places.tolist() == PLACES
    assert found.sources.tolist() == SOURCES


PLACES = [[3, 4, 5, 6], [1, 2, 5, 7]]
SOURCES = [[0, 1, 2, -1, -1, -1, -1, 7], [0, -1, 3, 3, 4, 5, 6, -1]]
