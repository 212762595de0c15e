"""The order in which a processor sums depends on its threads: a run goes on with those that it began with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stopping import StopAfter
from tiny import edit
from vitscale import checkpoints
from vitscale.cli import options
from vitscale.errors import DONE, INTERRUPTED
from vitscale.launch.local import Worker
from vitscale.train.capacity import NAMES
from vitscale.train.checkpoint import MODEL, folder_of
from vitscale.train.device import processor
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.worker import work
from worked import Make, measured

LONG = ("recipe.keep=last", "recipe.batch_size=32", "model.width=192", "model.mlp=768", "model.depth=2")
"""Enough for two threads to share."""


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def had(run: RunDir) -> list[int]:
    return [event["threads"] for event in run.events() if event["event"] == "engine"]


def engines(run: RunDir) -> list[tuple[Any, ...]]:
    """What each attempt computed with."""
    told = (event for event in run.events() if event["event"] == "engine")
    return [tuple(event[name] for name in ("threads", *NAMES)) for event in told]


def of(run: RunDir, step: int) -> bytes:
    """The weights of a checkpoint."""
    return (folder_of(run.folder, step) / MODEL).read_bytes()


def on(run: RunDir, threads: int, *, given: bool = False) -> RunDir:
    """The same run, as another command has it."""
    edit(run.folder / "run.json", machine={**run.machine, "threads": threads, "threads_given": given})
    return RunDir(run.folder)


@pytest.mark.parametrize(("given", "expected"), [(False, [1, 1, 1]), (True, [1, 2, 2])])
def test_a_run_goes_on_with_its_threads_unless_others_are_given(rundir: Make, given: bool, expected: list[int]) -> None:
    run = rundir("recipe.keep=last")
    assert work(run, StopAfter(4)) == INTERRUPTED
    assert work(on(run, 2, given=given), StopAfter(4)) == INTERRUPTED
    assert work(on(run, 3), Stop()) == DONE
    assert had(run) == expected


def test_a_worker_that_was_started_with_more_ends_with_the_same_bits(rundir: Make) -> None:
    whole, run = (rundir(*LONG, runs=name, keep_every=1) for name in ("whole", "run"))
    assert Worker([whole.folder], threads=1).process.wait(timeout=120) == DONE
    assert work(run, StopAfter(5)) == INTERRUPTED
    assert Worker([on(run, 2).folder], threads=2).process.wait(timeout=120) == DONE
    assert set(engines(whole)) == set(engines(run))
    saved = sorted(checkpoints.steps(whole.folder))
    assert saved == sorted(checkpoints.steps(run.folder)) == list(range(1, 13))
    assert [step for step in saved if of(run, step) != of(whole, step)] == []  # from where they part
    assert measured(run.result() or {}) == measured(whole.result() or {})


def test_one_that_has_not_begun_takes_what_there_is(rundir: Make) -> None:
    run = rundir()
    assert work(on(run, 2), StopAfter(4)) == INTERRUPTED
    assert had(run) == [2]


def test_a_branch_has_the_threads_of_its_trunk(rundir: Make, tmp_path: Path) -> None:
    run = rundir()
    trunk = tmp_path / "runs" / "trunk"
    trunk.mkdir()
    (trunk / "run.json").write_text((run.folder / "run.json").read_text())
    RunDir(trunk).log("engine", {"task": {"devices": 1}, "threads": 2})
    edit(run.folder / "run.json", branch={"trunk": "trunk", "step": 6})
    assert work(RunDir(run.folder), StopAfter(4)) == INTERRUPTED
    assert had(run) == [2]


@pytest.mark.parametrize("begun", [{"device": "NVIDIA H200"}, {"threads": 4096}])
def test_those_of_another_machine_are_none_of_its_own(rundir: Make, begun: dict[str, Any]) -> None:
    """No bit would be the same on a processor that has no GPU's, and thousands would crawl."""
    run = rundir()
    run.log("start", {"device": f"{processor()}, 2 threads", **begun})
    run.log("engine", {"task": {"devices": 1}, "threads": 2, **begun})
    assert work(on(run, 1), StopAfter(4)) == INTERRUPTED
    assert had(run)[1:] == [1]


def test_threads_are_given_or_shared_out() -> None:
    for given in (None, 1):
        machine = options.machine(1, given, most=1)
        assert machine.told()["threads_given"] is (given is not None)
