"""Where a sweep lets its runs start: what the options of `vitscale sweep` mean for each launcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitscale.cli import options
from vitscale.errors import USAGE, VitscaleError

if TYPE_CHECKING:
    from vitscale.launch.machine import Machine
    from vitscale.launch.sweep import Sweep
    from vitscale.study.load import Study


class Launcher(StrEnum):
    LOCAL = "local"
    SLURM = "slurm"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the runs of one sweep are started."""

    machine: Machine
    world_size: int
    """Processes that pre-train one run together."""
    at_a_time: int | None
    """Runs; None: as the cluster pleases."""
    sweep: Callable[..., Sweep]


def on_this_machine(
    *,
    most: int,
    jobs: int | None,
    threads: int | None,
    devices: int | None,
    nodes: int | None,
    hostfile: Path | None,
    gpus: str | None,
    per_gpu: int,
    slurm: Mapping[str, Any],
    engine: Mapping[str, Any],
) -> Launch:
    """In processes of this machine, or of a hostfile's. `most`: runs that there are at all.

    Raises:
        VitscaleError: options that contradict one another (exit 2), hosts that do not answer (exit 5).
    """
    from vitscale.launch.local_sweep import LocalSweep

    _refuse(slurm, "is of Slurm", "add --launcher slurm, or leave it out")
    hosts = options.hosts(hostfile, nodes, devices)
    machine = options.machine(
        jobs, threads, most=most, devices=devices, hosts=hosts, gpus=gpus, per_gpu=per_gpu, **engine
    )
    return Launch(
        machine=machine,
        world_size=options.world_size(hosts, devices),
        at_a_time=machine.jobs,
        sweep=LocalSweep,
    )


def in_slurm(
    study: Study,
    *,
    jobs: int | None,
    threads: int | None,
    devices: int | None,
    nodes: int | None,
    max_array: int | None,
    detach: bool,
    local: Mapping[str, Any],
    engine: Mapping[str, Any],
) -> Launch:
    """As jobs of a cluster: `jobs` tasks of an array at a time, each pre-training on `nodes` with `devices` each.

    Raises:
        VitscaleError: options that contradict one another (exit 2), settings of the cluster with mistakes (exit 3), no
            Slurm (exit 5).
    """
    from vitscale.launch.machine import Machine
    from vitscale.launch.slurm import cluster
    from vitscale.launch.slurm.settings import settings_of
    from vitscale.launch.slurm.sweep import SlurmSweep

    _refuse(local, "is of this machine", "leave it out with --launcher slurm; --devices and --nodes are of each run")
    settings = settings_of(study)
    devices, nodes = devices or 1, nodes or 1
    if settings.gpus_per_node and devices > settings.gpus_per_node:
        raise VitscaleError(
            f"--devices {devices} on nodes with {settings.gpus_per_node} GPUs",
            hint="--devices are of each node: give more --nodes, or mend launcher.slurm.gpus_per_node",
            exit_code=USAGE,
        )
    allowed = cluster.max_array()
    if max_array is not None and max_array > allowed:
        raise VitscaleError(
            f"--max-array {max_array} on a cluster that allows {allowed}", hint="leave it out", exit_code=USAGE
        )
    given, threads = threads is not None, threads or settings.cpus_per_device
    engine = {**engine, "workers": engine["workers"] or threads, "threads_given": given}
    return Launch(
        machine=Machine(jobs=1, threads=threads, devices=devices, **engine),
        world_size=devices * nodes,
        at_a_time=jobs,
        sweep=partial(
            SlurmSweep,
            settings=settings,
            nodes=nodes,
            at_once=jobs,
            max_array=min(max_array or allowed, allowed),
            detach=detach,
        ),
    )


def _refuse(options_of_others: Mapping[str, Any], why: str, hint: str) -> None:
    """`options_of_others`: by their names; what was not given is empty."""
    for name, value in options_of_others.items():
        if value:
            raise VitscaleError(f"{name} {why}", hint=hint, exit_code=USAGE)
