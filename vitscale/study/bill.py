"""What a study takes, in numbers: device-hours, money, memory and disk of its jobs, and their sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from vitscale.models.counts import Counting, Head
from vitscale.study.cost import KEPT, checkpoint_bytes
from vitscale.study.job import Job


@runtime_checkable
class Peak(Protocol):
    """Memory that was measured of a shape, what each device held at most, and how its steps were cut up."""

    @property
    def bytes(self) -> int: ...
    @property
    def devices(self) -> int: ...
    @property
    def micro_batch(self) -> int: ...
    @property
    def zero_stage(self) -> int: ...
    @property
    def activation_checkpointing(self) -> bool: ...
    @property
    def offload(self) -> bool: ...
    @property
    def cut_up(self) -> tuple[int, int, int, bool, bool]:
        """The same in this order."""
        ...

    def planned(self, job: Job) -> int:
        """Bytes that are counted of a job that is cut up as it was measured."""
        ...


@runtime_checkable
class Rates(Protocol):
    """How fast, and in how much memory, each shape trains on a kind of device."""

    @property
    def device(self) -> str: ...
    @property
    def how(self) -> str:
        """Where they come from."""
        ...

    def seconds(self, job: Job) -> float:
        """Device-seconds that a job computes."""
        ...

    def peak(self, job: Job) -> Peak | None:
        """None where nothing was measured."""
        ...


def is_left(state: str | None) -> bool:
    """Whether a sweep would do something about it; None, and what is waited for: of a job that is to be selected."""
    return state in (None, "selecting", "waiting for [select]", "to do", "stopped", "running")


def left_of(jobs: Sequence[Job], states: Mapping[str, str]) -> list[Job]:
    """The jobs that a sweep would do something about."""
    return [job for job in jobs if is_left(states.get(job.id))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Of all jobs together, in training."""

    total: int
    left: float
    """Of what has begun, what lies behind its newest checkpoint."""
    alone: int
    """Of the pre-trainings, had none of them a trunk."""
    shared: int
    """Of the pre-trainings as they are run."""


def flops_of(
    jobs: Sequence[Job], states: Mapping[str, str], counting: Counting, begun: Mapping[str, float] | None = None
) -> Flops:
    """`begun`: by the ids of runs that have begun, the share of each that is left."""
    pretraining = [job for job in jobs if job.kind == "pretrain"]
    return Flops(
        total=sum(job.flops_by(counting) for job in jobs),
        left=sum(job.flops_by(counting) * (begun or {}).get(job.id, 1.0) for job in left_of(jobs, states)),
        alone=sum(job.flops_alone_by(counting) for job in pretraining),
        shared=sum(job.flops_by(counting) for job in pretraining),
    )


def disk_bytes(job: Job, *, cleaned: bool) -> int:
    """Of a pre-training's checkpoints: what `vitscale clean` leaves, or at most."""
    recipe = job.run.recipe
    one, best = checkpoint_bytes(job.params.total, averaged=recipe.ema > 0), recipe.keep == "best"
    if cleaned:
        return one * (1 + (best and job.role == "trunk"))  # from which longer runs go on: the last, and the best
    # A new one is written before the oldest goes.
    return one * (KEPT + 1 + best + len({step for step, _ in (*job.branches, *job.prospects_within)}))


def passing_bytes(jobs: Sequence[Job]) -> int:
    """Of the checkpoints that the largest fine-tuning of these keeps until it is done: weights and SGD's momentum."""
    found = [0]
    for job in jobs:
        transfer, task = job.run.transfer, job.task
        if transfer is not None and task is not None and transfer.protocol == "finetune":
            resolution = transfer.resolution or job.run.data.resolution
            params = job.arch.params(resolution, Head(num_classes=task.num_classes)).total
            found.append((KEPT + 1) * checkpoint_bytes(params, averaged=transfer.ema > 0, moments=1))
    return max(found)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a study is priced by."""

    counting: Counting
    rates: Rates
    devices: int = 1
    """Of a run."""
    micro_batch: int | None = None
    memory: float | None = None
    """GiB of a device."""
    price: float | None = None
    """Of a device-hour."""
    begun: Mapping[str, float] = field(default_factory=dict)
    """By the ids of runs that have begun, the share of each that is left."""

    def hours(self, jobs: Sequence[Job]) -> float:
        """Device-hours that are left of them."""
        return sum(self.rates.seconds(job) * self.begun.get(job.id, 1.0) for job in jobs) / 3600

    def money(self, hours: float) -> float | None:
        return None if self.price is None else hours * self.price

    def memory_bytes(self, job: Job) -> list[dict[str, Any]] | None:
        """Bytes on a device by ZeRO stage, with activation checkpointing and without; None of what trains nothing."""
        if job.kind != "pretrain":
            return None
        told: dict[str, Any] = {"devices": self.devices, "micro_batch": self.micro_batch}
        return [
            {
                "zero": stage,
                "activation_checkpointing": recompute,
                "bytes": job.memory_bytes(stage=stage, recompute=recompute, **told),
            }
            for stage in self._stages()
            for recompute in (False, True)
        ]

    def least_gib(self, job: Job) -> float:
        """GiB that a device needs at the least: image by image, shared and computed again.

        Where bench has measured the shape, counted bytes weigh what they did there, and its peak is enough.
        """
        told: dict[str, Any] = {"devices": self.devices, "micro_batch": self.micro_batch or 1, "recompute": True}
        counted = min(job.memory_bytes(stage=stage, **told) for stage in self._stages())
        peak = self.rates.peak(job)
        least = counted if peak is None else min(peak.bytes, counted * self.ratio(job))
        return least / 2**30

    def ratio(self, job: Job) -> float:
        """Measured / counted bytes of the job's shape; 1 where none was measured."""
        peak = self.rates.peak(job)
        return 1.0 if peak is None else peak.bytes / peak.planned(job)

    def _stages(self) -> range:
        return range(4 if self.devices > 1 else 1)

    def totals(self, jobs: Sequence[Job], states: Mapping[str, str]) -> dict[str, Any]:
        """Sums over all jobs, and over those that are left; FLOPs, device-hours, money, bytes."""
        left = left_of(jobs, states)
        flops = flops_of(jobs, states, self.counting, self.begun)
        hours = self.hours(left)
        return {
            "flops": flops.total,
            "flops_left": flops.left,
            "pretrain_flops_alone": flops.alone,
            "pretrain_flops_shared": flops.shared,
            "pretrain_flops_saved": flops.alone - flops.shared,
            "device_hours_left": hours,
            "price_left": self.money(hours),
            "checkpoint_bytes": sum(disk_bytes(job, cleaned=False) for job in left if job.kind == "pretrain"),
            "finetuning_checkpoint_bytes": passing_bytes(left),
        }
