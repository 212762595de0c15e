"""Checkpoints: written whole or not at all, and never believed unread."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from vitscale.errors import MISSING, VitscaleError
from vitscale.failures import Failure
from vitscale.train import checkpoint, keeping
from vitscale.train.checkpoint import Checkpoint, NotSaved, Progress
from vitscale.train.keeping import Keep


def save(run: Path, step: int, best: int | None = None, *, keep: Keep = Keep()) -> Path:  # noqa: B008  # frozen
    weights = {"w": torch.full((3, 2), float(step))}
    optimizer = {"w.exp_avg": torch.ones(2)}
    return keeping.save(run, Progress(step=step, best_step=best), weights=weights, optimizer=optimizer, keep=keep)


def newest(run: Path) -> Checkpoint:
    folder = keeping.newest(run)
    assert folder is not None
    return checkpoint.load(folder)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path, 7)
    found = newest(tmp_path)
    assert found.progress == Progress(step=7)
    assert torch.equal(found.weights["w"], torch.full((3, 2), 7.0))
    assert torch.equal(found.optimizer["w.exp_avg"], torch.ones(2))
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000007"


def kept(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def test_the_last_two_and_the_best_survive(tmp_path: Path) -> None:
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        save(tmp_path, step, best)
    assert kept(tmp_path) == [2, 4, 5]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000005"


def test_the_last_n_and_every_milestone_survive(tmp_path: Path) -> None:
    for step in range(1, 12):
        save(tmp_path, step, keep=Keep(last=3, every=4))
    assert kept(tmp_path) == [4, 8, 9, 10, 11]


@pytest.mark.parametrize("every", [None, 5])
def test_milestones_survive_attempts_that_are_told_of_others(tmp_path: Path, every: int | None) -> None:
    """Also one that is saved again, or told what came of its validation."""
    for step in range(1, 5):
        save(tmp_path, step, keep=Keep(last=1, every=2))
    keep = Keep(last=1, every=every)
    save(tmp_path, 4, keep=keep)
    keeping.amend(tmp_path, Progress(step=4, best_step=4), keep=keep, check=lambda: None)
    assert newest(tmp_path).progress.best_step == 4
    for step in range(6, 9):
        save(tmp_path, step, keep=keep)
    assert kept(tmp_path) == [2, 4, 8]


def test_the_best_until_each_checkpoint_that_survives_does_so_too(tmp_path: Path) -> None:
    best = {3: 3, 10: 3, 12: 12, 14: 12, 20: 20, 21: 20}
    for step, until_then in best.items():
        save(tmp_path, step, until_then, keep=Keep(last=1, every=10))
    assert kept(tmp_path) == [3, 10, 20, 21]  # 12 and 14 are nobody's any more
    for step in kept(tmp_path):
        assert best[step] in kept(tmp_path)


def test_what_was_put_aside_for_the_same_step_comes_back_if_the_new_one_never_had_its_name(tmp_path: Path) -> None:
    final = save(tmp_path, 4)
    final.rename(final.with_name(".step-00000004.aside"))  # and here the process died
    assert newest(tmp_path).progress.step == 4
    save(tmp_path, 4, best=4)
    assert newest(tmp_path).progress.best_step == 4
    assert [path.name for path in final.parent.iterdir() if path.name.startswith(".")] == []


def test_what_was_put_aside_is_the_newest_again_where_there_are_others(tmp_path: Path) -> None:
    save(tmp_path, 2)
    final = save(tmp_path, 4)
    final.rename(final.with_name(".step-00000004.aside"))
    assert newest(tmp_path).progress.step == 4


def test_what_was_passed_over_does_not_take_the_place_of_what_is_written_after_it(tmp_path: Path) -> None:
    for step in (3, 6, 9):
        save(tmp_path, step, keep=Keep(last=3))
    for step in (4, 5):
        save(tmp_path, step, keep=Keep(last=1, damaged=frozenset({6, 9})))
    assert kept(tmp_path) == [5]


def test_whole_checkpoints_whose_best_one_is_damaged_stay(tmp_path: Path) -> None:
    """They are not gone on from, as the best of the run may be the one that is lost; whoever has a copy of it can."""
    for step, best in ((2, 2), (4, 4), (6, 4), (8, 4), (9, 4)):
        save(tmp_path, step, best, keep=Keep(last=2, every=2))
    weights = tmp_path / "checkpoints" / "step-00000004" / checkpoint.MODEL
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    passed: list[int] = []
    start = keeping.newest(tmp_path, with_best=True, passed_over=lambda step, _: passed.append(step))
    assert start == checkpoint.folder_of(tmp_path, 2)
    assert passed == [4]  # once, and not those that name it
    weights.write_bytes(data)
    assert keeping.newest(tmp_path, with_best=True) == checkpoint.folder_of(tmp_path, 9)
    weights.write_bytes(data[:-1])
    save(tmp_path, 3, 2, keep=Keep(last=2, every=2, damaged=frozenset(passed)))
    assert kept(tmp_path) == [2, 3, 4, 6, 8, 9]
    weights.write_bytes(data)
    assert keeping.newest(tmp_path, with_best=True) == checkpoint.folder_of(tmp_path, 3)  # what is lost is counted


@pytest.mark.parametrize("name", [checkpoint.STATE, checkpoint.MODEL])
def test_what_would_never_be_read_to_an_end_is_damage(tmp_path: Path, name: str) -> None:
    for step in (1, 2):
        save(tmp_path, step, keep=Keep(last=2))
    path = tmp_path / "checkpoints" / "step-00000002" / name
    path.unlink()
    os.mkfifo(path)
    assert newest(tmp_path).progress.step == 1


def test_a_state_that_is_nested_without_end_is_damage(tmp_path: Path) -> None:
    (save(tmp_path, 1) / checkpoint.STATE).write_text("[" * 100_000)
    assert keeping.newest(tmp_path) is None


@pytest.mark.parametrize("state", ["null", '{"progress": {"best_step": 1.5}}', '{"progress": 7}', "{"])
def test_a_damaged_one_that_is_only_kept_is_in_no_checkpoint_s_way(tmp_path: Path, state: str) -> None:
    for step in (4, 5):
        save(tmp_path, step, keep=Keep(every=4))
    (tmp_path / "checkpoints" / "step-00000004" / checkpoint.STATE).write_text(state)
    save(tmp_path, 6, keep=Keep(last=1, every=4))
    assert kept(tmp_path) == [4, 6]


def test_checkpoints_are_written_in_turn_while_the_caller_goes_on(tmp_path: Path) -> None:
    with keeping.Writer(tmp_path, Keep(last=9)) as writer:
        for step in range(1, 5):
            writer.submit(Progress(step=step), weights={"w": torch.full((3,), float(step))}, optimizer={})
    assert kept(tmp_path) == [1, 2, 3, 4]
    assert newest(tmp_path).weights["w"].tolist() == [4.0] * 3


def test_what_refuses_a_checkpoint_is_said_when_the_writer_is_next_asked(tmp_path: Path) -> None:
    """It fails the run, as more space would not help it; a full disk does not."""
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "step-00000002").write_text("in the way")
    with keeping.Writer(tmp_path, Keep()) as writer:
        writer.submit(Progress(step=2), weights={"w": torch.ones(1)}, optimizer={})
        with pytest.raises(VitscaleError, match="no checkpoint could be written") as caught:
            writer.wait()
    assert (type(caught.value), caught.value.failure) == (VitscaleError, Failure.SETUP)
    assert "space" not in str(caught.value)
    assert newest(tmp_path).progress.step == 1


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, ""), OSError(errno.EDQUOT, ""), SafetensorError("I/O error: (os error 28)")]
)
def test_a_full_disk_is_no_failure_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(NotSaved, match="free some disk space"):
        save(tmp_path, 1)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert keeping.newest(tmp_path) is None


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
    found = newest(tmp_path)
    assert found.progress.step == 1


@pytest.mark.parametrize("wrong", [{"step": 1}, {"skipped": 3}, {"best_step": None}])
def test_a_number_of_the_state_that_was_altered_is_noticed(tmp_path: Path, wrong: dict[str, int | None]) -> None:
    save(tmp_path, 1, best=1)
    state = save(tmp_path, 2, best=1) / checkpoint.STATE
    told = json.loads(state.read_text())
    state.write_text(json.dumps({**told, "progress": {**told["progress"], **wrong}}))
    passed: list[int] = []
    found = keeping.newest(tmp_path, passed_over=lambda step, _: passed.append(step))
    assert found == checkpoint.folder_of(tmp_path, 1)
    assert passed == [2]


@pytest.mark.parametrize("altered", [{"schema": checkpoint.SCHEMA + 1}, {"run": "another"}])
def test_what_was_altered_does_not_pass_for_another_run_s_or_a_later_version_s(
    tmp_path: Path, altered: dict[str, Any]
) -> None:
    save(tmp_path, 1)
    state = save(tmp_path, 2) / checkpoint.STATE
    state.write_text(json.dumps({**json.loads(state.read_text()), **altered}))
    assert newest(tmp_path).progress.step == 1


def test_what_a_process_of_the_same_number_has_left_half_written_is_in_nobody_s_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getpid", lambda: 7)

    def dies(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_put", dies)
        with pytest.raises(SystemExit):
            save(tmp_path, 1)
    assert list((tmp_path / "checkpoints").iterdir())
    assert save(tmp_path, 1).name == "step-00000001"


def test_checkpoints_from_before_their_state_had_a_checksum_are_read(tmp_path: Path) -> None:
    state = save(tmp_path, 2, best=1) / checkpoint.STATE
    told = json.loads(state.read_text())
    del told["seal"]
    state.write_text(json.dumps({**told, "schema": checkpoint.SEALED - 1}))
    assert newest(tmp_path).progress.step == 2
    state.write_text(json.dumps(told))
    assert keeping.newest(tmp_path) is None


def test_a_crash_while_writing_leaves_nothing_to_be_taken_for_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    half = tmp_path / "checkpoints" / ".step-00000002.123"
    half.mkdir()
    (half / checkpoint.MODEL).write_bytes(b"half")
    found = newest(tmp_path)
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
