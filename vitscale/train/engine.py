"""DeepSpeed around a network: process group, optimizer, one training step, state by parameter name."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitscale.config import Recipe
from vitscale.errors import USAGE, VitscaleError
from vitscale.study.cost import BUCKET
from vitscale.train import group
from vitscale.train.device import check_precision, random_states, restore_random_states
from vitscale.train.objective import Batch, Classification, Network, Objective
from vitscale.train.optim import make_optimizer
from vitscale.train.partitions import Partition, fill, gathered, partitions
from vitscale.train.stop import Interrupted
from vitscale.train.stopwatch import Stopwatch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
with warnings.catch_warnings():
    # Deprecations inside DeepSpeed and what it imports; the user can do nothing about them.
    warnings.simplefilter("ignore")
    import deepspeed
    import deepspeed.ops

# ZeRO calls collectives by names that torch has changed; each call would say so.
warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
# A shared-memory collective that only inference uses; DeepSpeed would compile it for half a minute.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

LINEAR = nn.functional.linear
STATES = ("exp_avg", "exp_avg_sq", "momentum_buffer")
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True, slots=True)
class Stepped:
    """What an optimizer step was; the same on every device."""

    loss: float
    """Mean over the readable images of the global batch."""
    grad_norm: float
    """L2 norm over all gradients, before clipping."""

    @property
    def finite(self) -> bool:
        """If not, weights and the optimizer's state are as they were before."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Engine:
    """One network in training: forward, backward and step through DeepSpeed, at any ZeRO stage.

    Every process of a run calls every method, in the same order.
    """

    def __init__(
        self,
        net: nn.Module,
        recipe: Recipe,
        *,
        objective: Objective | None = None,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        micro_batch: int | None = None,
        zero_stage: int = 0,
        activation_checkpointing: bool = False,
        offload: bool = False,
        compiled: bool = False,
    ) -> None:
        check_precision(recipe)
        check_offload(offload, zero_stage)
        self.recipe, self.stage, self.offload, self.net = recipe, zero_stage, offload, net
        self.objective = objective or Classification(recipe)
        self.micro_batch, self.accumulation = micro_batches(recipe.batch_size, micro_batch)
        net.recompute = activation_checkpointing  # type: ignore[assignment]  # every family has it
        # At stage 3 DeepSpeed puts its own in the place of torch's, which sums otherwise, and leaves it there.
        nn.functional.linear = LINEAR
        self.shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
        self.optimizer = make_optimizer(net, recipe, optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # DeepSpeed takes the process's number on its host for that of its device, unless it is told.
            where = SimpleNamespace(device_rank=group.device().index or 0)
            self.engine, *_ = deepspeed.initialize(
                args=where, model=net, optimizer=self.optimizer, config=self._config()
            )
        self.device = self.engine.device
        # One device has nothing to sum; DeepSpeed would copy all gradients to and fro for it.
        self.engine.enable_backward_allreduce = zero_stage > 0 or group.world_size() > 1
        self.partitions = partitions(net, self.engine.optimizer, zero_stage)
        self.averages = [part.values.detach().clone() for part in self.partitions] if recipe.ema else None
        self.seconds: dict[str, float] = {}
        self._watch = Stopwatch(self.device)
        if compiled:
            self.engine.compile()

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            # At stage 0 the norm is taken here, and DeepSpeed would take it once more.
            "gradient_clipping": self.recipe.grad_clip if self.stage else 0.0,
            "zero_optimization": self._sharing(),
            "zero_allow_untested_optimizer": True,
            # torch's fused AdamW runs on a processor as well, and nothing has to be compiled for it.
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        }
        if self.recipe.precision == "bf16":
            # DeepSpeed's own bf16 without ZeRO starts Adam with a dummy step; autocast keeps fp32 weights.
            # Of the modules named, DeepSpeed would round gradients to bf16 before it sums them: but for stage 0.
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        return config

    def _sharing(self) -> dict[str, Any]:
        if not self.stage:
            return {"stage": 0}
        sharing: dict[str, Any] = {"stage": self.stage, "reduce_bucket_size": bucket_size(self.shapes.values())}
        if self.stage == 3:  # else it keeps whole weights of up to 4 GB until their next use
            sharing |= {f"stage3_{name}": BUCKET for name in ("max_live_parameters", "max_reuse_distance")}
        if self.offload:
            sharing["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        return sharing

    def step(self, batch: Batch, lr: float, asked: Callable[[], bool] = lambda: False) -> Stepped:
        """One optimizer step over a global batch, of which every device gives its part.

        Where it is not finite, weights and the optimizer's state stay as they are.

        Raises:
            Interrupted: it was `asked` to stop between two micro-batches; weights, optimizer and random draws are as
                before the step.
        """
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        self.net.train()
        count = self.micro_batch * self.accumulation
        (good,) = group.summed(float(batch.weights[:count].sum()))
        total = torch.zeros((), device=self.device)
        draws = random_states()
        for start in range(0, count, self.micro_batch):
            if start and asked():
                restore_random_states(draws)
                raise Interrupted
            part = slice(start, start + self.micro_batch)
            self.engine.set_gradient_accumulation_boundary(part.stop == count)
            with self._watch.part("forward"):
                losses = self.objective(self.engine, batch, part, self.device)
                loss = (losses * batch.weights[part].to(self.device, non_blocking=True)).sum() / max(good, 1.0)
                total += loss.detach()
            with self._watch.part("backward"):
                # DeepSpeed divides by the devices; this sum is over the whole batch already.
                self.engine.backward(loss * group.world_size(), scale_wrt_gas=False)
            if part.stop < count:
                self.engine.step()
        with self._watch.part("step"):
            norm = self._update()
        stepped = Stepped(group.summed(float(total))[0], norm)
        self.seconds = self._watch.take()
        return stepped

    def _update(self) -> float:
        """Clips, steps and averages, unless the gradients are not finite; returns their norm."""
        if self.stage:
            self.engine.step()  # which skips the update itself
            norm = float(self.engine.get_global_grad_norm())
        else:
            norm = clip(self.net, self.recipe.grad_clip)
            if not math.isfinite(norm):
                self.engine.zero_grad()
                return norm
            self.engine.step()
        if self.averages is not None and math.isfinite(norm):
            values = [part.values.detach() for part in self.partitions]
            torch._foreach_lerp_(self.averages, values, 1 - self.recipe.ema)
        return norm

    def weights(self) -> dict[str, Tensor]:
        """A copy of all weights on the CPU, in the first process; the others get nothing."""
        return self._whole([(part, part.values) for part in self.partitions])

    def averaged_weights(self) -> dict[str, Tensor]:
        """As `weights`, of the moving averages; nothing where the recipe has none."""
        if self.averages is None:
            return {}
        return self._whole(list(zip(self.partitions, self.averages, strict=True)))

    def state(self) -> dict[str, Tensor]:
        """The optimizer's state by parameter name: `NAME.exp_avg` and so on; in the first process."""
        found = {}
        for key in STATES:
            parts = [(part, self.optimizer.state.get(part.values, {}).get(key)) for part in self.partitions]
            if held := [(part, flat) for part, flat in parts if flat is not None]:
                found.update({f"{name}.{key}": tensor for name, tensor in self._whole(held).items()})
        return found

    def _whole(self, parts: list[tuple[Partition, Tensor]]) -> dict[str, Tensor]:
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._gathered(parts)}

    def _gathered(
        self, parts: list[tuple[Partition, Tensor]], *, everywhere: bool = False
    ) -> Iterator[tuple[str, Tensor]]:
        if self.stage:
            return gathered(parts, self.shapes, everywhere=everywhere)
        # Every process has all of it.
        return iter((part.pieces[0].name, flat) for part, flat in parts if everywhere or group.is_first())

    def load_state(self, tensors: Mapping[str, Tensor], averages: Mapping[str, Tensor], updates: int) -> None:
        """Puts back what `state` and `averaged_weights` gave after so many updates, at whatever stage, on however many
        devices. The weights themselves are loaded into the network before the engine is made."""
        keys = [key for key in STATES if any(name.endswith(f".{key}") for name in tensors)]
        for i, part in enumerate(self.partitions):
            state = {key: torch.zeros_like(part.values, requires_grad=False) for key in keys}
            for key, flat in state.items():
                fill(part, flat, lambda name, key=key: tensors[f"{name}.{key}"])
            if "exp_avg" in state:
                state["step"] = torch.tensor(float(updates), device=part.values.device)  # where fused AdamW keeps it
            if state:
                self.optimizer.state[part.values] = state
            if self.averages is not None:
                fill(part, self.averages[i], averages.__getitem__)

    @contextmanager
    def for_evaluation(self) -> Iterator[Network]:
        """The network in evaluation mode, with the averaged weights where there are such."""
        self.net.eval()
        # Not net(...): where the engine compiles, it would be compiled again for this. At stage 3 only that gathers the
        # weights that the network itself holds, beside those of its layers.
        network = self.net if self.stage == 3 else self.net.forward
        if self.averages is None:
            yield network
        elif self.stage == 3:
            self._set_cut(self.averages)
            try:
                yield network
            finally:  # a stop may come meanwhile, and the weights are saved then
                self._set_cut([part.values for part in self.partitions])
        else:
            own = {name: parameter.detach().clone() for name, parameter in self.net.named_parameters()}
            self._set(self._gathered(list(zip(self.partitions, self.averages, strict=True)), everywhere=True))
            try:
                yield network
            finally:
                self._set(own.items())

    def _set(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        parameters = dict(self.net.named_parameters())
        for name, tensor in weights:
            parameters[name].data.copy_(tensor)

    def _set_cut(self, flats: Sequence[Tensor]) -> None:
        """The weights at stage 3, of which each process holds a part and some are kept whole until they change."""
        parameters: dict[str, Any] = dict(self.net.named_parameters())
        for part, flat in zip(self.partitions, flats, strict=True):
            for piece in part.pieces:
                new = flat.detach()[piece.offset : piece.offset + piece.length]
                parameters[piece.name].ds_tensor.data[: piece.length].copy_(new)
        for parameter in parameters.values():
            parameter.partition()

    def close(self) -> None:
        """Frees what DeepSpeed holds, and what it has put in torch's place: features may be computed next."""
        self.engine.destroy()
        nn.functional.linear = LINEAR


def check_offload(offload: bool, stage: int) -> None:
    """Refuses what DeepSpeed would leave out without a word.

    Raises:
        VitscaleError: the optimizer's state is on the device as a whole (exit 2).
    """
    if offload and not stage:
        raise VitscaleError("--offload needs a ZeRO stage", hint="give --zero 1, 2 or 3 as well", exit_code=USAGE)


def bucket_size(shapes: Iterable[tuple[int, ...]]) -> int:
    """Elements of the gradients that are summed over the devices at a time; there is a buffer of that size."""
    sizes = [math.prod(shape) for shape in shapes]
    return min(sum(sizes), max(BUCKET, *sizes))


def micro_batches(batch_size: int, micro_batch: int | None) -> tuple[int, int]:
    """(images at once on a device, how often it accumulates them) for a global batch.

    Raises:
        VitscaleError: they leave a rest (exit 2).
    """
    devices = group.world_size()
    part = batch_size // devices
    micro_batch = min(micro_batch or part, part)
    if batch_size % devices or part % micro_batch:
        of = f" on {devices} devices" if devices > 1 else ""
        raise VitscaleError(
            f"micro-batch {micro_batch}{of} does not divide the global batch {batch_size}",
            hint="give a divisor of recipe.batch_size to --devices, and one of each device's part to --micro-batch",
            exit_code=USAGE,
        )
    return micro_batch, part // micro_batch


def clip(net: nn.Module, most: float) -> float:
    """Scales the gradients so that their L2 norm is at most that (0: any), and returns what it was before."""
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    norm = torch.stack(torch._foreach_norm(gradients)).pow(2).sum().sqrt()
    if most > 0:
        torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1.0))
    return float(norm)
