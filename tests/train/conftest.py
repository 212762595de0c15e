"""A process group for the session, small packed data, and run folders over them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tiny
from vitscale.launch.folders import prepare
from vitscale.study.job import Job
from vitscale.study.load import load
from vitscale.study.plan import plan
from vitscale.train.group import process_group
from vitscale.train.rundir import RunDir


@pytest.fixture(scope="session", autouse=True)
def group() -> Iterator[None]:
    with process_group():
        yield


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with packed training and test data and a study over them; to be read only."""
    folder = tmp_path_factory.mktemp("data")
    tiny.write(folder)
    return folder


@pytest.fixture
def jobs(base: Path) -> Callable[..., tuple[Job, ...]]:
    def planned(*settings: str) -> tuple[Job, ...]:
        return plan(load(base / "study.toml", base=base, settings=settings), {}).jobs

    return planned


@pytest.fixture
def rundir(base: Path, tmp_path: Path, jobs: Callable[..., tuple[Job, ...]]) -> Callable[..., RunDir]:
    """Makes the run folder of the study's job number `which` under the given settings."""

    def made(*settings: str, which: int = 0, runs: str = "runs", **machine: object) -> RunDir:
        told = {"threads": 1, "micro_batch": None, "zero_stage": 0, **machine}
        return RunDir(prepare(jobs(*settings)[which], tmp_path / runs, base=base, machine=told))

    return made
