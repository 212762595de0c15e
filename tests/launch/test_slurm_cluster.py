"""What Slurm's own commands say, and how it is read: with commands that stand in for them."""

import time
from pathlib import Path

import pytest

from vitscale.errors import MISSING, VitscaleError
from vitscale.launch.slurm import cluster
from vitscale.launch.slurm.cluster import Entry, Submitted


def test_without_slurm_its_commands_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VitscaleError, match="there is no scontrol here") as error:
        cluster.max_array()
    assert error.value.exit_code == MISSING


def command(folder: Path, name: str, output: str) -> None:
    """One in the place of Slurm's that gives this answer, and notes how it was called; without one it fails."""
    body = f"cat <<'END'\n{output}\nEND" if output else "echo 'slurm says no' >&2; exit 1"
    (folder / name).write_text(f'#!/bin/bash\necho "$@" >> {folder}/{name}.calls\n{body}\n')
    (folder / name).chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


@pytest.mark.parametrize(
    ("scontrol", "sacct", "found"),
    [
        pytest.param(
            "JobId=7 ArrayJobId=5 ArrayTaskId=1 JobName=x JobState=TIMEOUT Reason=TimeLimit Command=/a b/job.sh\n"
            "JobId=5 ArrayJobId=5 ArrayTaskId=2-3,9%4 JobName=x JobState=PENDING Reason=Priority",
            "",
            {
                1: Entry("5_1", "TIMEOUT", "TimeLimit"),
                2: Entry("5_2", "PENDING", "Priority"),
                3: Entry("5_3", "PENDING", "Priority"),
                9: Entry("5_9", "PENDING", "Priority"),
            },
            id="the controller knows",
        ),
        pytest.param(
            "",
            "5_0|x|COMPLETED|Dependency\n5_1|x|OUT_OF_MEMORY|None\n5_[2-3]|x|CANCELLED by 0|BeginTime",
            {
                0: Entry("5_0", "COMPLETED"),
                1: Entry("5_1", "OUT_OF_MEMORY"),
                2: Entry("5_2", "CANCELLED"),
                3: Entry("5_3", "CANCELLED"),
            },
            id="it has forgotten",
        ),
        pytest.param(
            "JobId=7 ArrayJobId=5 ArrayTaskId=1 JobName=x JobState=COMPLETED Reason=None",
            "5_0|x|NODE_FAIL|None\n5_1|x|COMPLETED|None\n5_2|x|PREEMPTED|None",
            {
                0: Entry("5_0", "NODE_FAIL"),
                1: Entry("5_1", "COMPLETED", "None"),
                2: Entry("5_2", "PREEMPTED"),
            },
            id="it has forgotten some tasks",
        ),
        pytest.param(
            "",
            "5_0|x|CANCELLED|Dependency\n5_1|x|CANCELLED by 0|Dependency",
            {0: Entry("5_0", "CANCELLED", "DependencyNeverSatisfied"), 1: Entry("5_1", "CANCELLED")},
            id="what it waited for had failed",
        ),
        pytest.param("", "5_0|x|RUNNING|None\n5_1|x|REQUEUED|None", {}, id="the accounts wait for what is lost"),
        pytest.param(
            "JobId=5 JobName=another JobState=RUNNING Reason=None",
            "5|another|FAILED|None",
            {},
            id="the number is another's now",
        ),
        pytest.param(
            "JobId=5 JobName=x JobState=NODE_FAIL Reason=NodeDown", "", {0: Entry("5", "NODE_FAIL", "NodeDown")}
        ),
        pytest.param("", "", {}, id="no accounts"),
    ],
)
def test_the_end_of_a_job_is_what_the_controller_knows_or_else_the_accounts(
    commands: Path, scontrol: str, sacct: str, found: dict[int, Entry]
) -> None:
    command(commands, "scontrol", scontrol)
    command(commands, "sacct", sacct)
    assert cluster.ended_as([Submitted("5", "x", {0, 1, 2, 3, 9})]) == {"x": found}


def test_the_accounts_are_asked_once_for_all_jobs_that_are_forgotten(commands: Path) -> None:
    command(commands, "scontrol", "JobId=4 JobName=known JobState=FAILED Reason=None")
    command(commands, "sacct", "5|x|FAILED|None\n6_1|y|TIMEOUT|None")
    asked = [Submitted("4", "known", {0}), Submitted("5", "x", {0}), Submitted("6", "y", {1, 2})]
    found = cluster.ended_as(asked)
    assert {name: {task: entry.state for task, entry in each.items()} for name, each in found.items()} == {
        "known": {0: "FAILED"},
        "x": {0: "FAILED"},
        "y": {1: "TIMEOUT"},
    }
    (call,) = (commands / "sacct.calls").read_text().splitlines()
    assert call.endswith("--jobs=5,6")


def test_numbers_of_many_tasks_come_whole(commands: Path) -> None:
    """Slurm cuts off a list of more than 64 characters, where nobody says otherwise."""
    command(commands, "scontrol", "")
    whole = "5_[0,2,4]|x|CANCELLED by 0|None"
    (commands / "sacct").write_text(
        f'#!/bin/bash\n[ "$SLURM_BITSTR_LEN" = 0 ] && echo "{whole}" || echo "5_[0,...]|x|CANCELLED|None"\n'
    )
    (commands / "sacct").chmod(0o755)
    assert cluster.ended_as([Submitted("5", "x", {0, 2, 4})])["x"].keys() == {0, 2, 4}


def test_accounts_that_do_not_answer_hold_nobody_up(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "SECONDS_OF_ACCOUNTS", 0.2)
    command(commands, "scontrol", "")
    (commands / "sacct").write_text("#!/bin/bash\nexec sleep 60\n")
    (commands / "sacct").chmod(0o755)
    begin = time.monotonic()
    assert cluster.ended_as([Submitted("5", "x", {0}), Submitted("6", "y", {0})]) == {"x": {}, "y": {}}
    assert time.monotonic() - begin < 10


def test_a_host_without_sacct_knows_what_its_controller_says(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(commands))
    command(commands, "scontrol", "")
    assert cluster.ended_as([Submitted("5", "x", {0})]) == {"x": {}}
