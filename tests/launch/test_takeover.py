"""Sweeps that meet over one folder, on one host and on two that share nothing but files."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from sweeps import VARIES

import tiny
from vitscale.errors import DONE
from vitscale.launch import eventlog, folders

pytestmark = pytest.mark.slow

ANOTHER_HOST = """
import os
from vitscale import files, lease
lease.BEAT = 0.5
if os.environ["ANOTHER_HOST"]:
    lease.kernel = lambda: os.environ["ANOTHER_HOST"]
    def no_locks(file, how):  # a file system whose locks no other host sees; who holds a run cannot be told by them
        pass
    files.fcntl.flock = no_locks
"""
"""Of every process of a sweep: whoever has another name lives on another host, as far as files tell."""

FEW = tiny.STUDY.partition("[[transfer]]")[0].replace("steps = 12", "steps = 300").replace("every = 48", "every = 2400")
STUDY = FEW + '[[transfer]]\ntask = "digits"\nshots = [1]\n'


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("takeover")
    tiny.write(folder, STUDY)
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(ANOTHER_HOST)
    return folder


@pytest.fixture(scope="module")
def undisturbed(base: Path) -> pd.DataFrame:
    assert start(base, "").wait(timeout=300) == DONE
    return rows(base)


@pytest.fixture
def folder(base: Path, undisturbed: pd.DataFrame, tmp_path: Path) -> Path:
    """The same study and data, nothing run."""
    assert len(undisturbed)
    for name in ("train", "test", "site"):
        shutil.copytree(base / name, tmp_path / name)
    shutil.copy(base / "study.toml", tmp_path)
    return tmp_path


def start(folder: Path, host: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "ANOTHER_HOST": host, "PYTHONPATH": path}
    words = [sys.executable, "-m", "vitscale", "sweep", "study.toml", "--jobs", "1", "--threads", "1"]
    with (folder / f"out-{host}.txt").open("a") as out:
        return subprocess.Popen(words, cwd=folder, env=environment, stdout=out, stderr=out, text=True)


def rows(folder: Path) -> pd.DataFrame:
    frame = pd.read_parquet(folder / "results" / "study").drop(columns=VARIES)
    return frame.sort_values(["run_id", "task", "metric", "shots", "draw"]).reset_index(drop=True)


def until(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def working(folder: Path) -> list[tuple[Path, int]]:
    """(run, worker) of pre-trainings that have taken a step."""
    found = []
    for run in folder.glob("runs/*"):
        holder = folders.lease.holder(run)
        if eventlog.last_event(run) and not folders.result(run) and holder is not None and holder.pid:
            found.append((run, holder.pid))
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def assert_published_once(folder: Path, undisturbed: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(rows(folder), undisturbed)
    for events in folder.glob("runs/*/events.jsonl"):
        assert events.read_text().count('"event": "done"') == 1


def test_two_hosts_at_once_publish_each_run_once_and_one_takes_over_when_the_other_dies(
    folder: Path, undisturbed: pd.DataFrame
) -> None:
    sweeps = {host: start(folder, host) for host in ("one", "two")}
    until(lambda: working(folder))
    ((_, worker),) = working(folder)
    dead = next(host for host, sweep in sweeps.items() if parent(worker) == sweep.pid)
    for pid in (worker, sweeps[dead].pid):
        os.kill(pid, signal.SIGKILL)
    survivor = sweeps["two" if dead == "one" else "one"]
    assert [sweeps[dead].wait(timeout=60), survivor.wait(timeout=300)] == [-signal.SIGKILL, DONE]
    assert_published_once(folder, undisturbed)


def test_a_worker_that_was_stopped_and_taken_over_publishes_nothing(folder: Path, undisturbed: pd.DataFrame) -> None:
    first = start(folder, "")
    until(lambda: working(folder))
    ((run, worker),) = working(folder)
    os.kill(worker, signal.SIGSTOP)
    os.kill(first.pid, signal.SIGSTOP)
    assert start(folder, "").wait(timeout=300) == DONE
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "log.txt"}
    os.kill(worker, signal.SIGCONT)
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(timeout=120) == DONE
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "log.txt"}
    assert after == before
    assert "was taken over" in (run / "log.txt").read_text()
    assert_published_once(folder, undisturbed)
