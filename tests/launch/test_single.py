"""How one run's command takes the end of its worker."""

import json
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import typer

import tiny
from vitscale import lease
from vitscale.cli.pretrain import run_one
from vitscale.errors import INTERRUPTED, RUN_FAILED, VitscaleError
from vitscale.launch import folders, local, single
from vitscale.launch.local import Worker
from vitscale.launch.machine import Machine, Places
from vitscale.study.load import load
from vitscale.study.plan import plan

Run = Callable[..., bool]


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
                self.process = subprocess.Popen(["sh", "-c", word], cwd=self.work[0])

        monkeypatch.setattr(single, "Worker", ShortWorker)
        machine = Machine(jobs=1, threads=1)

        def run(say: Callable[[str], None] = lambda _: None) -> bool:
            return single.run_single(job, places=places, machine=machine, study="single", say=say)

        return run

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


def test_a_damaged_checkpoint_is_said_once_of_a_run_that_ends_before_its_first_line(
    run_with: Callable[[str, float], Run],
) -> None:
    begun = json.dumps({"event": "start", "attempt": 2, "time": 0})
    damaged = json.dumps({"event": "damaged_checkpoint", "step": 8, "begins": 4, "reason": "cut short", "time": 1})
    word = f"printf '%s\\n' '{begun}' '{damaged}' >> events.jsonl; exit {INTERRUPTED}"
    said: list[str] = []
    assert run_with(word, 0.0)(said.append)
    (line,) = (line for line in said if "damaged" in line)
    assert line.endswith("checkpoint 8 was damaged: trained again from step 4")


@pytest.mark.parametrize(("saved", "words"), [(True, "goes on from here"), (False, "begins again")])
def test_a_run_that_was_stopped_is_said_to_go_on_from_what_it_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], saved: bool, words: str
) -> None:
    job = plan(load(tiny.write(tmp_path), base=tmp_path), {}).jobs[0]
    if saved:
        (tmp_path / job.id / "checkpoints" / "step-00000004").mkdir(parents=True)
    monkeypatch.setattr(single, "run_single", lambda *_, **__: True)
    with pytest.raises(typer.Exit):
        run_one(job, tmp_path, tmp_path / "results", Machine(jobs=1, threads=1))
    assert f"stopped; the same command {words}" in capsys.readouterr().err
