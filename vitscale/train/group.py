"""The processes that train one run together: which of them this one is, and sums over all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


def is_one_of_several() -> bool:
    """Whether torchrun's environment says so; known before there is a group."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def process_group() -> Iterator[None]:
    """The group that torchrun's environment names; without one, this process alone.

    Alone it meets over a store in memory: no launcher, no port, no mpi4py.
    """
    os.environ.setdefault("LOCAL_RANK", "0")
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if is_one_of_several():
        distributed.init_process_group(backend)
    else:
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()
        import deepspeed

        # DeepSpeed keeps its own handle and would use the destroyed group in the next run of this process.
        deepspeed.comm.comm.cdb = None


def rank() -> int:
    return distributed.get_rank()


def world_size() -> int:
    """Devices that train the run, each with a process of its own."""
    return distributed.get_world_size()


def is_first() -> bool:
    """Whether this process is the one that writes: checkpoints, events, the result."""
    return rank() == 0


def device() -> torch.device:
    """Where tensors lie that processes exchange, and networks that are trained."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


def summed(*numbers: float) -> list[float]:
    """Each number's sum over all processes, in float64; a call that every process makes."""
    if world_size() == 1:
        return list(numbers)
    totals = torch.tensor(numbers, dtype=torch.float64, device=device())
    distributed.all_reduce(totals)
    return totals.tolist()


def wait_for_all() -> None:
    """Returns once every process has called it. Needed before one leaves: that closes its connections, and another one
    that still waits for a message would fail."""
    if world_size() > 1:
        distributed.barrier()


def agreed(value: T) -> T:
    """The first process's value; a call that every process makes."""
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def union(mine: set[int]) -> set[int]:
    """The sets of all processes as one; a call that every process makes."""
    parts: list[set[int]] = [set()] * world_size()
    distributed.all_gather_object(parts, mine)
    return set().union(*parts)


def any_of(flag: bool) -> bool:
    """Whether it is true in some process; a call that every process makes."""
    return summed(float(flag))[0] > 0
