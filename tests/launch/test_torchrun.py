"""A run that torchrun has started ends with it, and says why where it fails."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import tiny
from vitscale.launch import eventlog, folders

# Several processes of torch and DeepSpeed each.
pytestmark = pytest.mark.slow

SMALL = ("model.width=16", "model.depth=2", "model.mlp=32", "model.heads=2", "data.resolution=28")
ENDLESS = ("recipe.warmup_steps=2", "recipe.batch_size=40", "recipe.steps=1_000_000")
HANDLED = "SIGTERM,SIGINT,SIGUSR1,SIGUSR2"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchrun")
    tiny.write(folder)
    return folder


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def processes(words: str) -> list[int]:
    """Those with these words in their command line, in the order in which they began."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            if words in path.read_bytes().decode(errors="replace").replace("\0", " "):
                found.append(int(path.parent.name))
    return sorted(found)


def rank_of(pid: int) -> int:
    pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return int(dict(pair.split("=", 1) for pair in pairs if "=" in pair)["RANK"])


@pytest.fixture
def torchrun(base: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts two processes on a run in `tmp_path/runs` that would take hours, and returns once it is under way."""

    def start(*options: str) -> subprocess.Popen[str]:
        settings = [word for setting in (*SMALL, *ENDLESS) for word in ("--set", setting)]
        places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
        command += ["-m", "vitscale", "pretrain", "--model", "ViT-Ti/7", "--data", str(base / "train"), *settings]
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen([*command, "--threads", "1", *places], stdout=said, stderr=said, text=True)
        runs = tmp_path / "runs"
        until(lambda: any((eventlog.last_event(run) or {}).get("step") for run in runs.glob("*")) or process.poll())
        assert process.poll() is None, (tmp_path / "said").read_text()
        return process

    yield start
    for pid in processes(str(tmp_path)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGKILL, ()),
        (signal.SIGUSR1, ()),  # of which it dies
        (signal.SIGUSR2, ("--signals-to-handle", HANDLED)),
    ],
)
def test_the_end_of_torchrun_is_a_checkpoint_and_no_orphans(
    torchrun: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals, options: tuple[str, ...]
) -> None:
    process = torchrun(*options)
    (run,) = (tmp_path / "runs").iterdir()
    process.send_signal(number)
    process.wait(timeout=60)
    until(lambda: not processes(str(tmp_path)), 60)
    assert (run / "checkpoints" / "latest").is_file()
    assert folders.result(run) is None
    assert "stopped; the same command goes on from here" in (tmp_path / "said").read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_two_lines_among_those_of_torchrun(
    torchrun: Callable[..., subprocess.Popen[str]], tmp_path: Path, rank: int
) -> None:
    process = torchrun()
    (run,) = (tmp_path / "runs").iterdir()
    (worker,) = (pid for pid in processes(f"vitscale.train.worker {run}") if rank_of(pid) == rank)
    os.kill(worker, signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    until(lambda: not processes(str(tmp_path)), 60)
    outcome = folders.result(run) or {}
    assert (
        outcome["reason"]
        == f"rank {rank} on {socket.gethostname()}: killed (signal 9): often the machine ran out of memory"
    )
    said = (tmp_path / "said").read_text()
    assert f"error: {outcome['reason']}\nhint: {outcome['hint']}\n" in said
