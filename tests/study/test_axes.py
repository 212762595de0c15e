"""Axes: product, zip, union."""

import pytest

from vitscale.study.axes import expand, varied


def test_no_axes_give_one_cell() -> None:
    assert expand([]) == [{}]


def test_keys_of_a_table_are_multiplied_the_last_one_fastest() -> None:
    assert expand([{"a": [1, 2], "b": [3, 4]}]) == [
        {"a": 1, "b": 3},
        {"a": 1, "b": 4},
        {"a": 2, "b": 3},
        {"a": 2, "b": 4},
    ]


def test_zipped_keys_walk_together() -> None:
    assert expand([{"a": [1, 2], "b": [3, 4], "zip": True}]) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]


def test_unequal_lists_are_not_zipped() -> None:
    with pytest.raises(ValueError, match="a: 2, b: 1"):
        expand([{"a": [1, 2], "b": [3], "zip": True}])


def test_tables_are_united_without_repetition() -> None:
    assert expand([{"a": [1, 2]}, {"a": [2, 3]}]) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert varied(expand([{"a": 1}, {"b": 2, "a": 1}])) == ["a", "b"]
