"""Which of several processes this one is, where torchrun or srun has started the same command several times."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vitscale.errors import MISSING, USAGE, VitscaleError
from vitscale.processes import signal_at_parent_death

OF_PROCESS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
"""What torchrun tells a process of its place; of one that is alone it says nothing."""
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
OF_STEP = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_NODELIST")
NUMBERS_OF_STEP = (*OF_STEP[:4], "SLURM_STEP_ID", "SLURM_STEP_NUM_NODES", "SLURM_NODEID")
FIRST_PORT, PORTS = 20_000, 12_000  # below those that systems hand out themselves
LAST_PORT = 65_535
LIMITS = {"MASTER_PORT": (0, LAST_PORT), "DEEPSPEED_TIMEOUT": (1, 366 * 24 * 60)}
"""Least and most of what the environment may say of any run, alone or not. Port 0 is a free one. DeepSpeed takes whole
minutes; for a year nobody waits, and some centuries are too many for a clock in nanoseconds."""


@dataclass(frozen=True, kw_only=True)
class Place:
    rank: int
    world_size: int
    local_size: int
    """Processes of the run on this host."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What a worker needs beside the environment that is there."""

    @property
    def who(self) -> str:
        """How the reason of a failure begins that is this process's own."""
        return f"rank {self.rank} on {socket.gethostname()}: "


def place() -> Place | None:
    """None: this process is alone.

    Raises:
        VitscaleError: the environment says half of it, or what cannot be (exit 2); the first host of a Slurm step has
            no address (exit 5).
    """
    told = os.environ
    _check_numbers(told, OF_PROCESS)
    check_environment()
    if set(TORCHRUN) <= set(told):
        return _checked(_of_torchrun(told))
    if "SLURM_STEP_NUM_TASKS" in told and "SLURM_PROCID" in told:  # of srun; a batch script has not the former
        _check_numbers(told, NUMBERS_OF_STEP)
        if int(told["SLURM_STEP_NUM_TASKS"] or 0) <= 1:
            return None
        _check_whole(told, OF_STEP)
        return _checked(_in_a_step(told))
    if int(told.get("WORLD_SIZE") or 0) > 1:
        _check_whole(told, TORCHRUN)
    return None


def check_environment() -> None:
    """Refuses what the workers of a run would be told and could not use, whoever starts them.

    Raises:
        VitscaleError: it is no number, or one out of its range (exit 2).
    """
    for name, (low, high) in LIMITS.items():
        if (value := os.environ.get(name)) is None:
            continue
        if not re.fullmatch(r"-?\d+", value.strip()):
            raise _wrong(f"{name} is {value!r} in the environment, and must be a number, a whole one", name)
        if not low <= int(value) <= high:
            raise _wrong(f"{name} is {int(value)} in the environment, and must be {low} to {high}", name)


def _of_torchrun(told: Mapping[str, str]) -> Place:
    environment = {name: told[name] for name in (*OF_PROCESS, *TORCHRUN) if name in told}
    return Place(
        rank=int(told["RANK"] or 0),
        world_size=int(told["WORLD_SIZE"] or 0),
        local_size=int(told.get("LOCAL_WORLD_SIZE") or 1),
        environment=environment,
    )


def _checked(found: Place) -> Place | None:
    """Refuses a place that is none, as of a script that sets some of it for another number of processes."""
    if found.world_size <= 1:
        return None
    local, port = int(found.environment["LOCAL_RANK"] or 0), int(found.environment["MASTER_PORT"] or 0)
    most = found.local_size if "LOCAL_WORLD_SIZE" in found.environment else found.world_size
    for what, value, low, high in (
        ("RANK", found.rank, 0, found.world_size - 1),
        ("LOCAL_WORLD_SIZE", found.local_size, 1, found.world_size),
        ("LOCAL_RANK", local, 0, most - 1),
        ("MASTER_PORT", port, 1, LAST_PORT),
    ):
        if not low <= value <= high:
            among = f"of {found.world_size} processes it is {low} to {high}"
            raise _wrong(f"{what} is {value} in the environment, and {among}")
    return found


def _check_whole(told: Mapping[str, str], names: Sequence[str]) -> None:
    """Of a command that is one of several: else each would train the run alone, or wait for the others for ever."""
    if missing := [name for name in names if name not in told]:
        given = next(name for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS") if name in names)
        raise _wrong(f"{given} is {told[given]} in the environment, and {', '.join(missing)} {_is(missing)} not there")


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _wrong(message: str, name: str = "") -> VitscaleError:
    hint = "unset what is there, or leave all of it to torchrun or srun"
    if name == "DEEPSPEED_TIMEOUT":
        hint = "unset it, or give the minutes that processes may wait for one another: DEEPSPEED_TIMEOUT=30"
    return VitscaleError(message, hint=hint, exit_code=USAGE)


def stop_with_torchrun() -> None:
    """Where torchrun has started this process: a checkpoint and an end when it dies, however it dies.

    Under srun slurmstepd, which is the parent there, sees to that.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        signal_at_parent_death(signal.SIGTERM)


def _check_numbers(told: Mapping[str, str], names: Sequence[str]) -> None:
    for name in names:
        try:
            int(told.get(name) or 0)
        except ValueError:
            raise _wrong(f"{name} is {told[name]!r} in the environment, and must be a number") from None


def _in_a_step(told: Mapping[str, str]) -> Place:
    world_size, nodes = int(told["SLURM_STEP_NUM_TASKS"]), int(told.get("SLURM_STEP_NUM_NODES", "1"))
    # "2(x3),1": tasks of each node in turn.
    counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", told.get("SLURM_STEP_TASKS_PER_NODE", str(world_size)))
    each = [int(count) for count, times in counts for _ in range(int(times or 1))]
    node = int(told.get("SLURM_NODEID", "0"))
    if not 0 <= node < len(each):
        raise _wrong(f"SLURM_NODEID is {node} in the environment, and the step has {len(each)} nodes")
    job = int(told["SLURM_JOB_ID"]) * 8 + int(told.get("SLURM_STEP_ID", "0"))
    environment = {
        "RANK": told["SLURM_PROCID"],
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": told["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(each[node]),
        "GROUP_RANK": str(node),
        "GROUP_WORLD_SIZE": str(nodes),
        "MASTER_ADDR": told.get("MASTER_ADDR") or _address(_first(told["SLURM_STEP_NODELIST"])),
        "MASTER_PORT": told.get("MASTER_PORT") or str(FIRST_PORT + job % PORTS),
    }
    rank = int(told["SLURM_PROCID"])
    return Place(rank=rank, world_size=world_size, local_size=each[node], environment=environment)


def _first(nodes: str) -> str:
    """`gpu07` of `gpu[07-09,12],big1`."""
    head = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,]*)", nodes)
    assert head is not None, nodes
    return f"{head[1]}{head[2] or ''}{head[3]}"


def _address(node: str) -> str:
    """Its name where that can be resolved; else what Slurm itself calls it by."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        if shutil.which("scontrol"):
            shown = subprocess.run(["scontrol", "show", "node", node], capture_output=True, text=True, check=False)
            if found := re.search(r"NodeAddr=(\S+)", shown.stdout):
                return found[1]
        raise VitscaleError(
            f"the first node of the step, {node}, has no address here",
            hint="name one that all nodes reach in MASTER_ADDR",
            exit_code=MISSING,
        ) from None
    return node
