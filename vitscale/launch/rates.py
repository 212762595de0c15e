"""How fast each shape of a study trains: as `vitscale bench` has measured it, else a guess that is called one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from vitscale import models
from vitscale.launch.estimate import FLOPS_PER_CORE
from vitscale.models.counts import Head
from vitscale.peaks import gpu_peak
from vitscale.remember import recalled, remember
from vitscale.study.job import Job

FILE = "throughput.json"
OF_SPEED = ("batch_size", "precision", "ema", "grad_clip", "dropout", "stochastic_depth", "mixup", "objective")
"""Settings of a recipe that a step's time depends on."""
GUESSED_MFU = 0.4
"""Share of a GPU's peak that training is guessed to reach until it is measured."""


def shape_of(job: Job) -> str:
    """All that a step's time depends on but the machine, in short."""
    recipe = tuple((name, getattr(job.run.recipe, name)) for name in OF_SPEED)
    return _shape(job.arch, job.head, job.run.data.resolution, recipe)  # type: ignore[arg-type]  # an Arch is frozen


@lru_cache(maxsize=1024)
def _shape(arch: models.Arch, head: Head, resolution: int, recipe: tuple[tuple[str, Any], ...]) -> str:
    facts = {"arch": models.to_dict(arch), "head": asdict(head), "resolution": resolution, "recipe": dict(recipe)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def keep(job: Job, device: str, found: Mapping[str, Any]) -> None:
    """Keeps what was measured of a job's shape on a kind of device."""
    shape = shape_of(job)
    known = recalled(FILE, shape)
    remember(FILE, shape, {**(known if isinstance(known, dict) else {}), device: dict(found)})


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Training FLOP/s of one device, by shape, and where they come from."""

    device: str
    measured: Mapping[str, float]
    guess: float
    """Of shapes that were not measured: the mean of those that were, or what `how` says."""
    how: str

    def seconds(self, job: Job) -> float:
        """Device-seconds that a job computes; start-up, data and evaluation left out."""
        return job.flops / self.measured.get(shape_of(job), self.guess)


def rates_of(jobs: Iterable[Job], device: str | None, cores: int) -> Rates:
    """What is known of the shapes of these jobs on the devices whose name holds `device`.

    None: on the kind of device that most of them were measured on.
    """
    shapes = {shape_of(job): job for job in jobs if job.kind == "pretrain"}
    known = {shape: _known(recalled(FILE, shape), device) for shape in shapes}
    names = [name for found in known.values() for name in found]
    if not names:
        return _guess(shapes.values(), device, cores)
    name = max(sorted(set(names)), key=names.count)
    measured = {s: found[name] * 6 * shapes[s].macs for s, found in known.items() if name in found}
    guess = sum(measured.values()) / len(measured)
    how = f"as measured on {name}"
    if len(measured) < len(shapes):
        missing = f"{len(shapes) - len(measured)} of {len(shapes)} shapes"
        how += f"; {missing} were not, and are guessed at the others' mean rate"
    return Rates(device=name, measured=measured, guess=guess, how=how)


def _known(found: Any, device: str | None) -> dict[str, float]:
    """Images/s of one device by its name; what is damaged is not known."""
    try:
        return {
            name: float(facts["images_per_second"]) / int(facts["devices"])
            for name, facts in found.items()
            if device is None or device.lower() in name.lower()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def _guess(jobs: Iterable[Job], device: str | None, cores: int) -> Rates:
    precisions = {job.run.recipe.precision for job in jobs}
    peak = gpu_peak(device, "fp32" if "fp32" in precisions else "bf16") if device else None
    if peak is None:
        how = f"a guess, {FLOPS_PER_CORE / 1e9:.0f} GFLOP/s on each of {cores} cores"
        return Rates(device="this processor", measured={}, guess=FLOPS_PER_CORE * cores, how=how)
    how = f"a guess, {GUESSED_MFU:.0%} of the {peak / 1e12:,.0f} TFLOP/s of {device}"
    return Rates(device=str(device), measured={}, guess=GUESSED_MFU * peak, how=how)
