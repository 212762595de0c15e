"""Real kills, real full disks and data that vanish, of real workers."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny import edit
from vitscale.errors import DONE, MISSING
from vitscale.train import checkpoint, keeping
from vitscale.train.rundir import RunDir

Make = Callable[..., RunDir]
Process = subprocess.Popen[bytes]

pytestmark = pytest.mark.slow
LONG = ("recipe.steps=60", "recipe.ema=0.9", "recipe.keep=last", "recipe.validate_every=800")
SMALL = {"data.resolution": 28, "recipe.steps": 12, "recipe.warmup_steps": 2}
BUSY = {"save_every": 0, "micro_batch": 8}
"""A checkpoint is being written nearly always."""


def start(run: RunDir) -> Process:
    with (run.folder / "out.txt").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "vitscale.train.worker", str(run.folder)], stdout=out, stderr=out
        )


def finish(run: RunDir) -> int:
    return start(run).wait(timeout=120)


def steps(run: RunDir) -> list[int]:
    return [event["step"] for event in run.events() if event["event"] == "step"]


def saved(run: RunDir) -> int:
    """The last step of which there is a checkpoint, whole or not."""
    return max((int(folder.name.split("-")[1]) for folder in run.folder.glob("checkpoints/step-*")), default=0)


def trained(run: RunDir) -> dict[str, torch.Tensor]:
    """All that the last checkpoint holds."""
    folder = run.folder / "checkpoints" / (run.result() or {})["checkpoint"]
    files = (checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.AVERAGES)
    return {f"{name}: {key}": tensor for name in files for key, tensor in load_file(folder / name).items()}


def assert_equal_to_the_bit(one: RunDir, other: RunDir) -> None:
    ours, theirs = trained(one), trained(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    values = [[(row["metric"], row["value"]) for row in (run.result() or {})["rows"]] for run in (one, other)]
    assert values[0] == values[1]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_kills_at_any_moment_change_no_bit(rundir: Make, stage: int) -> None:
    whole, killed = (rundir(*LONG, runs=name, zero_stage=stage, **BUSY) for name in ("whole", "killed"))
    assert finish(whole) == DONE
    chance = random.Random(stage)
    for moment in sorted(chance.sample(range(1, 40), 3)):  # in steps, as a quick machine ends all 60 within a second
        process = start(killed)
        while saved(killed) < moment:
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert finish(killed) == DONE
    assert_equal_to_the_bit(killed, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that is soon full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_fills_during_a_save_keeps_the_last_checkpoint(rundir: Make, small_disk: Path) -> None:
    whole, run = rundir(*LONG, runs="whole", **BUSY), rundir(*LONG, runs="disk", **BUSY)
    assert run.folder.parent == small_disk
    assert finish(whole) == DONE
    (small_disk / "others").write_bytes(bytes(2_500_000))
    assert finish(run) == MISSING
    assert run.result() is None, "a full disk is no failure of the run"
    lines = (run.folder / "log.txt").read_text().splitlines()[-2:] or (run.folder / "out.txt").read_text().splitlines()
    assert lines[0].startswith("error: ")
    assert "No space left on device" in lines[0]
    assert lines[1].startswith("hint: ")
    kept = keeping.newest(run.folder)
    assert kept is not None, "it is whole: `newest` looks at its checksums"
    (small_disk / "others").unlink()
    assert finish(run) == DONE
    assert_equal_to_the_bit(run, whole)


def test_a_disk_that_fills_under_several_processes_is_no_failure_of_the_run(
    base: Path, tmp_path: Path, small_disk: Path
) -> None:
    """Those that miss the first one say so, but know less than it."""
    settings = [f"--set={key}={value}" for key, value in {**SMALL, "recipe.batch_size": 8}.items()]
    command = [sys.executable, "-m", "vitscale", "pretrain", "--model=ViT-Ti/7", f"--data={base / 'train'}", *settings]
    command += [
        "--devices=2",
        "--threads=1",
        "--save-every=0",
        f"--runs={small_disk}",
        f"--results={tmp_path / 'rows'}",
    ]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == MISSING, ended.stderr
    error, hint = ended.stderr.splitlines()[-2:]
    assert error.endswith("the disk took no checkpoint, or no line of a log")
    assert hint.startswith("hint: free some disk space")
    (run,) = small_disk.glob("*/run.json")
    assert not (run.parent / "result.json").exists()


def test_data_that_vanish_fail_in_words_and_come_back(rundir: Make, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "copy")
    whole, run = rundir(*LONG, runs="whole", **BUSY), rundir(*LONG, runs="run", **BUSY)
    assert finish(whole) == DONE
    shards = tmp_path / "copy" / "train"
    edit(run.folder / "run.json", machine={**run.machine, "shards": str(shards)})
    run = RunDir(run.folder)
    process = start(run)
    while not steps(run):
        assert process.poll() is None
        time.sleep(0.01)
    for file in shards.glob("*.tar"):
        os.truncate(file, 1024)
    shards.rename(tmp_path / "elsewhere")
    assert process.wait(timeout=120) == MISSING
    assert "the shard is truncated" in (run.result() or {})["reason"]
    assert (run.result() or {})["failure"] == "bad data"
    (run.folder / "result.json").unlink()
    assert finish(run) == MISSING
    assert str(shards) in (run.result() or {})["reason"]
    (run.folder / "result.json").unlink()
    shutil.copytree(base / "train", shards)
    assert finish(run) == DONE
    assert_equal_to_the_bit(run, whole)
