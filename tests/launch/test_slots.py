"""Which GPUs each run sees, and how many runs there are at once; no GPU is needed to know."""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

import tiny
from vitscale.cli import options
from vitscale.errors import MISSING, RUN_FAILED, USAGE, VitscaleError
from vitscale.launch import local_sweep as module
from vitscale.launch.local import Worker
from vitscale.launch.local_sweep import LocalSweep
from vitscale.launch.machine import Machine, Places
from vitscale.launch.slots import Slots, named
from vitscale.study.load import load


class FakeWorker(Worker):
    """Runs nothing: its runs fail after some looks at it."""

    started: ClassVar[list[Mapping[str, str]]] = []
    running: ClassVar[Counter[str]] = Counter()
    most: ClassVar[Counter[str]] = Counter()

    def __post_init__(self) -> None:
        self.looks = 0
        self.gpus = self.environment["CUDA_VISIBLE_DEVICES"].split(",")
        assert len(self.gpus) == self.devices
        self.started.append(self.environment)
        self.running.update(self.gpus)
        for gpu in self.gpus:
            self.most[gpu] = max(self.most[gpu], self.running[gpu])

    def ended(self) -> int | None:
        self.looks += 1
        if self.looks == 3:
            self.running.subtract(self.gpus)
            for folder in self.work:
                outcome = {"status": "failed", "failure": "setup", "reason": "no GPU", "rows": [], "attempt": 1}
                times = {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:00:00+00:00"}
                (folder / "result.json").write_text(json.dumps(outcome | times))
        return RUN_FAILED if self.looks >= 3 else None

    def record_death(self) -> None:
        pass


@pytest.fixture
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., type[FakeWorker]]:
    """Sweeps eight seeds on a machine, and returns what was seen of it."""
    few = tiny.STUDY.partition("[[transfer]]")[0] + f"[[axes]]\nseed = {list(range(8))}\n"
    study = load(tiny.write(tmp_path, few), base=tmp_path)
    monkeypatch.setattr(module, "Worker", FakeWorker)

    def swept(**machine: Any) -> type[FakeWorker]:
        for seen in (FakeWorker.started, FakeWorker.running, FakeWorker.most):
            seen.clear()
        places = Places(runs=tmp_path / "runs", results=tmp_path / "results")
        ended = LocalSweep(study=study, places=places, machine=Machine(threads=1, **machine), say=lambda _: None).run()
        assert ended.failed == 8
        return FakeWorker

    return swept


def test_each_gpu_has_as_many_runs_as_it_may(swept: Callable[..., type[FakeWorker]]) -> None:
    seen = swept(jobs=6, gpus=("0", "1", "5"), per_gpu=2)
    assert seen.most == {"0": 2, "1": 2, "5": 2}
    assert [each["CUDA_VISIBLE_DEVICES"] for each in seen.started[:6]] == ["0", "1", "5", "0", "1", "5"]
    assert len(seen.started) == 8


def test_a_run_of_several_devices_takes_several_different_gpus(swept: Callable[..., type[FakeWorker]]) -> None:
    seen = swept(jobs=3, devices=2, gpus=("0", "1", "2"))
    assert seen.most == {"0": 1, "1": 1}
    assert {each["CUDA_VISIBLE_DEVICES"] for each in seen.started} == {"0,1"}
    shared = Slots(jobs=4, gpus=("0", "1"), per_gpu=2)
    assert [seat.gpus for seat in (shared.take(2), shared.take(2)) if seat] == [("0", "1"), ("0", "1")]
    assert shared.take(1) is None


def test_a_small_run_takes_the_emptiest_gpu_and_gives_it_back() -> None:
    slots = Slots(jobs=4, gpus=("0", "1"), per_gpu=2)
    seats = [slots.take(1) for _ in range(3)]
    assert [seat.gpus for seat in seats if seat] == [("0",), ("1",), ("0",)]
    assert seats[1] is not None
    slots.give_back(seats[1])
    assert (slots.take(1) or pytest.fail("no seat")).gpus == ("1",)


def test_without_gpus_jobs_are_counted() -> None:
    slots = Slots(jobs=2)
    seats = [slots.take(4), slots.take(1)]
    assert [seat.environment for seat in seats if seat] == [{}, {}]
    assert slots.full
    assert slots.take(1) is None


def test_numbers_count_what_a_scheduler_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5a")
    assert named("0,1") == ("4", "GPU-5a")
    assert named("GPU-5a") == ("GPU-5a",)
    for wrong, code in (("2", MISSING), ("0,0", USAGE), (",", USAGE), ("0,a", USAGE)):
        with pytest.raises(VitscaleError) as error:
            named(wrong)
        assert error.value.exit_code == code


def test_what_the_driver_lists_is_there_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VitscaleError, match="this process sees no GPU"):
        named("0")
    driver = tmp_path / "nvidia-smi"
    driver.write_text(
        "#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)'\necho '  MIG 1g Device 0'\necho 'GPU 1: B (UUID: GPU-2)'\n"
    )
    driver.chmod(0o755)
    assert named("1,0") == ("1", "0")
    with pytest.raises(VitscaleError, match="this process sees 2 GPUs"):
        named("2")


def test_cores_are_divided_among_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    machine = options.machine(None, None, gpus="0,1", per_gpu=2)
    assert (machine.jobs, machine.threads, machine.workers, machine.per_gpu) == (4, 4, 4, 2)
    assert machine.told()["per_gpu"] == 2
    assert "gpus" not in machine.told()
    assert options.machine(None, None, gpus="0,1", devices=2).threads == 8
    assert options.machine(None, None, gpus="0,1", per_gpu=2, most=1).threads == 16
    alone = options.machine(1, None)
    assert (alone.threads, alone.workers) == (16, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"per_gpu": 2}, "--per-gpu without GPUs"),
        ({"gpus": "0", "devices": 2}, "--devices 2 needs as many GPUs"),
        ({"gpus": "0,1", "jobs": 3}, "--jobs 3 on 2 places"),
    ],
)
def test_what_does_not_go_together_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(VitscaleError, match=said) as error:
        options.machine(given.pop("jobs", None), None, **given)
    assert error.value.exit_code == USAGE
