"""Attempts of a run whose folder was deleted, and which began anew: nothing that was recorded gives way."""

from pathlib import Path

import pytest

from vitscale.results.store import read, write_part


def record(folder: Path, attempt: int, value: float, started: str) -> None:
    """An attempt of the run `a` that started on this day of a month."""
    write_part(
        [{"value": value, "started": f"2026-01-{started}T00:00:00+00:00"}],
        folder,
        run_id="a",
        attempt=attempt,
        started=f"2026-01-{started}T00:00:00+00:00",
    )


def values(folder: Path) -> dict[int, float]:
    return {int(row.attempt): row.value for row in read(folder).itertuples()}


def test_those_of_a_new_folder_are_counted_on(tmp_path: Path) -> None:
    record(tmp_path, 2, 0.5, "01")  # of the first nobody has heard
    record(tmp_path, 3, 0.6, "02")
    record(tmp_path, 1, 0.7, "03")
    record(tmp_path, 2, 0.8, "04")
    record(tmp_path, 6, 0.9, "05")
    assert values(tmp_path) == {2: 0.5, 3: 0.6, 4: 0.7, 5: 0.8, 6: 0.9}


@pytest.mark.parametrize("known", [True, False])
def test_what_is_recorded_again_keeps_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    for value in (0.7, 0.7, 0.75):  # of a trial that became a cell other columns are written
        if not known:  # another process
            monkeypatch.setattr("vitscale.results.attempts._listed", {})
        record(tmp_path, 1, 0.5, "01")
        record(tmp_path, 1, value, "03")
        record(tmp_path, 2, 0.8, "04")
    assert values(tmp_path) == {1: 0.5, 2: 0.75, 3: 0.8}


def test_a_part_that_cannot_be_read_is_written_anew(tmp_path: Path) -> None:
    record(tmp_path, 1, 0.5, "01")
    (tmp_path / "a-1.parquet").write_bytes(b"half")
    record(tmp_path, 1, 0.5, "01")
    assert values(tmp_path) == {1: 0.5}


def test_a_row_of_what_nobody_tried_is_no_attempt(tmp_path: Path) -> None:
    write_part([{"value": None}], tmp_path, run_id="a", attempt=0)
    record(tmp_path, 1, 0.5, "01")
    assert set(values(tmp_path)) == {0, 1}
