"""What `vitscale show` prints makes the run again: by a command of its own, or by its study's sweep."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from vitscale.cli.only import filter_of
from vitscale.launch import folders
from vitscale.launch.sweep import current_plan
from vitscale.study.job import Job
from vitscale.study.load import Study, load
from vitscale.study.plan import plan

BUDGETS = tiny.STUDY.replace("steps = 12\n", 'schedule = "constant"\ncooldown = 0.25\n').replace(
    "steps = 4\n", "steps = 2\n"
)
BUDGETS += '[[axes]]\n"recipe.steps" = [8, 16]\n'
SELECT = '[select]\nover = { "recipe.lr" = [0.001, 0.01] }\nby = "upstream_val"\nper = ["model.name"]\n'

KINDS = ("trunk", "branch", "pixels fewshot", "untrained fewshot", "untrained finetune", "pretrained fewshot")
KINDS += ("pretrained finetune",)


def of_kind(kind: str, jobs: list[Job]) -> Job:
    def is_it(job: Job) -> bool:
        transfer = job.run.transfer
        if transfer is None:
            return kind == job.role or (kind == "branch" and job.branch is not None)
        return kind == f"{transfer.init} {transfer.protocol}"

    return next(job for job in jobs if is_it(job))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two budgets, and the folders of its runs, none of which has begun."""
    folder = tmp_path_factory.mktemp("again")
    study = load(tiny.write(folder, BUDGETS), base=folder)
    for job in current_plan(study, folder / "runs").jobs:
        folders.prepare(job, folder / "runs", base=folder, machine={"threads": 1})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_fresh_folder_it_makes_the_run(base: Path, tmp_path: Path, kind: str) -> None:
    job = of_kind(kind, list(plan(load(base / "study.toml", base=base), {}).jobs))
    shown = subprocess.run(
        [sys.executable, "-m", "vitscale", "show", job.id], cwd=base, capture_output=True, text=True, check=True
    )
    hint = re.search(r"`vitscale (sweep STUDY --only \w+)` does", shown.stderr)
    command = f"vitscale {hint[1]}" if hint else shown.stdout.splitlines()[-1]
    for name in ("train", "test", "study.toml"):
        (shutil.copytree if (base / name).is_dir() else shutil.copy)(base / name, tmp_path / name)
    words = command.replace("STUDY", "study.toml").replace("vitscale ", f"{sys.executable} -m vitscale ")
    done = subprocess.run(words, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    assert json.loads((tmp_path / "runs" / job.id / "result.json").read_text())["status"] == "done"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return load(tiny.write(tmp_path, BUDGETS), base=tmp_path)


def wanted(study: Study, pattern: str) -> set[str]:
    now = plan(study, {})
    return {job.id for job in now.jobs if filter_of(pattern, study)(job) and job.role != "trunk"}


def test_a_transfer_needs_its_pre_training(study: Study) -> None:
    job = of_kind("pretrained finetune", list(plan(study, {}).jobs))
    assert wanted(study, job.id) == {job.id, job.parent}


def test_a_trunk_is_trained_for_the_runs_that_leave_it(study: Study) -> None:
    jobs = plan(study, {}).jobs
    trunk = of_kind("trunk", list(jobs))
    assert wanted(study, trunk.id) == {job.id for job in jobs if job.branch is not None}


def test_a_run_that_is_yet_to_be_chosen_needs_what_chooses_it(tmp_path: Path) -> None:
    text = tiny.STUDY.replace("lr = 1e-2\n", "") + SELECT
    study = load(tiny.write(tmp_path, text), base=tmp_path)
    now = plan(study, {})
    tuning = {job.id for job in now.jobs if job.role == "tuning"}
    chosen = plan(study, {id_: float(number) for number, id_ in enumerate(sorted(tuning))})
    job = of_kind("pretrained fewshot", list(chosen.jobs))
    assert wanted(study, job.id) == tuning
    assert wanted(study, min(tuning)) == {min(tuning)}
