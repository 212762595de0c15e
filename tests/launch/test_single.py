"""How one run's command takes the end of its worker."""

import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

import tiny
from vitscale import lease
from vitscale.errors import INTERRUPTED, RUN_FAILED, VitscaleError
from vitscale.launch import folders, local, single
from vitscale.launch.local import Worker
from vitscale.launch.machine import Machine, Places
from vitscale.study.load import load
from vitscale.study.plan import plan

Run = Callable[[], bool]


@pytest.fixture
def run_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], Run]:
    """A run whose worker is a shell's word, and leaves behind a process that has the run for so many seconds."""
    job = plan(load(tiny.write(tmp_path), base=tmp_path), {}).jobs[0]
    places = Places(runs=tmp_path / "runs", results=tmp_path / "results")

    def given(word: str, held: float) -> Run:
        class ShortWorker(Worker):
            def __post_init__(self) -> None:
                survivor = ExitStack()
                survivor.enter_context(lease.hold(self.work[0]))
                threading.Timer(held, survivor.close).start()
                self.process = subprocess.Popen(["sh", "-c", word])

        monkeypatch.setattr(single, "Worker", ShortWorker)
        machine = Machine(jobs=1, threads=1)
        return lambda: single.run_single(job, places=places, machine=machine, study="single", say=lambda _: None)

    return given


def outcome(tmp_path: Path) -> dict[str, object] | None:
    (run,) = (tmp_path / "runs").iterdir()
    return folders.result(run)


def test_a_death_is_a_failure_once_the_worker_s_own_processes_are_gone(
    tmp_path: Path, run_with: Callable[[str, float], Run]
) -> None:
    assert not run_with("kill -9 $$", 1.0)()
    assert (outcome(tmp_path) or {})["reason"] == "killed (signal 9): often the machine ran out of memory"


def test_a_death_that_nobody_could_record_is_no_stop(
    tmp_path: Path, run_with: Callable[[str, float], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LET_GO", 0.1)
    with pytest.raises(VitscaleError, match="killed \\(signal 9\\)") as caught:
        run_with("kill -9 $$", 1.0)()
    assert caught.value.exit_code == RUN_FAILED
    assert outcome(tmp_path) is None


def test_a_worker_that_a_signal_has_stopped_is_a_stop(tmp_path: Path, run_with: Callable[[str, float], Run]) -> None:
    assert run_with(f"exit {INTERRUPTED}", 0.0)()
    assert outcome(tmp_path) is None
