"""Checkpoints: written whole or not at all, and never believed unread."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vitscale.errors import MISSING, VitscaleError
from vitscale.train import checkpoint
from vitscale.train.checkpoint import Progress


def save(run: Path, step: int, best: int | None = None) -> Path:
    weights = {"w": torch.full((3, 2), float(step))}
    return checkpoint.save(
        run, Progress(step=step, best_step=best), weights=weights, optimizer={"w.exp_avg": torch.ones(2)}
    )


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, 7)
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found.progress == Progress(step=7)
    assert torch.equal(found.weights["w"], torch.full((3, 2), 7.0))
    assert torch.equal(found.optimizer["w.exp_avg"], torch.ones(2))
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000007"


def test_the_latest_and_the_best_survive(tmp_path: Path) -> None:
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2)):
        save(tmp_path, step, best)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000002", "step-00000004"]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path) is None


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE])
@pytest.mark.parametrize("damage", ["cut", "altered", "gone"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1, best=1)
    folder = save(tmp_path, 2, best=1)
    file = folder / name
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "altered":
        file.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    else:
        file.unlink()
    with pytest.raises(VitscaleError) as caught:
        checkpoint.load(folder)
    assert caught.value.exit_code == MISSING
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found.progress.step == 1


def test_a_crash_while_writing_leaves_nothing_to_be_taken_for_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    half = tmp_path / "checkpoints" / ".step-00000002.123"
    half.mkdir()
    (half / checkpoint.MODEL).write_bytes(b"half")
    found = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found.progress.step == 1
    save(tmp_path, 3)
    assert not half.exists()


def test_a_checkpoint_of_another_architecture_is_refused_by_its_first_differences(tmp_path: Path) -> None:
    net = nn.Linear(2, 4)
    with pytest.raises(
        VitscaleError, match=r"another architecture \(bias: absent there, \(4,\) here; weight"
    ) as caught:
        checkpoint.load_weights(net, {"weight": torch.zeros(3, 2)}, tmp_path)
    assert caught.value.exit_code == MISSING
