"""A fine-tuning that is stopped, killed or damaged goes on, and ends with the bits of one that was left alone."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stopping import StopAfter
from tiny import edit
from vitscale import checkpoints
from vitscale.checkpoints import SCORED
from vitscale.config import Transfer
from vitscale.errors import DONE, INTERRUPTED, MISSING, RUN_FAILED
from vitscale.launch.folders import prepare
from vitscale.launch.surplus import surplus
from vitscale.study.datasets import load_task
from vitscale.study.job import Job
from vitscale.study.plan import transfer_job
from vitscale.train import checkpoint, finetune, trainings
from vitscale.train.evaluate import CHUNK
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.worker import work
from worked import measured

GRID = Transfer(
    task="digits", protocol="finetune", init="untrained", lr=(0.01, 0.1), steps=6, batch_size=16, seeds=2, ema=0.9
)
"""Four trainings: two rates, two repetitions."""

Make = Callable[..., RunDir]


@pytest.fixture
def transfer(base: Path, tmp_path: Path, jobs: Callable[..., tuple[Job, ...]]) -> Make:
    """The run folder of such a transfer."""

    def made(runs: str = "runs", settings: Transfer = GRID, **machine: object) -> RunDir:
        job = transfer_job(jobs()[0], settings, load_task("digits", base=base))
        told = {"threads": 1, "micro_batch": 8, "zero_stage": 0, "save_every": 0.0, **machine}
        return RunDir(prepare(job, tmp_path / runs, base=base, machine=told))

    return made


@pytest.fixture(autouse=True)
def scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a score takes one look for a signal, and stops count steps."""
    measure = finetune.evaluate
    monkeypatch.setattr(finetune, "evaluate", lambda *given, **told: measure(*given, **{**told, "at_once": CHUNK}))


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The weights of the last evaluation in this process, averaged as they are."""
    found: dict[str, Tensor] = {}
    measure = finetune.evaluate

    def watched(network: Any, *arguments: Any, **settings: Any) -> Any:
        found.update({name: tensor.clone() for name, tensor in network.__self__.state_dict().items()})
        return measure(network, *arguments, **settings)

    monkeypatch.setattr(finetune, "evaluate", watched)
    return found


def done(run: RunDir) -> dict[str, Any]:
    assert work(run, Stop()) == DONE
    return run.result() or {}


def losses(run: RunDir) -> dict[tuple[int, int], float]:
    """By training and step; one that was computed twice has the later one."""
    steps = [event for event in run.events() if event["event"] == "step"]
    return {(event["training"], event["step"]): event["loss"] for event in steps}


def events(run: RunDir, kind: str) -> list[dict[str, Any]]:
    return [event for event in run.events() if event["event"] == kind]


@pytest.mark.parametrize("stage", [0, 2])
def test_stopped_again_and_again_it_ends_with_the_same_bits(
    transfer: Make, tested: dict[str, Tensor], stage: int
) -> None:
    expected = done(transfer("undisturbed", zero_stage=stage))
    weights, run, attempts = dict(tested), transfer(zero_stage=stage), 1
    tested.clear()
    while work(run, StopAfter(4 + attempts % 4)) == INTERRUPTED:
        attempts += 1
        assert attempts < 100, "it makes no headway"
    result = run.result() or {}
    assert attempts > 10
    assert result["attempt"] == attempts
    assert measured(result) == measured(expected)
    assert all(torch.equal(tested[name], weights[name]) for name in weights)
    lossy = losses(transfer("undisturbed", zero_stage=stage))
    assert lossy == {key: loss for key, loss in losses(run).items() if key in lossy}
    for key in ("flops_lost", "flops_eval"):
        assert [row[key] for row in result["rows"]] == [row[key] for row in expected["rows"]], "nothing came twice"


def test_nothing_of_it_is_left_when_it_is_done(transfer: Make) -> None:
    run = transfer()
    assert work(run, StopAfter(50)) == INTERRUPTED
    mine = run.folder / "checkpoints" / "mine"
    mine.mkdir()
    assert checkpoints.steps(run.folder)
    done(run)
    assert list((run.folder / "checkpoints").iterdir()) == [mine]
    other = transfer("other")
    done(other)
    assert not (other.folder / "checkpoints").exists()


def test_what_a_crash_leaves_of_one_that_is_done_is_surplus(transfer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = transfer()
    with monkeypatch.context() as patched:
        patched.setattr(trainings, "discard", lambda _: None)
        done(run)
    found = surplus(run.folder.parent)
    assert {each.folder for each in found} == set((run.folder / "checkpoints").glob("step-*"))
    assert all("a transfer that is done" in each.why for each in found)


def test_a_stop_that_saves_says_the_step_over_all_trainings(transfer: Make) -> None:
    """Two looks a step and one an evaluation, of which each training has one before its first step."""
    run = transfer()
    assert work(run, StopAfter(14 + 3)) == INTERRUPTED
    assert checkpoints.way_on(run.folder) == "goes on from step 7"
    assert [event["step"] for event in events(run, "step")] == [1, 6, 1]


def interrupted_in_the_second(transfer: Make) -> RunDir:
    run = transfer()
    assert work(run, StopAfter(14 + 5)) == INTERRUPTED
    assert sorted(checkpoints.steps(run.folder)) == [7, 8]
    return run


@pytest.mark.parametrize(("broken", "begins"), [((8,), 7), ((7, 8), 6)])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_or_to_the_start_of_its_training(
    transfer: Make, tested: dict[str, Tensor], broken: tuple[int, ...], begins: int
) -> None:
    expected = done(transfer("undisturbed"))
    weights, run = dict(tested), interrupted_in_the_second(transfer)
    for step in broken:
        (checkpoint.folder_of(run.folder, step) / checkpoint.OPTIMIZER).write_bytes(b"")
    result = done(run)
    assert [(each["step"], each["begins"]) for each in events(run, "damaged_checkpoint")] == [
        (step, begins) for step in broken
    ]
    again = events(run, "training")[-3]
    assert (again["number"], again["step"]) == (2, begins - 6)
    assert measured(result) == measured(expected)
    assert all(torch.equal(tested[name], weights[name]) for name in weights)
    per_step = result["rows"][0]["flops_segment"] / (4 * 6)
    assert {row["flops_lost"] for row in result["rows"]} == {(8 - begins) * per_step}


@pytest.mark.parametrize("altered", [True, False])
def test_scores_that_are_not_what_was_written_are_measured_again(
    transfer: Make, tested: dict[str, Tensor], altered: bool
) -> None:
    """Nor is a checkpoint used of a rate that they chose."""
    expected = done(transfer("undisturbed"))
    weights, run = dict(tested), interrupted_in_the_second(transfer)
    path = run.folder / "checkpoints" / SCORED
    if altered:
        (first,) = json.loads(path.read_text())["scored"]
        edit(path, scored=[{**first, "accuracy": 1.0}])
    else:
        path.unlink()
    assert measured(done(run)) == measured(expected)
    assert [each["step"] for each in events(run, "damaged_checkpoint")] == [7, 8]
    assert "not known" in events(run, "damaged_checkpoint")[0]["reason"]
    assert all(torch.equal(tested[name], weights[name]) for name in weights)


def test_a_choice_of_before_the_stop_stands(transfer: Make) -> None:
    """By dev scores: no rate is tried again, and none is chosen by what was tested."""
    run = transfer()
    assert work(run, StopAfter(3 * 14 + 6)) == INTERRUPTED
    (chose,) = events(run, "chose")
    scored = json.loads((run.folder / "checkpoints" / SCORED).read_text())["scored"]
    assert [each["accuracy"] for each in scored[:2]] == list(chose["grid"].values())
    result = done(run)
    assert {row["lr"] for row in result["rows"]} == {chose["lr"]}
    assert [each["number"] for each in events(run, "training")] == [1, 2, 3, 4, 4]
    assert result["rows"][0]["value"] == scored[2]["accuracy"]


def test_a_rate_that_diverged_is_not_tried_again(transfer: Make) -> None:
    settings = replace(GRID, lr=(1e35, 0.01), ema=0.0)
    expected = done(transfer("undisturbed", settings))
    run = transfer(settings=settings)
    looks = 6
    while not events(run, "diverged"):
        assert work(run, StopAfter(looks)) == INTERRUPTED
        looks += 1
    assert work(run, StopAfter(4)) == INTERRUPTED
    assert measured(done(run)) == measured(expected)
    assert len(events(run, "diverged")) == 1


def test_a_repetition_that_diverges_names_the_checkpoint_before_it(transfer: Make) -> None:
    run = transfer(settings=replace(GRID, lr=(1e35,)))
    assert work(run, Stop()) == RUN_FAILED
    hint = (run.result() or {})["hint"]
    (kept,) = sorted(checkpoints.steps(run.folder))[-1:]
    assert f"the last checkpoint is that of step {kept};" in hint


def test_checkpoints_of_another_transfer_are_refused(transfer: Make) -> None:
    other, run = transfer("other", replace(GRID, steps=5)), transfer()
    assert work(other, StopAfter(6)) == INTERRUPTED
    shutil.copytree(other.folder / "checkpoints", run.folder / "checkpoints")
    assert work(run, Stop()) == MISSING
    assert f"is of run {other.id}" in (run.result() or {})["reason"]


def test_what_was_computed_after_the_last_checkpoint_is_lost_and_counted(transfer: Make) -> None:
    run = interrupted_in_the_second(transfer)
    seconds = max(event.get("device_seconds", 0.0) for event in run.events())
    run.log("step", {"training": 2, "step": 5, "device_seconds": seconds + 1800})
    (row, _) = done(run)["rows"]
    per_step = row["flops_segment"] / (4 * 6)
    assert row["flops_lost"] == 3 * per_step
    assert row["flops_tuning"] == 2 * 6 * per_step
    assert 1800 < row["device_seconds"] - seconds < 1900


@pytest.mark.slow
def test_kills_at_any_moment_change_no_bit(transfer: Make) -> None:
    whole, killed = transfer("whole"), transfer("killed")

    def start(run: RunDir) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "vitscale.train.worker", str(run.folder)])

    assert start(whole).wait(timeout=120) == DONE
    chance = random.Random(0)
    for moment in (3, 6, 15, 20):
        process = start(killed)
        while (checkpoints.last(killed.folder) or 0) < moment:
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert start(killed).wait(timeout=120) == DONE
    assert measured(killed.result() or {}) == measured(whole.result() or {})
    lossy = losses(whole)
    assert lossy == {key: loss for key, loss in losses(killed).items() if key in lossy}
