"""Which of several processes one is, by what torchrun and srun put into its environment."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vitscale.cli import options
from vitscale.errors import USAGE, VitscaleError
from vitscale.launch.local import Worker
from vitscale.launch.placement import OF_PROCESS, Place, place

STEP = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "1",
}
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "1",
}


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SLURM_") or name in (*OF_PROCESS, *TORCHRUN, "DEEPSPEED_TIMEOUT"):
            monkeypatch.delenv(name)


def told(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Place | None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return place()


def test_a_process_that_nobody_placed_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch) is None
    # A batch script itself, before any srun, though its job has many tasks.
    assert told(monkeypatch, SLURM_JOB_ID="12", SLURM_NTASKS="8", SLURM_PROCID="0") is None
    assert (
        told(monkeypatch, SLURM_STEP_NUM_TASKS="1", **{k: v for k, v in STEP.items() if "NUM_TASKS" not in k}) is None
    )


def test_torchrun_s_processes_have_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, **TORCHRUN) == Place(rank=3, world_size=4, local_size=2, environment=TORCHRUN)


def test_torchrun_inside_a_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(monkeypatch, **STEP, **TORCHRUN)
    assert found == Place(rank=3, world_size=4, local_size=2, environment=TORCHRUN)


def test_a_task_of_a_step_gets_what_torchrun_would_give_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(monkeypatch, **STEP)
    assert found is not None
    assert (found.rank, found.world_size, found.local_size) == (4, 7, 3)
    assert found.environment == {
        "RANK": "4",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "3",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "3",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(20_000 + 12 * 8),
    }


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[07-09,12],big1", "gpu07"), ("gpu7", "gpu7"), ("a-1,b", "a-1"), ("r[1-2]n", "r1n"), ("n[3,5]", "n3")],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    from vitscale.launch.placement import _first

    assert _first(nodes) == first


def test_a_node_without_an_address_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitscale.errors import MISSING, VitscaleError

    monkeypatch.setenv("PATH", "")
    with pytest.raises(VitscaleError, match=r"the first node of the step, nowhere\.invalid, has no address") as caught:
        told(monkeypatch, **{**STEP, "SLURM_STEP_NODELIST": "nowhere.invalid"})
    assert caught.value.exit_code == MISSING
    found = told(monkeypatch, MASTER_ADDR="10.0.0.1")
    assert found is not None
    assert found.environment["MASTER_ADDR"] == "10.0.0.1"


@pytest.mark.parametrize("name", ["RANK", "MASTER_PORT", "DEEPSPEED_TIMEOUT"])
def test_what_must_be_a_number_and_is_none_is_an_error_of_use(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(VitscaleError, match=f"{name} is 'many' in the environment") as caught:
        told(monkeypatch, **{**TORCHRUN, name: "many"})
    assert caught.value.exit_code == USAGE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("DEEPSPEED_TIMEOUT", value) for value in ("1.5", "nan", "inf", "1e12", "1000000000000", "0", "-1", "")),
        *(("MASTER_PORT", value) for value in ("99999", "-3", "", "1.5")),
    ],
)
@pytest.mark.parametrize(
    ("placed", "asks"),
    [
        ({}, lambda: options.place(2, None)),  # spawned
        ({}, lambda: options.place(None, Path("hosts"))),
        (TORCHRUN, lambda: options.place(None, None)),
        (STEP, lambda: options.place(None, None)),
        ({}, lambda: options.machine(1, None, most=1)),  # of a transfer, an import, a benchmark
    ],
)
def test_what_no_worker_could_use_is_refused_at_every_door(
    monkeypatch: pytest.MonkeyPatch, placed: dict[str, str], asks: Callable[[], object], name: str, value: str
) -> None:
    for key, said in {**placed, name: value}.items():
        monkeypatch.setenv(key, said)
    with pytest.raises(VitscaleError, match=f"^error: {name} is .* in the environment, and .*\nhint: unset ") as caught:
        asks()
    assert caught.value.exit_code == USAGE


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE is 2 in the environment, and RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not",
        ),
        ({**TORCHRUN, "MASTER_PORT": None}, "WORLD_SIZE is 4 in the environment, and MASTER_PORT is not there"),
        ({**TORCHRUN, "RANK": "5"}, "RANK is 5 in the environment, and of 4 processes it is 0 to 3"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK is -1 in the environment"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is 0 in the environment"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "LOCAL_RANK is 2 in the environment"),
        ({**TORCHRUN, "MASTER_PORT": "99999"}, "MASTER_PORT is 99999 in the environment"),
        ({"GROUP_WORLD_SIZE": "x"}, "GROUP_WORLD_SIZE is 'x' in the environment, and must be a number"),
        ({**STEP, "SLURM_JOB_ID": None}, "SLURM_STEP_NUM_TASKS is 7 in the environment, and SLURM_JOB_ID is not there"),
        ({**STEP, "SLURM_PROCID": "x"}, "SLURM_PROCID is 'x' in the environment, and must be a number"),
        ({**STEP, "SLURM_PROCID": "7"}, "RANK is 7 in the environment"),
        ({**STEP, "SLURM_NODEID": "3"}, "SLURM_NODEID is 3 in the environment, and the step has 3 nodes"),
    ],
)
def test_what_says_half_of_a_place_or_one_that_cannot_be_is_an_error_of_use(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str | None], message: str
) -> None:
    with pytest.raises(VitscaleError) as caught:
        told(monkeypatch, **{name: value for name, value in environment.items() if value is not None})
    assert caught.value.exit_code == USAGE
    assert message in caught.value.problems[0].message
    assert "leave all of it to torchrun or srun" in caught.value.problems[0].hint


def test_a_worker_hears_nothing_of_a_place_that_its_command_has_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "3")
    seen: list[dict[str, str]] = []
    monkeypatch.setattr("vitscale.launch.local.subprocess.Popen", lambda *_, env, **__: seen.append(env))
    assert place() is None
    Worker([tmp_path], 1)
    Worker([tmp_path], 1, environment=TORCHRUN)
    assert not {"LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"} & set(seen[0])
    assert seen[1].items() >= TORCHRUN.items()
