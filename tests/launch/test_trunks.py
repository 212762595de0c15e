"""Whole sweeps over budgets that share a trunk, in real processes."""

import json
import os
import re
import signal
from pathlib import Path

import pandas as pd
import pytest
from sweeps import VARIES, start, sweep, wait_for

import tiny
from vitscale.errors import DONE, RUN_FAILED

pytestmark = pytest.mark.slow


def study(folder: Path, **recipe: object) -> Path:
    """Three budgets and one transfer of each."""
    text = tiny.STUDY[: tiny.STUDY.rindex("[[transfer]]")]
    text = text.replace("steps = 12\n", 'schedule = "constant"\ncooldown = 0.25\n')
    for key, value in recipe.items():
        text = re.sub(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
    folder.mkdir()
    tiny.write(folder, text + '[[axes]]\n"recipe.steps" = [4, 40, 80]\n')
    return folder


def rows(results: Path) -> pd.DataFrame:
    """What a curve is drawn from."""
    frame = pd.read_parquet(results)
    frame = frame[frame["role"] != "trunk"].drop(columns=[*VARIES, "trunk_id", "flops_segment"])
    return frame.sort_values(["run_id", "task", "metric", "shots", "draw"]).reset_index(drop=True)


def trunk_of(folder: Path) -> Path:
    """Its run folder."""
    told = [json.loads(path.read_text()) for path in (folder / "runs").glob("*/run.json")]
    (found,) = (each["id"] for each in told if each["branches"])
    return folder / "runs" / found


def test_a_killed_sweep_goes_on_and_ends_as_if_each_run_had_trained_alone(tmp_path: Path) -> None:
    folder = study(tmp_path / "shared")
    process = start(folder, "--save-every", "0")
    wait_for(lambda: any((folder / "runs").glob("*/checkpoints/step-00000003")), process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    again = sweep(folder)
    assert again.returncode == DONE, again.stderr
    assert "1 shared trunk" in again.stderr
    alone = sweep(folder, "--no-share", "--runs", "alone", "--results", "results-alone")
    assert alone.returncode == DONE, alone.stderr
    shared, apart = (rows(folder / name / "study") for name in ("results", "results-alone"))
    pd.testing.assert_frame_equal(shared, apart, check_dtype=False)  # the trunk has no test images
    everything = pd.read_parquet(folder / "results" / "study").drop_duplicates("run_id")
    spent = everything.set_index("run_id")["flops_segment"]
    trunk = trunk_of(folder).name
    assert set(everything["trunk_id"].dropna()) == {trunk}
    assert spent[trunk] == everything["flops_per_example"].max() * 16 * 60


def test_where_a_trunk_fails_its_branches_are_rows_that_say_so(tmp_path: Path) -> None:
    folder = study(tmp_path / "failing", lr=1e30, warmup_steps=0)
    ended = sweep(folder)
    assert ended.returncode == RUN_FAILED
    frame = pd.read_parquet(folder / "results" / "study")
    trunk = trunk_of(folder).name
    failed = frame[frame["status"] == "failed"]
    assert set(failed["run_id"]) >= {trunk}
    of_branches = failed[(failed["run_id"] != trunk) & (failed["protocol"] == "pretrain")]
    assert len(of_branches) == 3
    assert of_branches["reason"].str.startswith(f"its trunk {trunk} failed: the loss is").all()
    assert of_branches["value"].isna().all()
