import os
import signal
import warnings
from pathlib import Path

import pandas as pd
import pytest

from vitscale.analysis.curves import Curves, curves
from vitscale.errors import VitscaleError
from vitscale.report import drawing
from vitscale.report.figures import accuracy_by_flops, accuracy_by_params, upstream_vs_downstream

FEW = {"by_flops": accuracy_by_flops, "by_params": accuracy_by_params, "both": upstream_vs_downstream}


@pytest.fixture
def found(frame: pd.DataFrame) -> Curves:
    return curves(frame[frame["shots"].isna() | (frame["shots"] == 1)])


def test_figures_drawn_side_by_side_are_those_drawn_one_by_one(
    found: Curves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = []
    for processors in (1, 2):
        monkeypatch.setattr("vitscale.report.drawing.cores", lambda processors=processors: processors)
        out = tmp_path / str(processors)
        with drawing.drawing(out) as figures:
            figures.begin(FEW, found)
            drawn = figures.wait()
        assert {name: len(paths) for name, paths in drawn.items()} == {"by_flops": 3, "by_params": 0, "both": 3}
        contents.append({path.name: path.read_bytes() for paths in drawn.values() for path in paths})
    assert contents[0] == contents[1]


def test_letters_that_the_font_lacks_warn_of_nothing(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitscale.report.drawing.cores", lambda: 1)
    few = frame[frame["protocol"] == "pretrain"]
    named = curves(few.assign(family=few["family"] + " 家族"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with drawing.drawing(tmp_path) as figures:
            figures.begin({"by_flops": accuracy_by_flops}, named)
            assert len(figures.wait()["by_flops"]) == 3
    assert [str(warning.message) for warning in told if "Glyph" in str(warning.message)] == []


def killed(_: Curves) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_said(found: Curves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitscale.report.drawing.cores", lambda: 2)
    with drawing.drawing(tmp_path) as figures:
        for name in ("one", "other"):
            figures.begin({name: killed}, found)
        with pytest.raises(VitscaleError, match="was killed"):
            figures.wait()


@pytest.mark.parametrize("processors", [1, 2])
def test_what_goes_wrong_with_a_figure_is_raised_where_it_is_waited_for(
    found: Curves, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processors: int
) -> None:
    monkeypatch.setattr("vitscale.report.drawing.cores", lambda: processors)
    (tmp_path / "file").write_text("")
    with drawing.drawing(tmp_path / "file") as figures:
        figures.begin(FEW, found)
        with pytest.raises(OSError, match="file"):
            figures.wait()
