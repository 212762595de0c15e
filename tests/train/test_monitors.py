"""What TensorBoard and W&B are shown is what the log says, each step once; and neither is needed to train."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stopping import StopAfter
from vitscale.errors import DONE, INTERRUPTED, MISSING
from vitscale.launch.local import Worker
from vitscale.train.monitors import Monitors, scalars
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.worker import work

Make = Callable[..., RunDir]


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, number) of all event files of a folder, as TensorBoard reads them."""
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def logged(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for line in run.events():
        facts = {key: value for key, value in line.items() if key not in ("event", "time")}
        for tag, value in scalars(line["event"], facts).items():
            found.setdefault(tag, []).append((line["step"], value))
    return found


def step_of(number: int, loss: float | None) -> dict[str, Any]:
    keys = ("grad_norm", "lr", "images_per_second", "memory_peak")
    return {"step": number, "loss": loss, "mfu": None, "seconds": {"wait": 0.5}, **dict.fromkeys(keys, 1.0)}


def test_tensorboard_is_shown_what_the_log_says_over_all_attempts(rundir: Make, tmp_path: Path) -> None:
    run = rundir(tensorboard=str(tmp_path / "board"))
    assert work(run, StopAfter(5)) == INTERRUPTED
    assert work(run, Stop()) == DONE
    assert [path.name for path in (tmp_path / "board").iterdir()] == [run.id]
    found = shown(tmp_path / "board" / run.id)
    assert found.keys() >= {"train/loss", "train/grad_norm", "train/lr", "speed/images_per_second", "speed/mfu"}
    assert found.keys() >= {"memory/peak_bytes", "seconds/wait", "seconds/backward", "upstream_val/accuracy"}
    expected = logged(run)
    assert found.keys() == expected.keys()
    for tag, points in expected.items():
        assert found[tag] == [(step, pytest.approx(value, rel=1e-6)) for step, value in points]
    assert [step for step, _ in found["upstream_val/accuracy"]] == [3, 6, 9, 12]


def test_steps_that_are_computed_again_stand_there_once_with_their_last_numbers(rundir: Make, tmp_path: Path) -> None:
    run = rundir(tensorboard=str(tmp_path))
    with Monitors(run, 0) as first:
        for step in (1, 2, 3, 4):
            first.log("step", step_of(step, 10.0 * step))
        first.log("validate", {"step": 4, "accuracy": 0.1})
    with Monitors(run, 2) as second:
        second.log("step", step_of(3, 31.0))
        second.log("step", step_of(5, 51.0))
    found = shown(tmp_path / run.id)
    assert found["train/loss"] == [(1, 10.0), (2, 20.0), (3, 31.0), (5, 51.0)]
    assert "upstream_val/accuracy" not in found or not found["upstream_val/accuracy"]


def test_a_number_that_could_not_be_measured_is_left_out() -> None:
    assert scalars("step", step_of(3, None)).keys().isdisjoint({"train/loss", "speed/mfu"})
    assert scalars("step", step_of(3, float("nan")))["seconds/wait"] == 0.5
    assert "train/loss" not in scalars("step", step_of(3, float("inf")))
    assert scalars("bad_sample", {"shard": "a", "key": "b", "reason": "c"}) == {}


def test_without_the_options_nothing_is_opened(rundir: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitscale.train.monitors._opened", None)
    with Monitors(rundir(), 0) as monitors:
        monitors.log("step", step_of(1, 1.0))


def test_a_process_that_does_not_write_opens_nothing(rundir: Make, tmp_path: Path) -> None:
    run = RunDir(rundir(tensorboard=str(tmp_path / "board")).folder, number=1)
    with Monitors(run, 0) as monitors:
        monitors.log("step", step_of(1, 1.0))
    assert not (tmp_path / "board").exists()


def test_a_folder_that_cannot_be_made_fails_the_run_in_words(rundir: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = rundir(tensorboard=str(tmp_path / "file" / "board"))
    assert work(run, Stop()) == MISSING
    result = run.result()
    assert result is not None
    assert "--tensorboard" in result["reason"]
    assert "cannot be opened" in result["reason"]
    assert result["hint"] == "TensorBoard needs a folder that can be written"


def test_a_service_that_fails_does_not_end_the_training(
    rundir: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr("deepspeed.monitor.tensorboard.TensorBoardMonitor.write_events", fail)
    assert work(rundir(tensorboard=str(tmp_path / "board")), Stop()) == DONE
    assert "ConnectionError: gone" in capfd.readouterr().out


def records(path: Path) -> Iterator[bytes]:
    """Of W&B's file of a run: LevelDB's log format, blocks of 32 KiB behind a header of 7 bytes."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32_768 - at % 32_768) < 7:  # no room for the head of another record
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part; the others are the first and the middle ones
            yield whole
            whole = b""


@pytest.mark.slow
def test_w_and_b_gets_the_run_under_its_id(rundir: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, read back from what `wandb sync` would send."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = rundir(wandb="studies")
    assert Worker([run.folder], threads=1).process.wait(timeout=200) == DONE
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = run.folder.glob(f"wandb/offline-run-*/run-{run.id}.wandb")
    found = [Record.FromString(data) for data in records(path)]
    (told,) = (record.run for record in found if record.HasField("run"))
    assert (told.run_id, told.display_name, told.project) == (run.id, run.id, "studies")
    assert any(record.HasField("exit") for record in found)  # it was closed, not cut off
    points: dict[str, list[tuple[int, float]]] = {}
    for record in found:
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for tag in items.keys() - {"_step", "_runtime", "_timestamp"}:
            points.setdefault(tag, []).append((items["_step"], items[tag]))
    assert points == logged(run)
