"""Which of several processes one is, by what torchrun and srun put into its environment."""

import os

import pytest

from vitscale.errors import USAGE, VitscaleError
from vitscale.launch.placement import Place, place

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
        if name.startswith("SLURM_") or name in TORCHRUN:
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
    assert told(monkeypatch, **TORCHRUN) == Place(rank=3, world_size=4, local_size=2)


def test_torchrun_inside_a_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, **STEP, **TORCHRUN) == Place(rank=3, world_size=4, local_size=2)


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
