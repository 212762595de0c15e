"""What a run has saved, as whoever launches it sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitscale import checkpoints


def saved(folder: Path, *steps: int, latest: str | None = None) -> Path:
    for step in steps:
        (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    if latest is not None:
        (folder / "checkpoints" / "latest").write_text(latest)
    return folder


@pytest.mark.parametrize(
    ("steps", "latest", "last"),
    [
        ((), None, None),
        ((10, 20), None, 20),  # a trunk's, adopted
        ((10, 20), "step-00000020", 20),
        ((10, 15, 60, 72), "step-00000015", 15),  # it went back to before the best one, which was damaged
        ((10, 20), "step-00000030", 20),  # which somebody has removed
        ((10, 20), "nothing", 20),
    ],
)
def test_a_run_goes_on_from_what_it_saved_last(
    tmp_path: Path, steps: tuple[int, ...], latest: str | None, last: int | None
) -> None:
    assert checkpoints.last(saved(tmp_path, *steps, latest=latest)) == last


def test_half_written_ones_do_not_count(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    (tmp_path / "checkpoints" / ".step-00000020.7").mkdir()
    assert checkpoints.steps(tmp_path) == [10]
