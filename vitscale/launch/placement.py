"""Which of several processes this one is, where torchrun or srun has started the same command several times."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from vitscale.errors import MISSING, USAGE, VitscaleError
from vitscale.processes import signal_at_parent_death

NUMBERS = {
    **dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"), int),
    "DEEPSPEED_TIMEOUT": float,
}
FIRST_PORT, PORTS = 20_000, 12_000  # below those that systems hand out themselves


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
        VitscaleError: what must be a number in the environment is none (exit 2); the first host of a Slurm step has no
            address (exit 5).
    """
    told = os.environ
    _check_numbers(told)
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(told):
        local_size = int(told.get("LOCAL_WORLD_SIZE", "1"))
        found = Place(rank=int(told["RANK"]), world_size=int(told["WORLD_SIZE"]), local_size=local_size)
    elif "SLURM_STEP_NUM_TASKS" in told and "SLURM_PROCID" in told:  # of srun; a batch script has not the former
        found = _in_a_step(told)
    else:
        return None
    return found if found.world_size > 1 else None


def stop_with_torchrun() -> None:
    """Where torchrun has started this process: a checkpoint and an end when it dies, however it dies.

    Under srun slurmstepd, which is the parent there, sees to that.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        signal_at_parent_death(signal.SIGTERM)


def _check_numbers(told: Mapping[str, str]) -> None:
    for name, kind in NUMBERS.items():
        try:
            kind(told.get(name) or 0)
        except ValueError:
            raise VitscaleError(
                f"{name} is {told[name]!r} in the environment, and must be a number",
                hint=f"unset {name}, or leave it to torchrun or srun",
                exit_code=USAGE,
            ) from None


def _in_a_step(told: Mapping[str, str]) -> Place:
    world_size, nodes = int(told["SLURM_STEP_NUM_TASKS"]), int(told.get("SLURM_STEP_NUM_NODES", "1"))
    # "2(x3),1": tasks of each node in turn.
    counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", told.get("SLURM_STEP_TASKS_PER_NODE", str(world_size)))
    each = [int(count) for count, times in counts for _ in range(int(times or 1))]
    node = int(told.get("SLURM_NODEID", "0"))
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
