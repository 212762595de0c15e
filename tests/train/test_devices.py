"""One run on one and on several devices, in real processes: the same weights to rounding, whoever resumes whom."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vitscale.data.shards import open_shards
from vitscale.errors import DONE, INTERRUPTED, MISSING, RUN_FAILED
from vitscale.launch.local import Worker
from vitscale.train.rundir import RunDir

Make = Callable[..., RunDir]

# Every process needs seconds to import torch and DeepSpeed.
pytestmark = pytest.mark.slow

EXACT = (
    "recipe.dropout=0",
    "recipe.lr=1e-3",
    "recipe.batch_size=42",
    "recipe.validate_every=420",
    "recipe.warmup_steps=2",
)
MIXED = (*EXACT, "recipe.mixup=0.4")  # which reaches over the edges of what a device reads
ROUNDING = 2e-5  # of weights of size 1, after some dozens of steps in fp32


def run_on(devices: int, run: RunDir) -> int:
    worker = Worker([run.folder], threads=1, devices=devices)
    return worker.process.wait(timeout=300)


def stop_on(devices: int, run: RunDir, step: int) -> int:
    """Trains until the log or a checkpoint shows a step beyond `step`, and then asks for an end."""
    worker = Worker([run.folder], threads=1, devices=devices)
    end = time.monotonic() + 300
    while time.monotonic() < end and worker.ended() is None:
        if any(event["event"] in ("step", "validate") and event["step"] > step for event in run.events()):
            break
        time.sleep(0.02)
    worker.process.send_signal(signal.SIGTERM)
    return worker.process.wait(timeout=60)


def final(run: RunDir) -> dict[str, torch.Tensor]:
    result = run.result()
    assert result is not None
    assert result["status"] == "done", result
    return load_file(run.folder / "checkpoints" / result["checkpoint"] / "model.safetensors")


def apart(one: RunDir, other: RunDir) -> float:
    """Largest difference between two runs' weights, but for the biases of attention's keys.

    They shift all scores of a query alike: their gradient is 0 but for rounding, which Adam scales up to a step.
    """
    ours, theirs = final(one), final(other)
    for weights in (ours, theirs):
        for key in (key for key in weights if key.endswith("qkv.bias")):
            weights[key] = torch.cat([third for i, third in enumerate(weights[key].chunk(3)) if i != 1])
    return max(float((ours[key] - theirs[key]).abs().max()) for key in theirs)


def losses(run: RunDir) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in run.events() if event["event"] == "step"}


@pytest.fixture
def alone(rundir: Make) -> RunDir:
    run = rundir(*MIXED, "recipe.steps=30", runs="alone")
    assert run_on(1, run) == DONE
    return run


def test_several_devices_train_the_same_model(rundir: Make, alone: RunDir) -> None:
    for devices, micro_batch, stage in ((2, 7, 3), (3, None, 0)):
        run = rundir(*MIXED, "recipe.steps=30", runs=str(devices), micro_batch=micro_batch, zero_stage=stage)
        assert run_on(devices, run) == DONE
        assert apart(run, alone) < ROUNDING
        result, expected = run.result(), alone.result()
        assert result is not None
        assert expected is not None
        assert result["n_devices"] == devices
        assert losses(run)[30] == pytest.approx(losses(alone)[30], rel=1e-4)
        for row, other in zip(result["rows"], expected["rows"], strict=True):
            assert (row["task"], row["metric"], row["n_test"]) == (other["task"], other["metric"], other["n_test"])
            assert row["value"] == pytest.approx(other["value"], rel=1e-3)


def test_several_devices_predict_the_same_patches(rundir: Make) -> None:
    settings = (*EXACT, "recipe.objective=masked-patch", "recipe.steps=12")
    alone, run = rundir(*settings, runs="alone"), rundir(*settings, runs="two", micro_batch=7, zero_stage=3)
    assert run_on(1, alone) == DONE
    assert run_on(2, run) == DONE
    assert apart(run, alone) < ROUNDING
    for row, other in zip((run.result() or {})["rows"], (alone.result() or {})["rows"], strict=True):
        assert row["value"] == pytest.approx(other["value"], rel=1e-3)


def test_a_run_goes_on_with_other_devices_and_other_workers(rundir: Make) -> None:
    settings = (*EXACT, "recipe.steps=60", "recipe.batch_size=840", "recipe.lr=3e-4", "recipe.keep=last")
    undisturbed, moved = rundir(*settings, runs="one"), rundir(*settings, runs="moved")
    assert run_on(1, undisturbed) == DONE
    assert stop_on(2, moved, step=0) == INTERRUPTED
    first = int((moved.folder / "checkpoints" / "latest").read_text().removeprefix("step-"))
    assert 0 < first < 60
    told = json.loads((moved.folder / "run.json").read_text())
    told["machine"] |= {"micro_batch": 140, "workers": 3, "zero_stage": 2}
    (moved.folder / "run.json").write_text(json.dumps(told))
    assert stop_on(1, moved, step=first) == INTERRUPTED
    assert run_on(3, moved) == DONE
    assert apart(moved, undisturbed) < ROUNDING
    assert losses(moved)[60] == pytest.approx(losses(undisturbed)[60], rel=1e-5)
    assert losses(moved)[60] < losses(undisturbed)[1] - 0.02  # it has learnt something


def test_a_failure_on_one_device_is_the_run_s_and_ends_all(rundir: Make) -> None:
    run = rundir(*EXACT, "recipe.steps=30", "recipe.lr=1e30", runs="diverges")
    assert run_on(2, run) == RUN_FAILED
    result = run.result()
    assert result is not None
    assert "the loss is" in result["reason"] or "gradient norm" in result["reason"]


def test_bad_samples_are_counted_over_devices_and_logged_by_each(rundir: Make, base: Path, tmp_path: Path) -> None:
    """Six of 120, of which one device alone does not meet more than the four that are allowed."""
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    with open_shards(copy / "train") as shards:
        for i in range(6):
            _, offset, size = (int(x) for x in shards.places[i])
            with Path(shards.shard(i)).open("r+b") as file:
                file.seek(offset)
                file.write(bytes(size))
    # One epoch on two devices: each sample is met once, by one of them.
    run = rundir(
        *EXACT,
        "data.max_bad=0.045",
        "data.val_examples=0",
        "recipe.keep=last",
        "recipe.batch_size=12",
        "recipe.steps=10",
    )
    told = json.loads((run.folder / "run.json").read_text())
    told["machine"]["shards"] = str(copy / "train")
    (run.folder / "run.json").write_text(json.dumps(told))
    assert run_on(2, run) == MISSING
    result = run.result()
    assert result is not None
    assert "of 120 are too many" in result["reason"]
    assert {key for _, key in run.bad_samples()} <= set(shards.keys[:6].tolist())
    assert len(run.bad_samples()) == 6


def test_killing_one_process_ends_the_others(rundir: Make) -> None:
    run = rundir(*EXACT, "recipe.steps=100_000", runs="killed")
    worker = Worker([run.folder], threads=1, devices=2)
    end = time.monotonic() + 120
    while not losses(run) and time.monotonic() < end:
        time.sleep(0.05)
    children = [
        int(pid) for pid in Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text().split()
    ]
    workers = [pid for pid in children if "vitscale.train.worker" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    assert worker.process.wait(timeout=90) != 0
    worker.record_death()
    result = run.result()
    assert result is not None
    assert result["status"] == "failed"
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
