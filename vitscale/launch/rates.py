"""How fast each shape of a study trains, and in how much memory: as `vitscale bench` has measured it. A rate that was
not measured is a guess that is called one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from vitscale import models
from vitscale.errors import USAGE, VitscaleError
from vitscale.models.counts import Head
from vitscale.peaks import GPU_PEAKS, gpu_peak, known_gpu
from vitscale.remember import all_recalled, recalled, remember
from vitscale.study.job import Job

FILE = "throughput.json"
FLOPS_PER_CORE = 2e10
"""A guess for fp32 training of small models on one server core, until something has been measured."""
OF_SPEED = ("batch_size", "precision", "ema", "grad_clip", "dropout", "stochastic_depth", "mixup", "objective")
"""Settings of a recipe that a step's time depends on."""
CUT_UP = ("micro_batch", "zero_stage", "activation_checkpointing", "offload")
"""Settings of the engine that a step's memory depends on."""
GUESSED_MFU = 0.4
"""Share of a GPU's peak that training is guessed to reach until it is measured."""


def shape_of(job: Job) -> str:
    """All that a step's time depends on but the machine, in short."""
    recipe = tuple((name, getattr(job.run.recipe, name)) for name in OF_SPEED)
    return _shape(job.arch, job.head, job.run.data.resolution, recipe)


@lru_cache(maxsize=1024)
def _shape(arch: models.Arch, head: Head, resolution: int, recipe: tuple[tuple[str, Any], ...]) -> str:
    facts = {"arch": models.to_dict(arch), "head": asdict(head), "resolution": resolution, "recipe": dict(recipe)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def keep(job: Job, device: str, found: Mapping[str, Any]) -> None:
    """Keeps what was measured of a job's shape on a kind of device."""
    shape = shape_of(job)
    known = recalled(FILE, shape)
    remember(FILE, shape, {**(known if isinstance(known, dict) else {}), device: dict(found)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What each device held at most while steps were timed, and how these were cut up."""

    bytes: int
    devices: int
    micro_batch: int
    zero_stage: int
    activation_checkpointing: bool
    offload: bool

    @property
    def cut_up(self) -> tuple[int, int, int, bool, bool]:
        """Devices, images at once, ZeRO stage, activation checkpointing, offload."""
        return self.devices, self.micro_batch, self.zero_stage, self.activation_checkpointing, self.offload

    def planned(self, job: Job) -> int:
        """What `plan` counts of a job that is cut up so."""
        return job.memory_bytes(
            stage=self.zero_stage,
            devices=self.devices,
            micro_batch=self.micro_batch,
            recompute=self.activation_checkpointing,
            offload=self.offload,
        )


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Training FLOP/s of one device, by shape, and where they come from."""

    device: str
    measured: Mapping[str, float]
    guess: float
    """Of shapes that were not measured: the mean of those that were, or what `how` says."""
    how: str
    peaks: Mapping[str, Peak] = field(default_factory=dict)
    """Of memory, by shape, where it was measured."""
    threads: int | None = None
    """Of a processor on which it was measured."""

    def seconds(self, job: Job) -> float:
        """Device-seconds that a job computes; start-up, data and evaluation left out."""
        return job.flops / self.measured.get(shape_of(job), self.guess)

    def peak(self, job: Job) -> Peak | None:
        """Of memory, in pre-training; None where it was not measured."""
        return self.peaks.get(shape_of(job)) if job.kind == "pretrain" else None


def rates_of(jobs: Iterable[Job], device: str | None, cores: int) -> Rates:
    """What is known of the shapes of these jobs on the devices whose name holds `device`.

    None: on the kind of device that most of them were measured on.

    Raises:
        VitscaleError: nothing was measured on such a device, and no GPU is called so (exit 2).
    """
    shapes = {shape_of(job): job for job in jobs if job.kind == "pretrain"}
    kept = all_recalled(FILE)
    known = {shape: _known(kept[shape], device) for shape in shapes if shape in kept}
    names = [name for found in known.values() for name in found]
    if not names:
        _check_device(device, {name for found in kept.values() for name in _known(found, None)})
        return _guess(shapes.values(), device, cores)
    name = max(sorted(set(names)), key=names.count)
    here = {shape: found[name] for shape, found in known.items() if name in found}
    measured = {shape: _images_per_second(facts) * 6 * shapes[shape].macs for shape, facts in here.items()}
    guess = sum(measured.values()) / len(measured)
    how = f"as measured on {name}"
    if len(measured) < len(shapes):
        missing = f"{len(shapes) - len(measured)} of {len(shapes)} shapes"
        how += f"; {missing} were not, and are guessed at the others' mean rate"
    peaks = {shape: peak for shape, facts in here.items() if (peak := _peak(facts)) is not None}
    threads = {facts.get("threads") for facts in here.values()}
    same = threads.pop() if len(threads) == 1 else None
    return Rates(device=name, measured=measured, guess=guess, how=how, peaks=peaks, threads=same)


def _known(found: Any, device: str | None) -> dict[str, Mapping[str, Any]]:
    """What was measured by the device's name; what is damaged is not known."""
    try:
        return {
            name: facts
            for name, facts in found.items()
            if _images_per_second(facts) > 0 and (device is None or device.lower() in name.lower())
        }
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return {}


def _images_per_second(facts: Mapping[str, Any]) -> float:
    """Of one device."""
    return float(facts["images_per_second"]) / int(facts["devices"])


def _peak(facts: Mapping[str, Any]) -> Peak | None:
    try:
        cut_up = {name: facts["settings"][name] for name in CUT_UP}
        return Peak(bytes=int(facts["memory"]), devices=int(facts["devices"]), **cut_up)
    except (KeyError, TypeError, ValueError):  # of before memory was measured, or damaged
        return None


def _check_device(device: str | None, measured: Iterable[str]) -> None:
    """Refuses a name that says nothing: the guess would be of this machine's processor."""
    measured = sorted(measured)
    if device is None or known_gpu(device) or any(device.lower() in name.lower() for name in measured):
        return
    names = {name.lower(): name for name in [*GPU_PEAKS, *measured]}
    near = get_close_matches(device.lower(), names, n=1)
    timed = f"; vitscale bench has timed {', '.join(measured)}" if measured else "; vitscale bench times this machine"
    raise VitscaleError(
        f"--device {device}: no such device is known",
        hint=(f"did you mean {names[near[0]]}? " if near else "") + f"known are {', '.join(GPU_PEAKS)}{timed}",
        exit_code=USAGE,
    )


def _guess(jobs: Iterable[Job], device: str | None, cores: int) -> Rates:
    precisions = {job.run.recipe.precision for job in jobs}
    gpu = known_gpu(device or "")
    peak = gpu_peak(gpu, "fp32" if "fp32" in precisions else "bf16") if gpu else None
    if gpu is None or peak is None:
        how = f"a guess, {FLOPS_PER_CORE / 1e9:.0f} GFLOP/s on each of {cores} cores"
        return Rates(device="this processor", measured={}, guess=FLOPS_PER_CORE * cores, how=how)
    how = f"a guess, {GUESSED_MFU:.0%} of the {peak / 1e12:,.0f} TFLOP/s of {gpu}"
    return Rates(device=gpu, measured={}, guess=GUESSED_MFU * peak, how=how)
