"""What a real sacct knows of jobs which ended while no sweep watched, and which the controller has forgotten."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import LONG, Lab, study, submitted, until

from slurm import slurm_with_accounts
from vitscale import checkpoints
from vitscale.errors import DONE, RUN_FAILED
from vitscale.launch import eventlog, folders

pytestmark = pytest.mark.slow

FORGETS = 200.0
"""Seconds in which a controller with this MinJobAge does, at the latest: it looks once a minute."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, subprocess.Popen[bytes]]]:
    folder = tmp_path_factory.mktemp("cluster")
    with slurm_with_accounts(folder, "MinJobAge=2", "KillWait=10") as (environment, slurmdbd):
        yield Lab(environment), slurmdbd


@pytest.fixture
def lab(cluster: tuple[Lab, subprocess.Popen[bytes]]) -> Iterator[Lab]:
    yield cluster[0]
    cluster[0].clear()


@pytest.fixture
def slurmdbd(cluster: tuple[Lab, subprocess.Popen[bytes]]) -> Iterator[subprocess.Popen[bytes]]:
    yield cluster[1]
    cluster[1].send_signal(signal.SIGCONT)


def attempt(run: Path) -> int:
    return int((eventlog.last_event(run, "start") or {}).get("attempt", 0))


def test_each_end_that_nobody_saw_has_what_follows_from_it(lab: Lab, tmp_path: Path) -> None:
    """Of four tasks of one array: one hits its limit, one is cancelled, one is done, one fails before it begins."""
    folder = study(
        tmp_path / "study",
        axes=f'seed = [0, 1]\n"recipe.steps" = [12, {LONG}]\n',
        time="10",
        signal=0,
        setup=["case $SLURM_ARRAY_TASK_ID in 3) exit 1;; esac"],
    )
    first = lab.swept(folder, "--detach", "--save-every", "1")
    assert first.returncode == DONE, first.stderr
    (array,) = submitted(folder)
    job, runs = array["job"], folder / "runs"
    limited, cancelled, done, failed = (array["tasks"][str(task)][0] for task in range(4))
    until(lambda: checkpoints.steps(runs / limited) and checkpoints.steps(runs / cancelled))
    until(lambda: folders.result(runs / done))
    lab.say("scancel", f"{job}_1")
    # An array is forgotten task by task, but for the last, whose record is that of the array.
    until(lambda: set(re.findall(r"ArrayTaskId=(\S+)", lab.shown(job))) == {"0", "3"}, FORGETS)
    told = lab.status(folder)
    assert told[limited]["slurm"]["state"] == "RUNNING"
    assert told[cancelled]["slurm"] == {"job": f"{job}_1", "state": "CANCELLED", "reason": ""}
    assert (told[failed]["state"], told[failed]["slurm"]["state"]) == ("to do", "FAILED")
    assert (told[done]["state"], told[done]["slurm"]) == ("done", None)

    lab.say("scontrol", "update", f"jobid={job}_0", "timelimit=1")
    until(lambda: not lab.shown(job), FORGETS)
    told = lab.status(folder)
    assert (told[limited]["state"], told[limited]["slurm"]["state"]) == ("stopped", "TIMEOUT")
    assert told[limited]["detail"].endswith(f"Slurm job {job}_0 TIMEOUT")

    second = lab.swept(folder, "--detach", "--save-every", "1")
    assert second.returncode == RUN_FAILED
    assert re.search(rf"stopped  {limited} .*: Slurm job {job}_0 TIMEOUT\n", second.stderr), second.stderr
    assert re.search(rf"stopped  {cancelled} .*: Slurm job {job}_1 CANCELLED\n", second.stderr)
    outcome = folders.result(runs / failed) or {}
    assert outcome["failure"] == "setup"
    assert outcome["reason"] == f"Slurm job {job}_3 FAILED before the run began"
    _, again = submitted(folder)
    assert sorted(id_ for ids in again["tasks"].values() for id_ in ids) == sorted([limited, cancelled])
    until(lambda: attempt(runs / limited) == attempt(runs / cancelled) == 2)


def test_accounts_that_hang_leave_a_cluster_as_one_that_keeps_none(
    lab: Lab, slurmdbd: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """A job that could not begin, and was forgotten, is submitted again; where the accounts answer, its run failed."""
    folder = study(tmp_path / "study", setup=["exit 1"])

    def submits() -> str:
        ended = lab.swept(folder, "--detach")
        assert ended.returncode == DONE, ended.stderr
        return str(submitted(folder)[-1]["job"])

    first = submits()
    until(lambda: not lab.shown(first), FORGETS)
    (run,) = lab.status(folder).values()
    assert run["slurm"]["state"] == "FAILED"
    slurmdbd.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    (run,) = lab.status(folder).values()
    assert time.monotonic() - begin < 40
    assert run["slurm"] == {"job": f"{first}_0", "state": None, "reason": None}
    second = submits()
    slurmdbd.send_signal(signal.SIGCONT)
    assert second != first
    until(lambda: not lab.shown(second), FORGETS)
    ended = lab.swept(folder)
    assert ended.returncode == RUN_FAILED
    assert (folders.result(folder / "runs" / run["run"]) or {})["reason"] == (
        f"Slurm job {second}_0 FAILED before the run began"
    )
    assert len(submitted(folder)) == 2
