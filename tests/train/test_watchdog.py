"""A run that does not move is ended, says where it stood, and can go on; one that moves shows it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from vitscale.errors import DONE, RUN_FAILED
from vitscale.launch import eventlog
from vitscale.processes import Together, first_failure
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.worker import work

Make = Callable[..., RunDir]

STUCK = """
import os, sys, threading
from vitscale.train import checkpoint, pretrain, upstream, worker
module = {module}
original = module.{function}
def stuck(*arguments, **named):
    if {condition} and os.environ.get("RANK", "{rank}") == "{rank}":
        threading.Event().wait()
    return original(*arguments, **named)
module.{function} = stuck
worker.leave(worker.main(sys.argv[1:]))
"""
"""A worker that waits for ever in a function of its own."""


def stuck(run: RunDir, module: str, function: str, *, condition: str, rank: int = 0) -> list[str]:
    script = STUCK.format(module=module, function=function, condition=condition, rank=rank)
    return [sys.executable, "-c", script, str(run.folder)]


def test_work_shows_that_it_moves(rundir: Make) -> None:
    run = rundir()
    assert eventlog.silent_seconds(run.folder) is None
    assert work(run, Stop()) == DONE
    silent = eventlog.silent_seconds(run.folder)
    assert silent is not None
    assert silent < 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "function", "condition", "said"),
    [
        (
            "upstream.Upstream",
            "batch",
            "arguments[1] == 5",
            "nothing moved for 2 s: it was waiting for the data of step 6",
        ),
        (
            "checkpoint",
            "save",
            "True",
            "nothing moved for 12 s: it was saving the checkpoint of step",
        ),  # which may be slow
    ],
)
def test_a_run_that_does_not_move_ends_and_says_what_it_waited_for(
    rundir: Make, module: str, function: str, condition: str, said: str
) -> None:
    run = rundir(stall=2.0)
    command = stuck(run, module, function, condition=condition)
    assert subprocess.run(command, timeout=120, check=False).returncode == RUN_FAILED
    reason = (run.result() or {})["reason"]
    assert reason.startswith(said)
    assert (run.result() or {})["failure"] == "time"
    log = (run.folder / "log.txt").read_text()
    assert "Current thread" in log
    assert "in stuck" in log
    (run.folder / "result.json").unlink()
    assert work(RunDir(run.folder), Stop()) == DONE


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_several_processes_end_when_one_of_them_does_not_move(rundir: Make, rank: int) -> None:
    """The one that holds the others up says so, whoever notices first."""
    run = rundir(stall=2.0)
    command = stuck(run, "upstream.Upstream", "batch", condition="arguments[1] == 5", rank=rank)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    crew = Together({number: start(command, number, port) for number in range(2)})
    assert first_failure(crew.wait()) == (rank, RUN_FAILED)
    assert (run.result() or {})["reason"].startswith("nothing moved for 2 s: it was waiting for the data of step 6")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_cannot_even_say_so_is_named_by_its_launcher(rundir: Make, rank: int) -> None:
    run = rundir("recipe.steps=100000", stall=3.0)
    command = [sys.executable, "-m", "vitscale.train.spawn", "2", str(run.folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as launcher:
        wait_for(lambda: eventlog.last_event(run.folder) is not None, launcher)
        workers = psutil.Process(launcher.pid).children()
        (frozen,) = (worker for worker in workers if worker.environ()["RANK"] == str(rank))
        frozen.suspend()
        _, said = launcher.communicate(timeout=120)
    reason = (run.result() or {})["reason"]
    assert f"rank {rank} on {socket.gethostname()} stood still, and did not end with the others" in said
    assert reason.startswith(f"rank {rank} on {socket.gethostname()} stood still")
    assert "nothing moved for 3 s" in reason
    assert (run.result() or {})["failure"] == "time"


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)


def start(command: list[str], rank: int, port: int) -> subprocess.Popen[bytes]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return subprocess.Popen(command, env={**os.environ, **{key: str(value) for key, value in place.items()}})
