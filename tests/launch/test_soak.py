"""Kills at random moments, full and read-only disks: what a sweep leaves in the end is what an undisturbed one leaves.

`make soak` kills a hundred times; `VITSCALE_KILLS` is how often.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from sweeps import start

import tiny
from vitscale.errors import DONE, INTERRUPTED, MISSING, RUN_FAILED
from vitscale.launch import folders
from vitscale.launch.sweep import current_plan
from vitscale.results.store import parts
from vitscale.study.load import load

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("VITSCALE_KILLS", "20"))
STUDY = tiny.STUDY.replace("steps = 12", 'schedule = "constant"\ncooldown = 0.25')
STUDY = STUDY.replace("validate_every = 48", "validate_every = 800").replace("shots = [1, 5]", "shots = [1]")
STUDY = STUDY.replace("steps = 4", "steps = 10").replace("seeds = 2", "seeds = 1")
STUDY += '[[axes]]\n"recipe.steps" = [60, 140]\n'
"""A trunk with two branches, dropout, few-shot and fine-tuned transfers, baselines."""
ALONE = STUDY.partition("[[transfer]]")[0].replace("dropout = 0.1", "dropout = 0.0")
ALONE = ALONE.replace('schedule = "constant"\ncooldown = 0.25', "steps = 200")
"""A run of two processes, whose draws for dropout are each one's own: only the first goes on with its own."""
OFTEN = ("--save-every", "0.5", "--retry-failed")
TWO = ("--devices", "2", *OFTEN)
FREE = ["attempt", "device_seconds", "mfu", "started", "ended", "flops_lost"]
"""Columns in which a disturbed sweep may differ: time, attempts, and what was lost."""
Process = subprocess.Popen[str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soak")
    tiny.write(folder, STUDY)
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return fresh(base, tmp_path)


def fresh(base: Path, folder: Path, text: str = STUDY) -> Path:
    """The same data, a study, nothing run."""
    for name in ("train", "test"):
        shutil.copytree(base / name, folder / name, dirs_exist_ok=True)
    (folder / "study.toml").write_text(text)
    for name in ("runs", "results"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder


def rows(folder: Path) -> pd.DataFrame:
    """What was measured; each attempt that failed is a row beside it."""
    frame = pd.read_parquet(folder / "results" / "study")
    done = frame[frame["status"] == "done"]
    return done.sort_values(["run_id", "task", "metric", "shots", "draw"]).reset_index(drop=True)


def assert_same_but_for_time(folder: Path, expected: pd.DataFrame) -> None:
    """All that was measured, and what it cost; what was computed again is counted on top, and no failure has a value."""
    found = rows(folder)
    pd.testing.assert_frame_equal(
        found.drop(columns=[*FREE, "flops_eval"]), expected.drop(columns=[*FREE, "flops_eval"]), check_dtype=False
    )
    assert (found["flops_eval"] >= expected["flops_eval"]).all()
    assert (found["device_seconds"] > 0).all()
    lost = found[found["protocol"] == "pretrain"]["flops_lost"]
    assert (lost >= 0).all(), "of each pre-training it is known"
    frame = pd.read_parquet(folder / "results" / "study")
    failed = frame[frame["status"] == "failed"]
    assert failed["value"].isna().all()
    assert failed["reason"].notna().all()
    assert set(failed["failure"]) <= {"killed", "setup", "code"}
    assert not frame.duplicated(["run_id", "attempt", "task", "metric", "shots", "draw"]).any()


def ended(process: Process) -> tuple[int, str]:
    _, err = process.communicate(timeout=200)
    return process.returncode, err


def descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [each for child in map(int, children) for each in (child, *descendants(child))]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def disturb(process: Process, chance: random.Random) -> None:
    """Kills the sweep, a worker, one of the processes of a run, or all; or asks all to stop."""
    below = descendants(process.pid)
    who = chance.choice(["sweep", "one", "one", "all", "stop"]) if below else "sweep"
    victims = {"sweep": [process.pid], "one": [chance.choice(below or [0])]}.get(who, [process.pid, *below])
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if who == "stop" else signal.SIGKILL)
    if who == "stop":
        code, err = ended(process)
        # It may just have used up its tries on those that were killed before.
        assert code in (INTERRUPTED, DONE) or (code == RUN_FAILED and "signal 9" in err), err
    if who != "one":
        process.communicate()
        until(lambda: not any(is_alive(pid) for pid in below))


@pytest.mark.parametrize(("text", "options"), [(STUDY, OFTEN), (ALONE, TWO)], ids=["one process", "two processes"])
def test_kills_at_random_moments_leave_what_an_undisturbed_sweep_leaves(
    base: Path, tmp_path: Path, text: str, options: tuple[str, ...]
) -> None:
    code, err = ended(start(fresh(base, tmp_path, text), *options))
    assert code == DONE, err
    expected, chance, kills = rows(tmp_path), random.Random(0), 0
    assert set(expected["role"]) == ({"trunk", "cell", "baseline"} if text is STUDY else {"cell"})
    fresh(base, tmp_path, text)
    while kills < KILLS / 2:
        process = start(tmp_path, *options)
        for _ in range(4):
            try:
                process.communicate(timeout=chance.uniform(0.5, 7.0))
                break
            except subprocess.TimeoutExpired:
                disturb(process, chance)
                kills += 1
        if ended(process)[0] == DONE:
            assert_same_but_for_time(tmp_path, expected)
            fresh(base, tmp_path, text)
    code, err = ended(start(tmp_path, *options))
    assert code == DONE, err
    assert_same_but_for_time(tmp_path, expected)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that is soon full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_that_is_full_when_a_result_is_written_loses_none(folder: Path, small_disk: Path) -> None:
    (job, *_) = current_plan(load(folder / "study.toml", base=folder), folder / "runs").jobs
    where = ("--results", str(small_disk), "--only", job.id)
    process = start(folder, *where)
    until(lambda: (small_disk / "study" / "_plan.json").is_file())
    with (small_disk / "others").open("wb", buffering=0) as others, suppress(OSError):
        while others.write(bytes(4096)):
            pass
    code, err = ended(process)
    assert code == MISSING
    error, hint = err.splitlines()[-2:]
    assert error == f"error: {small_disk}: no space left to write to"
    assert hint == "hint: free some space and run the same command again: what is whole is kept"
    assert not parts(small_disk / "study")
    assert folders.state(folder / "runs" / job.id) == "done", "the run itself is whole"
    (small_disk / "others").unlink()
    code, err = ended(start(folder, *where))
    assert code == DONE, err
    written = pd.read_parquet(small_disk / "study")
    assert set(written["status"]) == {"done"}
    assert set(written["run_id"]) == {job.id, *(id_ for _, id_ in job.branches)}, "of a trunk its branches, too"


def test_runs_on_a_read_only_disk_are_two_lines(folder: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    code, err = ended(start(folder, "--runs", str(small_disk)))
    assert code == MISSING
    error, hint = err.splitlines()[-2:]
    assert error == f"error: {small_disk}: Read-only file system"
    assert hint == "hint: choose a folder that you may write to"
