"""The command of a run is checked by what it plans; differences by settings that were changed on purpose."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tiny
from vitscale.analysis.variants import CELL_OF_MODEL, variants
from vitscale.cli.plan_screen import TRANSFER_HEADER, transfer_row
from vitscale.cli.pretrain import _job
from vitscale.launch import folders
from vitscale.launch.progress import title
from vitscale.launch.rates import rates_of
from vitscale.study import describe
from vitscale.study.bill import Terms
from vitscale.study.load import load
from vitscale.study.plan import plan

Told = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("describe")
    tiny.write(folder)
    return folder


@pytest.fixture
def told(base: Path, tmp_path: Path) -> Told:
    """`run.json` of a job of the small study."""

    def document(*settings: str, which: int = 0) -> dict[str, Any]:
        job = plan(load(base / "study.toml", base=base, settings=settings), {}).jobs[which]
        folder = folders.prepare(job, tmp_path, base=base, machine={})
        return json.loads((folder / "run.json").read_text())

    return document


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("model.name=ViT-Ti/7", "recipe.lr=3e-4", "data.flip=false", "seed=3"),
        ("model.name=R50+ViT-nano/4", "data.max_bad=0.5"),
        ("model.name=R50x1", "data.examples=40"),
        ("recipe.objective=masked-patch", "recipe.masked_target=pixels"),
        ("model.gelu=tanh", "model.pool=gap", "data.subset_seed=5", "data.fraction=0.5"),
    ],
)
def test_the_command_of_a_run_plans_that_run(told: Told, settings: tuple[str, ...]) -> None:
    document = told(*settings)
    command = describe.command(document)
    assert command is not None
    verb, *words = shlex.split(command)[1:]
    assert verb == "pretrain"
    options = list(zip(words[::2], words[1::2], strict=True))
    single = dict(options)
    job = _job(single["--model"], single["--data"], [value for key, value in options if key == "--set"])
    assert job.id == document["id"]


def test_blocks_of_a_study_s_own_have_no_command(told: Told) -> None:
    assert describe.command(told("model.name=R5")) is None


def test_transfers_name_what_they_start_from(told: Told) -> None:
    few, tuned = told(which=1), told(which=2)
    assert describe.command(few) == f"vitscale fewshot {few['parent']} --task digits --shots 1 --shots 5"
    assert describe.command(tuned) is None, "its two seeds have no option"


def test_differences_are_of_what_makes_a_run(told: Told) -> None:
    one, other = told("recipe.lr=0.001"), told("recipe.lr=0.002", "data.val_examples=30", "data.max_bad=0.5")
    found = {key: (a, b) for key, a, b in describe.differences(one, other)}
    assert found["recipe.lr"] == (0.001, 0.002)
    assert found["data.val_examples"] == (20, 30)
    assert not {"data.shards", "machine.threads"} & set(found)
    assert describe.differences(one, one) == []


def test_a_duration_differs_once(told: Told) -> None:
    found = describe.differences(told("recipe.steps=40"), told("recipe.steps=100"))
    assert found == [("recipe.steps", 40, 100)]


def test_settings_are_those_that_differ_from_the_defaults(told: Told) -> None:
    found = describe.settings(told("recipe.lr=0.002"))
    assert found["recipe.lr"] == 0.002
    assert "recipe.beta1" not in found
    assert "data.shards" not in found


def test_transfers_of_one_run_are_told_apart_as_results_does(base: Path, tmp_path: Path) -> None:
    more = '[[transfer]]\ntask = "digits"\nprotocol = "finetune"\nlr = {}\nsteps = 4\nbatch_size = 16\nseeds = {}\n'
    study = tmp_path / "study.toml"
    study.write_text(tiny.STUDY + more.format("[0.01]", 2) + more.format("[0.01, 0.1]", 1))
    jobs = [job for job in plan(load(study, base=base), {}).jobs if job.parent]
    told = [describe.variant(job) for job in jobs]
    assert told == ["", "lr=[0.01, 0.1], seeds=2", "lr=[0.01], seeds=2", "lr=[0.01, 0.1], seeds=1"]
    rows = pd.DataFrame({"settings": [json.dumps(dict(job.varied)) for job in jobs], "task": "digits"})
    rows = rows.assign(**dict.fromkeys(("protocol", "init", "shots", *CELL_OF_MODEL), "same"))
    assert list(variants(rows)["variant"]) == told
    assert title(jobs[2]) == f"{jobs[2].id} finetune digits of {jobs[2].parent}, {told[2]}"
    rates = rates_of(jobs, None, 1)
    assert told == [
        transfer_row(job, "to do", Terms(counting="dense", rates=rates))[TRANSFER_HEADER.index("variant")]
        for job in jobs
    ]
