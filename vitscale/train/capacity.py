"""What fits into this device's memory: micro-batch, ZeRO stage, activation checkpointing, offload.

What forward and backward passes need is measured on the network alone, in each process by itself, before DeepSpeed has
it: an allocation that fails there leaves no other process waiting. What is kept beside that is arithmetic
(`study.cost.model_state_bytes`).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import nn

from vitscale.config import Recipe
from vitscale.errors import MISSING, VitscaleError
from vitscale.failures import Failure
from vitscale.models.counts import Activations
from vitscale.remember import recalled, remember
from vitscale.study.cost import MOMENTS, model_state_bytes
from vitscale.train import group
from vitscale.train.device import (
    device_name,
    is_out_of_memory,
    memory_held,
    memory_limit,
    memory_peak,
    random_states,
    reset_memory_peak,
    restore_random_states,
)
from vitscale.train.engine import check_offload
from vitscale.train.objective import Batch, Objective
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Interrupted, Stop
from vitscale.wording import count

FILE = "capacity.json"
ENOUGH = 8
"""Images at once below which a device has too little to do: rather share or compute more."""
OF_MEMORY = ("batch_size", "precision", "ema", "dropout", "stochastic_depth", "mixup", "objective")
"""Settings of a recipe that a step's memory depends on."""
SAFE = 2
"""How far an estimate may be off and still fit twice over: then nothing is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of the engine; none of them changes an outcome but for rounding."""

    micro_batch: int
    zero_stage: int
    activation_checkpointing: bool
    offload: bool


NAMES = tuple(Settings.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be trained, and in what pieces: `blank(n)` is a batch of n images as the objective wants it."""

    net: nn.Module
    recipe: Recipe
    objective: Objective
    blank: Callable[[int], Batch]
    activations: Callable[[bool], Activations]
    """With activation checkpointing or without, as the architecture counts them."""
    moments: int = MOMENTS
    measured: dict[tuple[int, bool], float] = field(default_factory=dict, init=False)

    @property
    def part(self) -> int:
        """Images of the global batch that each device has."""
        return self.recipe.batch_size // group.world_size()

    @property
    def params(self) -> int:
        return sum(parameter.numel() for parameter in self.net.parameters())

    @property
    def copy_bytes(self) -> int:
        """What a checkpoint is written from while training goes on: a copy of all that is saved, in the first process.

        Of a GPU's run it lies in the machine's memory, which is not what is short there.
        """
        if torch.cuda.is_available() or not group.is_first():
            return 0
        return 4 * self.params * (1 + self.moments + (self.recipe.ema > 0))

    def state_bytes(self, settings: Settings) -> int:
        return self.copy_bytes + model_state_bytes(
            self.params,
            stage=settings.zero_stage,
            devices=group.world_size(),
            offload=settings.offload,
            averaged=self.recipe.ema > 0,
            moments=self.moments,
        )

    def pass_bytes(self, images: int, recompute: bool) -> float:
        """What a forward and backward pass holds beside weights and gradients, measured; infinite where it fails."""
        key = images, recompute
        if key not in self.measured:
            self.measured[key] = self._measure(images, recompute)
        return self.measured[key]

    def _measure(self, images: int, recompute: bool) -> float:
        device = group.device()
        draws, loss = random_states(), None
        self.net.to(device).train().recompute = recompute  # type: ignore[assignment]  # every family has it
        batch = self.blank(images)
        reset_memory_peak()
        before = memory_held() + 4 * self.params
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
                loss = self.objective(self.net, batch, slice(0, images), device).sum()
            loss.backward()
            return float(max(memory_peak() - before, 0))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return math.inf
        finally:
            loss = None
            self.net.zero_grad(set_to_none=True)
            restore_random_states(draws)
            reset_memory_peak()


def engine_settings(rundir: RunDir, work: Work, stop: Stop) -> dict[str, Any]:
    """What `Engine` is told of the machine: as asked for, and where nothing was, as fits and was found before.

    A call that every process makes.

    Raises:
        VitscaleError: not even one image fits (exit 5).
    """
    machine = rundir.machine
    asked: dict[str, Any] = {name: machine.get(name) for name in NAMES}
    check_offload(bool(asked["offload"]), 1 if asked["zero_stage"] is None else asked["zero_stage"])
    if asked["micro_batch"]:  # which a transfer's batch need not be a multiple of
        asked["micro_batch"] = max(n for n in _divisors(work.part) if n <= asked["micro_batch"])
    limit = int(group.least(_limit(machine)))
    task = {"batch_size": work.recipe.batch_size, "devices": group.world_size(), "asked": asked}
    shape = _shape(work, task, compiled=machine.get("compiled", False))
    settings, found = (None if None in asked.values() else Settings(**asked)), "given"
    if settings is None:
        settings, found = _begun(rundir, work, task)
    if settings is None:
        settings, found = _recalled(shape, limit), "remembered"
    if settings is None:
        settings = choose(work, asked, limit, stop)
        found = "measured" if work.measured else "estimated"
    if found not in ("given", "remembered") and group.is_first():
        remember(FILE, shape, {"limit": limit, **asdict(settings)})
    threads = torch.get_num_threads()
    rundir.log("engine", {"task": task, "how": found, **asdict(settings), "threads": threads})
    return {**asdict(settings), "compiled": machine.get("compiled", False)}


def may_shrink(rundir: RunDir) -> bool:
    """Whether an attempt that has run out of memory leaves the next one fewer images at once to try."""
    begun = [event for event in rundir.events() if event["event"] in ("start", "engine")][-1:]
    return not rundir.machine.get("micro_batch") and all(event.get("micro_batch", 1) > 1 for event in begun)


def _begun(rundir: RunDir, work: Work, task: Mapping[str, Any]) -> tuple[Settings | None, str]:
    """What an earlier attempt on as many devices had, so that the run ends with the same bits; fewer images at once
    where it ran out of memory."""
    logged = [event for event in rundir.events() if event["event"] in ("engine", "out_of_memory")]
    events = group.agreed(logged if group.is_first() else [])
    last = next((i for i in reversed(range(len(events))) if events[i].get("task") == task), None)
    if last is None:
        return None, ""
    told, ran_out = events[last], [event["event"] for event in events[last + 1 : last + 2]] == ["out_of_memory"]
    settings = Settings(**{name: told[name] for name in NAMES})
    if not ran_out or task["asked"]["micro_batch"] or settings.micro_batch == 1:
        return settings, "remembered"
    fewer = max(n for n in _divisors(work.part) if n < settings.micro_batch)
    return replace(settings, micro_batch=fewer), "reduced"


def _recalled(shape: str, limit: int) -> Settings | None:
    """What another run of this shape found, where it had about as much memory."""
    known: Any = group.agreed(recalled(FILE, shape) if group.is_first() else None)
    try:
        near = known["limit"] * 0.98 <= limit <= known["limit"] * 1.25
        return Settings(**{name: known[name] for name in NAMES}) if near else None
    except (KeyError, TypeError):  # nothing, or nothing of ours
        return None


def _shape(work: Work, task: Mapping[str, Any], *, compiled: bool) -> str:
    """All that the memory of a step depends on, in short; the same for all processes."""
    facts = {
        **task,
        "device": sorted(group.union({device_name()})),
        "torch": torch.__version__,
        "weights": {name: tuple(parameter.shape) for name, parameter in work.net.named_parameters()},
        "image": tuple(work.blank(1).images.shape),
        "recipe": {name: getattr(work.recipe, name) for name in OF_MEMORY},
        "moments": work.moments,
        "compiled": compiled,
        "copied": not torch.cuda.is_available(),  # what was found before copies were counted may be too much
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _limit(machine: dict[str, Any]) -> int:
    processes = machine.get("jobs", 1) * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return memory_limit(processes, per_gpu=machine.get("per_gpu", 1))


def choose(work: Work, asked: Mapping[str, Any], limit: int, stop: Stop) -> Settings:
    """The settings that cost least time of those that need at most `limit` bytes; `asked`: None is free.

    Raises:
        Interrupted: a signal came meanwhile.
        VitscaleError: none do (exit 5).
    """
    sizes = [asked["micro_batch"]] if asked["micro_batch"] else _divisors(work.part)
    room = limit - max(memory_held() - 4 * sum(p.numel() for p in work.net.parameters()), 0)
    ladder = _ladder(asked)
    plain = replace(ladder[0], micro_batch=sizes[-1])
    kept = work.activations(plain.activation_checkpointing)
    # A GPU keeps more of a ResNet in bf16 than is counted: what is kept in fp32 is nearer.
    estimate = max(kept.bytes(plain.micro_batch), kept.bytes(plain.micro_batch, work.recipe.precision))
    if group.least(work.state_bytes(plain) + SAFE * estimate <= room / SAFE):
        return plain
    for enough in dict.fromkeys((min(ENOUGH, sizes[-1]), 1)):
        for sharing in ladder:
            images = int(group.least(_largest(work, sizes, sharing, room, stop)))
            if stop.asked():
                raise Interrupted
            if images >= enough:
                return replace(sharing, micro_batch=images)
    raise VitscaleError(
        f"not even {count(sizes[0], 'image')} at a time fit into the {limit / 2**30:,.1f} GiB that "
        f"each process may have on {device_name()}, of which {(limit - room) / 2**30:,.1f} are taken already",
        hint="take more devices with --zero 3, fewer --jobs, or a smaller model",
        exit_code=MISSING,
        failure=Failure.OUT_OF_MEMORY,
    )


def _ladder(asked: Mapping[str, Any]) -> list[Settings]:
    """What may be done about memory, from what costs no time to what costs most; with a micro-batch of 1."""
    several, gpu = group.world_size() > 1, torch.cuda.is_available()
    found = []
    for offload, recompute in product(
        _free(asked["offload"], [False, True] if gpu else [False]),
        _free(asked["activation_checkpointing"], [False, True]),
    ):
        # On one device the stages share nothing; only offload needs one.
        for stage in _free(asked["zero_stage"], range(int(offload), 4 if several else 1 + int(offload))):
            if stage or not offload:
                found.append(
                    Settings(micro_batch=1, zero_stage=stage, activation_checkpointing=recompute, offload=offload)
                )
    return found


def _free(given: Any, choices: Iterable[Any]) -> Iterable[Any]:
    return choices if given is None else [given]


def _largest(work: Work, sizes: Sequence[int], sharing: Settings, room: float, stop: Stop) -> int:
    """The most images at once that fit, grown step by step; 0: none. A signal ends the search.

    Twice as many need at most twice as much, so that what would not fit is not tried where it can be foreseen.
    """
    left = room - work.state_bytes(sharing)
    best, each = 0, 0.0
    larger = list(sizes)
    while near := [n for n in larger if n <= max(2 * best, larger[0]) and n * each <= left]:
        stop.at("measuring how many images fit into the memory", slow=True)
        if stop.requested:
            break
        images = near[-1]
        needed = work.pass_bytes(images, sharing.activation_checkpointing)
        if needed <= left:
            best, each = images, needed / images
            larger = [n for n in larger if n > images]
        else:
            larger = [n for n in larger if n < images]
    return best


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
