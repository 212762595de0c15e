from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.report.axes import round_values, scientific
from vitscale.report.labels import spread
from vitscale.report.lines import measure_title, short


@given(st.lists(st.floats(-0.5, 1.5), max_size=12), st.floats(0.01, 0.08))
def test_labels_that_fit_never_overlap_keep_their_order_and_stay_inside(wanted: list[float], height: float) -> None:
    centres = spread(wanted, [height] * len(wanted), 0.0, 1.0)
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = [centres[index] for index in order]
    assert all(above - below >= height - 1e-9 for below, above in pairwise(placed))
    assert all(height / 2 - 1e-9 <= centre <= 1 - height / 2 + 1e-9 for centre in centres)


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread([0.2, 0.8, 0.5], [0.1, 0.1, 0.1], 0, 1) == pytest.approx([0.2, 0.8, 0.5])


def test_two_labels_on_one_spot_move_by_half_a_height_each() -> None:
    assert spread([0.5, 0.5], [0.1, 0.1], 0, 1) == pytest.approx([0.45, 0.55])


@given(st.floats(8, 23), st.floats(0.2, 6))
def test_a_compute_axis_names_a_few_round_values_inside_it(power: float, decades: float) -> None:
    low, high = 10**power, 10 ** (power + decades)
    values = round_values(low, high)
    assert 1 <= len(values) <= 5
    assert all(low <= value <= high for value in values)
    for value in values:
        assert float(f"{value:.1e}") == value
    assert all(other / value >= (high / low) ** 0.23 for value, other in pairwise(values))


def test_a_compute_axis_under_a_decade_is_named_twice() -> None:
    assert round_values(6.5e11, 3.4e12) == [1e12, 3e12]


@pytest.mark.parametrize(
    ("number", "text"), [(500, "500"), (1000, "1k"), (55_000, "55k"), (1_281_167, "1.28M"), (303e6, "303M")]
)
def test_sizes_are_short(number: float, text: str) -> None:
    assert short(number) == text


def test_powers_of_ten_and_their_multiples_are_written_with_raised_digits() -> None:
    assert scientific(1e14) == "10¹⁴"
    assert scientific(3e13) == "3×10¹³"
    assert scientific(5.64e7) == "5.6×10⁷"


def test_panels_are_named_after_what_they_measure() -> None:
    assert measure_title("digits", "fewshot", 1) == "digits, 1 shot a class"
    assert measure_title("digits", "finetune", None) == "digits, fine-tuned"
    assert measure_title("upstream_test", "pretrain", None) == "Upstream, test set"
