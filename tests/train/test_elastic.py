"""A checkpoint of so many processes at one ZeRO stage goes on with so many others at another one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from elastic import AFTER, BEFORE, WORLDS, identified
from vitscale.train import checkpoint
from vitscale.train.checkpoint import Checkpoint
from vitscale.train.engine import STAGES

pytestmark = pytest.mark.slow

ROUNDING = 2e-5  # of weights of size 1, after six steps of size 1e-3 in fp32
PAIRS = [(world, stage) for world in WORLDS for stage in STAGES]


def launch(processes: int, what: str, folder: Path) -> None:
    script = Path(__file__).with_name("elastic.py")
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *run, str(script), what, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    for what in ("save", "load"):
        for world in WORLDS:
            launch(world, what, folder)
    return folder


def final(run: Path) -> Checkpoint:
    return checkpoint.load(checkpoint.folder_of(run, BEFORE + AFTER))


def losses(run: Path) -> list[float]:
    return json.loads((run / "losses.json").read_text())


def assert_equal_to_rounding(run: Path, expected: Path) -> None:
    one, other = final(run), final(expected)
    for ours, theirs in (
        (one.weights, other.weights),
        (one.averages, other.averages),
        (one.optimizer, other.optimizer),
    ):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            close = {"rtol": 1e-3, "atol": ROUNDING, "msg": f"{run.name} {key}"}
            torch.testing.assert_close(identified(key, ours[key]), identified(key, theirs[key]), **close)
    assert losses(run) == pytest.approx(losses(expected), rel=1e-5)


@pytest.mark.parametrize("world", [1, 2])
def test_gradients_in_bf16_are_summed_in_fp32_at_every_stage(world: int, tmp_path: Path) -> None:
    """Over micro-batches and processes. At stage 3 DeepSpeed adds biases to products that are rounded already."""
    launch(world, "bf16", tmp_path)
    most = json.loads((tmp_path / f"bf16-{world}.json").read_text())
    assert most.keys() == {"0", "1", "2", "3"}
    assert max(most[stage] for stage in "012") < 1e-5
    assert most["3"] < 0.01


@pytest.mark.parametrize(("world", "stage"), PAIRS)
def test_every_stage_and_number_of_processes_equals_one_process_at_stage_0(
    trained: Path, world: int, stage: int
) -> None:
    assert_equal_to_rounding(trained / f"{world}-{stage}", trained / "1-0")


@pytest.mark.parametrize(("world", "stage"), PAIRS)
def test_a_checkpoint_goes_on_at_every_stage_with_every_number_of_processes(
    trained: Path, world: int, stage: int
) -> None:
    for other_world, other_stage in PAIRS:
        run = trained / "continued" / f"{world}-{stage}-{other_world}-{other_stage}"
        assert_equal_to_rounding(run, trained / "1-0")
