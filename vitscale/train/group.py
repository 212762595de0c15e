"""The processes that train one run together: which of them this one is, and sums over all of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from vitscale.errors import MISSING, VitscaleError
from vitscale.train.device import be_exact
from vitscale.train.neighbours import Neighbours, connect

T = TypeVar("T")

MEET = timedelta(minutes=5)
"""For all processes to come; they start together."""
COLLECTIVE = 30
"""Minutes that a collective may take where DEEPSPEED_TIMEOUT does not say; the watchdog is quicker."""
LISTENER = "VITSCALE_STORE_FD"
"""In the first process: the socket, open already, at which the others meet it."""


Lost = Callable[[], str | None]


class NotMet(VitscaleError):  # noqa: N818
    """The processes of a run did not come together."""


def is_one_of_several() -> bool:
    """Whether torchrun's environment says so; known before there is a group."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def process_group() -> Iterator[Lost]:
    """The group that torchrun's environment names; without one, this process alone.

    Alone it meets over a store in memory: no launcher, no port, no mpi4py. What it yields names a host that is lost.

    Raises:
        NotMet: the port is in use, or the others do not come (exit 5).
    """
    os.environ.setdefault("LOCAL_RANK", "0")
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        be_exact()
        use_own_device()
    if is_one_of_several():
        _meet(backend)
    else:
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    neighbours = _meet_neighbours() if nodes() > 1 else None
    try:
        yield neighbours.lost if neighbours else lambda: None
    finally:
        if neighbours:
            neighbours.close()
        distributed.destroy_process_group()
        import deepspeed

        # DeepSpeed keeps its own handle and would use the destroyed group in the next run of this process.
        deepspeed.comm.comm.cdb = None


def _meet(backend: str) -> None:
    number, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    _choose_interface(os.environ["MASTER_ADDR"])
    try:
        distributed.init_process_group(
            backend,
            store=_store(number, world),
            rank=number,
            world_size=world,
            timeout=timedelta(minutes=int(os.environ.get("DEEPSPEED_TIMEOUT", COLLECTIVE))),
        )
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):
            raise NotMet(
                f"{where}, where the processes of the run meet, is in use",
                hint="another run has the port: name a free one in MASTER_PORT",
                exit_code=MISSING,
            ) from None
        raise NotMet(
            f"rank {number} on {socket.gethostname()} did not meet the others of {world} at {where}: {error}",
            hint="all hosts must reach one another on any port; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the way",
            exit_code=MISSING,
        ) from None


def _store(number: int, world: int) -> distributed.Store:
    """Where the processes meet: torchrun's own, or one that the first process serves."""
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    listener = os.environ.get(LISTENER) if number == 0 else None
    return distributed.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size=None if served else world,
        is_master=number == 0 and not served,
        timeout=MEET,
        master_listen_fd=None if listener is None else int(listener),
    )


def _meet_neighbours() -> Neighbours:
    return Neighbours(connect(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))


def _choose_interface(master: str) -> None:
    """Has gloo use the interface on the way to the first host; a host's own name often resolves to its loopback."""
    if "GLOO_SOCKET_IFNAME" in os.environ or nodes() == 1:
        return
    import psutil

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((master, 1))  # a datagram socket: nothing is sent
        except OSError:
            return
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if not own.startswith("127.") and own in {address.address for address in addresses}:
            os.environ["GLOO_SOCKET_IFNAME"] = name


def nodes() -> int:
    """Hosts that train the run, as torchrun's environment says."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def is_of_a_lost_peer(error: Exception) -> bool:
    """Whether a collective failed because another process, or the way to it, is gone."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


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
    return torch.device("cuda", _device_number()) if torch.cuda.is_available() else torch.device("cpu")


def _device_number() -> int:
    # Where a scheduler shows each process a device of its own, all of them have the number 0.
    return int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()


def use_own_device() -> None:
    """For each thread that touches memory of a GPU: it begins with the first one, and would take some there."""
    if torch.cuda.is_available():
        torch.cuda.set_device(device())


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


def union(mine: set[T]) -> set[T]:
    """The sets of all processes as one; a call that every process makes."""
    parts: list[set[T]] = [set()] * world_size()
    distributed.all_gather_object(parts, mine)
    return set().union(*parts)


def interleaved(rows: Tensor, count: int) -> Tensor:
    """`count` rows, of which each process gives every `world_size()`-th, beginning at its rank; a call that every
    process makes."""
    if world_size() == 1:
        return rows
    whole = rows.new_zeros(count, *rows.shape[1:])
    whole[rank() :: world_size()] = rows
    distributed.all_reduce(whole)
    return whole


def least(number: float) -> float:
    """The smallest number of all processes (of flags: 0 if one is false); a call that every process makes."""
    parts = [number] * world_size()
    distributed.all_gather_object(parts, number)
    return min(parts)


def any_of(flag: bool) -> bool:
    """Whether it is true in some process; a call that every process makes."""
    return summed(float(flag))[0] > 0
