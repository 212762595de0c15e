"""Whole sweeps over budgets that share a trunk, in real processes."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import Result
from sweeps import VARIES, start, sweep, wait_for
from typer.testing import CliRunner

import tiny
from vitscale.cli.main import app
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


def trunks_of(folder: Path) -> list[dict[str, Any]]:
    """What they were told."""
    told = [json.loads(path.read_text()) for path in (folder / "runs").glob("*/run.json")]
    return [each for each in told if each["branches"]]


def clean(runs: Path) -> Result:
    return CliRunner().invoke(app, ["clean", "--yes", "--runs", str(runs)])


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
    (trunk,) = (each["id"] for each in trunks_of(folder))
    assert set(everything["trunk_id"].dropna()) == {trunk}
    assert spent[trunk] == everything["flops_per_example"].max() * 16 * 60


def test_budgets_leave_the_trunk_of_the_trial_that_is_chosen(tmp_path: Path) -> None:
    """Tuned at one in the middle: shorter ones leave its trunk before, longer ones have it go on."""
    folder = study(tmp_path / "tuned")
    path = folder / "study.toml"
    select = '[select]\nover = { "recipe.lr" = [1e-2, 1e-4] }\nby = "upstream_val"\nper = ["model.name"]\n'
    text = path.read_text().replace("lr = 1e-2\n", "").replace("[4, 40, 80]", "[40, 20, 80]")
    path.write_text(text + select)
    ended = sweep(folder)
    assert ended.returncode == DONE, ended.stderr
    alone = sweep(folder, "--no-share", "--runs", "alone", "--results", "results-alone")
    assert alone.returncode == DONE, alone.stderr
    shared, apart = (rows(folder / name / "study") for name in ("results", "results-alone"))
    pd.testing.assert_frame_equal(shared, apart, check_dtype=False)
    everything = pd.read_parquet(folder / "results" / "study").query("protocol == 'pretrain'")
    ran = everything.sort_values("attempt").drop_duplicates("run_id", keep="last")
    spent = ran["flops_segment"].sum() / ran["flops_per_example"].max() / 16
    assert spent == 2 * 40 + (80 - 40) * 0.75 + 0.25 * (20 + 80)  # without tuning: 80 + 0.25 * (20 + 40)
    (lost,) = (folder / "runs" / each["id"] / "checkpoints" for each in trunks_of(folder) if each["steps"] == 30)
    assert (lost / "step-00000015").is_dir()  # where the shortest would have left it
    assert clean(folder / "runs").exit_code == DONE
    assert not (lost / "step-00000015").exists()
    assert (lost / "step-00000030").is_dir()


def test_where_a_trunk_fails_its_branches_are_rows_that_say_so(tmp_path: Path) -> None:
    folder = study(tmp_path / "failing", lr=1e30, warmup_steps=0)
    ended = sweep(folder)
    assert ended.returncode == RUN_FAILED
    frame = pd.read_parquet(folder / "results" / "study")
    (trunk,) = (each["id"] for each in trunks_of(folder))
    failed = frame[frame["status"] == "failed"]
    assert set(failed["run_id"]) >= {trunk}
    of_branches = failed[(failed["run_id"] != trunk) & (failed["protocol"] == "pretrain")]
    assert len(of_branches) == 3
    assert of_branches["reason"].str.startswith(f"its trunk {trunk} failed: the loss is").all()
    assert of_branches["value"].isna().all()
