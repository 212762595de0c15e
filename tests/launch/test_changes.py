"""What an edited study would run anew and has left behind, as `plan --diff` tells it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from vitscale.cli.plan import plan
from vitscale.launch.changes import changes
from vitscale.launch.folders import prepare
from vitscale.launch.sweep import current_plan
from vitscale.results.store import Held, write_part, write_plan
from vitscale.study import describe
from vitscale.study.job import Job
from vitscale.study.load import load

ALONE = tiny.STUDY.partition("[[transfer]]")[0]
CELLS = ALONE + '[[axes]]\n"recipe.lr" = [0.01, 0.1]\nseed = [0, 1]\n'
SELECT = ALONE.replace("lr = 1e-2\n", "") + "[[axes]]\nseed = [0, 1, 2]\n"
SELECT += '[select]\nover = { "recipe.lr" = [0.01, 0.1] }\nby = "upstream_val"\nper = ["model.name"]\n'


@pytest.fixture
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[float, int], Job]:
    """The cells of a study that is on record, by rate and seed, with their folders; we are where it lies."""
    monkeypatch.chdir(tmp_path)
    now = current_plan(load(tiny.write(tmp_path, CELLS), base=tmp_path), tmp_path / "runs")
    for job in now.jobs:
        prepare(job, tmp_path / "runs", base=tmp_path, machine={})
    write_plan(tmp_path / "results" / "study", Held(frozenset(job.id for job in now.jobs)))
    return {(job.run.recipe.lr, job.run.seed): job for job in now.jobs}


def test_runs_that_are_gone_are_told_apart(swept: dict[tuple[float, int], Job], tmp_path: Path) -> None:
    """Also one whose folder is gone as well: by its rows."""
    lost = swept[0.1, 1]
    shutil.rmtree(tmp_path / "runs" / lost.id)
    results = tmp_path / "results" / "study"
    known = {"protocol": "pretrain", "model": "ViT-nano/7", "examples": 100, "lr": 0.1, "seed": 1, "role": "cell"}
    write_part([{**known, "settings": {"seed": 1}}], results, run_id=lost.id, attempt=1)
    now = current_plan(load(tmp_path / "study.toml", base=tmp_path, settings=["recipe.ema=0.9"]), tmp_path / "runs")
    held = Held(frozenset(job.id for job in swept.values()))
    found = changes(now, held, tmp_path / "runs", results)
    gone = {change.id: change.words() for change in found if change.state == "gone"}
    assert gone[swept[0.01, 0].id] == "recipe.lr 0.01, recipe.ema 0.0, seed 0"
    assert gone[lost.id] == "data.examples 100, recipe.lr 0.1, seed 1"
    assert len({*gone.values()}) == len(gone) == 4


def test_a_folder_that_was_tampered_with_tells_nothing(swept: dict[tuple[float, int], Job], tmp_path: Path) -> None:
    """Its rows do, and a new run is compared with others."""
    wrong = swept[0.1, 1]
    path = tmp_path / "runs" / wrong.id / "run.json"
    told = json.loads(path.read_text())
    told["config"]["recipe"]["lr"] = 0.12
    path.write_text(json.dumps(told))
    (tmp_path / "study.toml").write_text(CELLS.replace("[0.01, 0.1]", "[0.12]").replace("[0, 1]", "[1]"))
    now = current_plan(load(tmp_path / "study.toml", base=tmp_path), tmp_path / "runs")
    found = list(changes(now, Held(frozenset(job.id for job in swept.values())), tmp_path / "runs"))
    assert [change.words() for change in found if change.state == "new"] == [
        f"recipe.lr: 0.01 -> 0.12 (from {swept[0.01, 1].id})"
    ]
    assert wrong.id not in {change.id for change in found}  # there are no rows of it


def test_a_new_run_is_told_from_the_one_whose_numbers_are_nearest(
    swept: dict[tuple[float, int], Job], tmp_path: Path
) -> None:
    """Where several differ in one setting alone."""
    held = Held(frozenset(job.id for job in swept.values()))

    def told(*axes: tuple[str, str]) -> list[str]:
        text = CELLS
        for before, after in axes:
            text = text.replace(before, after)
        (tmp_path / "study.toml").write_text(text)
        now = current_plan(load(tmp_path / "study.toml", base=tmp_path), tmp_path / "runs")
        return [change.words() for change in changes(now, held, tmp_path / "runs") if change.state == "new"]

    assert told(("[0.01, 0.1]", "[0.02]"), ("[0, 1]", "[0]")) == [f"recipe.lr: 0.01 -> 0.02 (from {swept[0.01, 0].id})"]
    assert told(("[0.01, 0.1]", "[0.1]"), ("[0, 1]", "[2]")) == [f"seed: 1 -> 2 (from {swept[0.1, 1].id})"]


def test_what_each_run_is_is_worked_out_once(
    swept: dict[tuple[float, int], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for each pair: that of a thousand runs took minutes."""
    worked_out: list[str] = []

    def identity(told: dict[str, Any]) -> dict[str, Any]:
        worked_out.append(told["id"])
        return describe.identity(told)

    monkeypatch.setattr("vitscale.launch.changes.describe", SimpleNamespace(**{**vars(describe), "identity": identity}))
    now = current_plan(load(tmp_path / "study.toml", base=tmp_path, settings=["recipe.ema=0.9"]), tmp_path / "runs")
    found = list(changes(now, Held(frozenset(job.id for job in swept.values())), tmp_path / "runs"))
    assert len(found) == len(worked_out) == len({*worked_out}) == 2 * len(swept)


def test_what_waits_for_a_choice_is_said(
    swept: dict[tuple[float, int], Job], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "study.toml").write_text(SELECT.replace("dropout = 0.1", "dropout = 0.2"))
    plan(Path("study.toml"), diff=True)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"pre-training runs: 2 new, {len(swept)} no more in the study",
        "2 more wait for [select], and cannot be compared yet; any that is no more in the study may be among them",
    ]
    plan(Path("study.toml"), diff=True, json=True)
    assert json.loads(capsys.readouterr().out)["waiting"] == 2
