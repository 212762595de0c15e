"""A run that is asked to stop loses no whole step and keeps no half one, wherever the signal meets it."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stopping import StopAfter
from vitscale.data import images
from vitscale.errors import DONE, INTERRUPTED
from vitscale.launch.local import Worker
from vitscale.processes import STOP_SIGNALS
from vitscale.train import checkpoint, keeping, reader, upstream
from vitscale.train.objective import Batch
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.worker import work

Make = Callable[..., RunDir]


def latest(run: RunDir) -> checkpoint.Progress:
    folder = keeping.newest(run.folder)
    assert folder is not None
    return checkpoint.load(folder).progress


def validations(run: RunDir) -> dict[int, float]:
    return {event["step"]: event["accuracy"] for event in run.events() if event["event"] == "validate"}


def equal(one: RunDir, other: RunDir) -> bool:
    ours, theirs = (load_file(next(run.folder.glob("checkpoints/step-*12")) / checkpoint.MODEL) for run in (one, other))
    return all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_half_accumulated_step_is_dropped(rundir: Make) -> None:
    """Its random draws are, too: the step is computed again, with the same dropout."""
    settings = ("recipe.dropout=0.1", "recipe.keep=last")
    undisturbed, stopped = (rundir(*settings, runs=name, micro_batch=4) for name in ("a", "b"))
    assert work(undisturbed, Stop()) == DONE
    # Four looks a step: 1 before the first, 3 + 1 of the first, then in the second between its third and fourth part.
    assert work(stopped, StopAfter(7)) == INTERRUPTED
    assert latest(stopped).step == 1
    assert work(stopped, Stop()) == DONE
    assert equal(stopped, undisturbed)


def test_a_validation_that_was_cut_short_comes_before_the_next_step(rundir: Make) -> None:
    undisturbed, stopped = (rundir("recipe.keep=best", runs=name) for name in ("a", "b"))
    assert work(undisturbed, Stop()) == DONE
    assert work(stopped, StopAfter(3)) == INTERRUPTED  # before the first step, after two, and in the third's validation
    assert latest(stopped) == checkpoint.Progress(
        step=3, validation_due=True, device_seconds=latest(stopped).device_seconds
    )
    assert validations(stopped) == {}
    assert [event["step"] for event in stopped.events() if event["event"] == "step"][-1] == 3
    assert work(stopped, Stop()) == DONE
    assert validations(stopped) == validations(undisturbed)
    assert (stopped.result() or {})["checkpoint"] == (undisturbed.result() or {})["checkpoint"]


@pytest.mark.parametrize("looks", [8, 10])  # after the second step, and in the third
def test_the_last_line_of_a_stopped_run_is_of_the_step_that_was_saved(rundir: Make, looks: int) -> None:
    run = rundir("recipe.keep=last", micro_batch=4)
    assert work(run, StopAfter(looks)) == INTERRUPTED
    assert latest(run).step == 2
    assert [event["step"] for event in run.events() if event["event"] == "step"] == [1, 2]


def test_a_stop_before_the_first_step_trains_nothing(rundir: Make) -> None:
    run = rundir()
    assert work(run, StopAfter(0)) == INTERRUPTED
    assert not any(event["event"] == "step" for event in run.events())
    assert run.result() is None


def test_a_signal_is_heeded_while_data_hang(rundir: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer is waited for longer than a scheduler waits."""
    undisturbed, stopped = (rundir("recipe.keep=last", runs=name) for name in ("a", "b"))
    assert work(undisturbed, Stop()) == DONE
    stop, answer, batch = Stop(), threading.Event(), upstream.Upstream.batch

    def hangs(data: upstream.Upstream, step: int) -> Batch:
        if step == 5:
            threading.Timer(2.0, lambda: setattr(stop, "requested", True)).start()  # the step before is long done
            answer.wait(60)
        return batch(data, step)

    with monkeypatch.context() as patched:
        patched.setattr(upstream.Upstream, "batch", hangs)
        patched.setattr(reader, "PATIENCE", 0.2)
        assert work(stopped, stop) == INTERRUPTED
    answer.set()
    assert latest(stopped).step == 5
    assert work(stopped, Stop()) == DONE
    assert equal(stopped, undisturbed)


def test_a_signal_is_heeded_while_data_hang_in_a_validation(rundir: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed, stopped = (rundir("recipe.keep=last", runs=name) for name in ("a", "b"))
    assert work(undisturbed, Stop()) == DONE
    stop, answer, batch = Stop(), threading.Event(), images.Images.eval_batch

    def hangs(data: images.Images, *arguments: Any) -> Any:
        threading.Timer(0.5, lambda: setattr(stop, "requested", True)).start()
        answer.wait(10)
        return batch(data, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(images.Images, "eval_batch", hangs)
        patched.setattr(reader, "PATIENCE", 0.2)
        assert work(stopped, stop) == INTERRUPTED
    answer.set()
    assert validations(stopped) == {}
    assert latest(stopped).validation_due
    assert work(stopped, Stop()) == DONE
    assert validations(stopped) == validations(undisturbed)
    assert equal(stopped, undisturbed)


@pytest.fixture
def listening() -> Iterator[Stop]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stop = Stop()
    stop.listen()
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_while_a_checkpoint_is_saved_leaves_it_whole(
    rundir: Make, listening: Stop, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    run = rundir("recipe.keep=best")
    save = checkpoint.save_file

    def interrupted(*arguments: Any) -> None:
        os.kill(os.getpid(), number)
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    assert work(run, listening) == INTERRUPTED
    assert latest(run).step >= 3  # the first validation is the best so far; the steps go on while it is written
    assert run.result() is None


def start(run: RunDir, devices: int) -> Worker:
    return Worker([run.folder], threads=1, devices=devices)


def wait_for(condition: Callable[[], bool], worker: Worker) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert worker.ended() is None
        assert time.monotonic() < end
        time.sleep(0.02)


def workers_of(worker: Worker) -> list[int]:
    children = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text().split()
    return [int(pid) for pid in children if "vitscale.train.worker" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_to_one_of_several_processes_stops_all_at_the_same_step(rundir: Make, number: signal.Signals) -> None:
    run = rundir("recipe.steps=100_000", "recipe.keep=last", "recipe.validate_every=1_600_000", micro_batch=2)
    worker = start(run, 2)
    wait_for(lambda: any(event["event"] == "step" for event in run.events()), worker)
    os.kill(workers_of(worker)[1], number)
    assert worker.process.wait(timeout=30) == INTERRUPTED
    assert latest(run).step > 0
    assert run.result() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_a_process_that_waits_for_one_that_never_comes_ends_it_at_once(
    rundir: Make, number: signal.Signals
) -> None:
    run = rundir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    told = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    worker = Worker([run.folder], threads=1, environment=told)
    wait_for(lambda: is_listening(int(port)), worker)
    time.sleep(0.5)  # until it waits for the other
    began = time.monotonic()
    worker.process.send_signal(number)
    assert worker.process.wait(timeout=30) == INTERRUPTED
    assert time.monotonic() - began < 20  # it would wait for five minutes
    assert run.result() is None


def is_listening(port: int) -> bool:
    return f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text() or (
        f":{port:04X} 00000000000000000000000000000000:0000 0A" in Path("/proc/net/tcp6").read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_while_processes_start_is_no_failure(rundir: Make, number: signal.Signals) -> None:
    run = rundir()
    worker = start(run, 2)
    wait_for(lambda: len(workers_of(worker)) == 2, worker)
    worker.process.send_signal(number)
    assert worker.process.wait(timeout=60) == INTERRUPTED
    assert run.result() is None
    assert not (run.folder / "checkpoints").exists()
