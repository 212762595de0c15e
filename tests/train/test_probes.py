"""Probes: what a few-shot transfer would measure, while the run trains, and nothing of the run is moved by it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stopping import StopAfter
from test_devices import EXACT, apart, run_on
from vitscale.config import Transfer
from vitscale.errors import DONE, INTERRUPTED
from vitscale.launch.folders import prepare
from vitscale.launch.progress import progress
from vitscale.study.datasets import load_task
from vitscale.study.job import Job
from vitscale.study.plan import transfer_job
from vitscale.train import checkpoint, keeping
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.worker import work

Make = Callable[..., RunDir]
PROBED = "recipe.probe=['digits']"


def probes(run: RunDir) -> dict[int, float]:
    return {e["step"]: e["accuracy"]["digits"] for e in run.events() if e["event"] == "probe"}


def tensors(run: RunDir) -> dict[str, torch.Tensor]:
    folder = keeping.newest(run.folder)
    assert folder is not None
    return {f"{path.stem}.{k}": v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def equal(one: RunDir, other: RunDir) -> bool:
    """Weights, averages, the optimizer's state and the random generators."""
    ours, theirs = tensors(one), tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def flops_eval(run: RunDir) -> float:
    result = run.result()
    assert result is not None
    return result["rows"][0]["flops_eval"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_probed_run_has_the_id_and_every_bit_of_one_that_is_not(rundir: Make, stage: int) -> None:
    settings = ("recipe.ema=0.8", "recipe.dropout=0.1")
    plain, probed = (
        rundir(*settings, *more, runs=name, zero_stage=stage) for name, more in (("a", ()), ("b", (PROBED,)))
    )
    assert plain.id == probed.id
    assert work(plain, Stop()) == work(probed, Stop()) == DONE
    assert equal(plain, probed)
    assert sorted(probes(probed)) == [3, 6, 9, 12]
    assert all(0.1 < accuracy < 0.9 for accuracy in probes(probed).values())
    assert probes(plain) == {}
    assert (probed.result() or {})["score"] == (plain.result() or {})["score"]


@pytest.mark.parametrize(
    "settings", [("model.name=R5+ViT-nano/7",), ("model.name=R5",), ("recipe.objective=masked-patch",), ("recipe.ema=0.8",)]
)  # fmt: skip
def test_the_last_probe_is_what_the_few_shot_transfer_measures(
    rundir: Make, jobs: Callable[..., tuple[Job, ...]], base: Path, settings: tuple[str, ...]
) -> None:
    settings = (*settings, PROBED, "recipe.keep=last")
    run = rundir(*settings)
    assert work(run, Stop()) == DONE
    job = transfer_job(jobs(*settings)[0], Transfer(task="digits", shots=(10,)), load_task("digits", base=base))
    transfer = RunDir(prepare(job, run.folder.parent, base=base, machine={"threads": 1}))
    assert transfer.probes == ()
    assert work(transfer, Stop()) == DONE
    rows = (transfer.result() or {})["rows"]
    assert probes(run)[12] == pytest.approx(np.mean([row["value"] for row in rows]), abs=1e-12)


def test_what_probes_compute_is_counted(rundir: Make) -> None:
    plain, probed = rundir(runs="a"), rundir(PROBED, runs="b")
    assert work(plain, Stop()) == work(probed, Stop()) == DONE
    per_image = plain.document["flops_per_example"] / 3
    # Four times all test images of the task and nearly all of its 1,000 others; its head is larger than the run's.
    images = (flops_eval(probed) - flops_eval(plain)) / per_image / 4
    assert 0.9 * 1797 < images < 1.1 * 1797


def test_without_validation_images_probes_come_when_a_validation_would(rundir: Make) -> None:
    settings = ("data.val_examples=0", "recipe.keep=last", PROBED)
    run, at_end = rundir(*settings, runs="a"), rundir(*settings, "recipe.validate_every=100000", runs="b")
    assert work(run, Stop()) == work(at_end, Stop()) == DONE
    assert sorted(probes(run)) == [3, 6, 9, 12]
    assert sorted(probes(at_end)) == [12]
    assert not [event for event in run.events() if event["event"] == "validate"]


def test_a_probe_that_was_cut_short_comes_before_the_next_step_and_moves_nothing(rundir: Make) -> None:
    settings = ("recipe.ema=0.8", "recipe.dropout=0.1", PROBED)
    undisturbed, stopped = rundir(*settings, runs="a"), rundir(*settings, runs="b")
    assert work(undisturbed, Stop()) == DONE
    # A look before the first step, after two, before the only chunk of the validation; then of the probe's, and its draws.
    for looks in (6, 3, 9):
        assert work(stopped, StopAfter(looks)) == INTERRUPTED
        assert probes(stopped) == {}
        folder = keeping.newest(stopped.folder)
        assert folder is not None
        assert checkpoint.load(folder).progress.validation_due
    assert work(stopped, Stop()) == DONE
    assert probes(stopped) == probes(undisturbed)
    assert equal(stopped, undisturbed)


def test_the_progress_line_tells_the_last_probe(rundir: Make) -> None:
    run = rundir(PROBED)
    assert work(run, Stop()) == DONE
    assert f"digits 10-shot {probes(run)[12]:.1%}" in progress(run.folder)


def test_bf16_is_probed_in_bf16_at_every_stage(rundir: Make) -> None:
    found = []
    for stage in (0, 3):
        run = rundir("recipe.precision=bf16", PROBED, runs=str(stage), zero_stage=stage)
        assert work(run, Stop()) == DONE
        found.append(probes(run)[12])
    assert found[0] == pytest.approx(found[1], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["classification", "masked-patch"])
def test_several_processes_measure_the_same(rundir: Make, objective: str) -> None:
    settings = (*EXACT, PROBED, f"recipe.objective={objective}", "recipe.ema=0.8")
    alone = rundir(*settings, runs="alone")
    assert run_on(1, alone) == DONE
    for devices, stage in ((2, 3), (3, 0)):
        run = rundir(*settings, runs=str(devices), zero_stage=stage)
        assert run_on(devices, run) == DONE
        assert apart(run, alone) < 2e-5
        assert probes(run) == pytest.approx(probes(alone), abs=5e-3)


def test_run_json_carries_the_tasks(rundir: Make) -> None:
    run = rundir(PROBED)
    document: dict[str, Any] = json.loads((run.folder / "run.json").read_text())
    assert [task["name"] for task in document["probes"]] == ["digits"]
