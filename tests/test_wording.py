from vitscale.wording import count


def test_one_is_singular_and_large_numbers_have_commas() -> None:
    assert [count(number, "run") for number in (0, 1, 2, 2000)] == ["0 runs", "1 run", "2 runs", "2,000 runs"]
    assert [count(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
