"""DeepSpeed around a network: process group, optimizer, one training step, state by parameter name."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from vitscale.config import Recipe
from vitscale.errors import MISSING, VitscaleError
from vitscale.train import group

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
with warnings.catch_warnings():
    # Deprecations inside DeepSpeed and what it imports; the user can do nothing about them.
    warnings.simplefilter("ignore")
    import deepspeed
    import deepspeed.ops

# A shared-memory collective that only inference uses; DeepSpeed would compile it for half a minute.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

STATES = ("exp_avg", "exp_avg_sq", "momentum_buffer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """This device's part of the global batch of one step. `weights` is 0 where an image could not be read, else 1."""

    images: UInt8[Tensor, "batch 3 height width"]
    labels: Int64[Tensor, batch]
    weights: Float[Tensor, batch]
    share: float = 1.0
    """What each image keeps of itself; the rest is the next image of the global batch, after the last one the first.
    Below 1 the image that follows this part's last one stands behind it."""


def device_name() -> str:
    """The accelerator's name, or the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"


@cache
def processor() -> str:
    """The processor's name. Linux says it at once; py-cpuinfo, which knows the other systems, asks for a second."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        if name := next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None):
            return name
    import cpuinfo

    return str(cpuinfo.get_cpu_info().get("brand_raw", "CPU"))


def check_precision(recipe: Recipe) -> None:
    """Refuses what the device cannot do, instead of falling back.

    Raises:
        VitscaleError: exit 5.
    """
    if recipe.precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise VitscaleError(
            f"{device_name()} cannot compute in bf16",
            hint="choose another device, or recipe.precision = 'fp32' (another run, with another id)",
            exit_code=MISSING,
        )


class Engine:
    """One network in training: forward, backward and step through DeepSpeed."""

    def __init__(
        self,
        net: nn.Module,
        recipe: Recipe,
        *,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        micro_batch: int | None = None,
        zero_stage: int = 0,
        activation_checkpointing: bool = False,
        compiled: bool = False,
    ) -> None:
        check_precision(recipe)
        if zero_stage:
            raise VitscaleError(
                f"ZeRO stage {zero_stage} is not built yet", hint="leave it at 0: one device needs no more", exit_code=2
            )
        self.recipe = recipe
        self.devices = group.world_size()
        part = recipe.batch_size // self.devices
        self.micro_batch = min(micro_batch or part, part)
        if recipe.batch_size % self.devices or part % self.micro_batch:
            of = f" on {self.devices} devices" if self.devices > 1 else ""
            raise VitscaleError(
                f"micro-batch {self.micro_batch}{of} does not divide the global batch {recipe.batch_size}",
                hint="give a divisor of recipe.batch_size to --devices, and one of each device's part to --micro-batch",
                exit_code=2,
            )
        self.net = net
        net.recompute = activation_checkpointing  # type: ignore[assignment]  # every family has it
        self.optimizer = make_optimizer(net, recipe, optimizer)
        self.accumulation = part // self.micro_batch
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": recipe.grad_clip,
            "zero_optimization": {"stage": zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }
        if recipe.precision == "bf16":
            # DeepSpeed's own bf16 without ZeRO starts Adam with a dummy step; autocast keeps fp32 weights.
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.engine, *_ = deepspeed.initialize(model=net, optimizer=self.optimizer, config=config)
        self.device = self.engine.device
        if compiled:
            self.engine.compile()

    def step(self, batch: Batch, lr: float) -> tuple[float, float]:
        """One optimizer step over a global batch, of which every device gives its part.

        Returns (mean loss of the readable images, gradient norm), the same on every device.
        """
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        self.net.train()
        count = self.micro_batch * self.accumulation
        (good,) = group.summed(float(batch.weights[:count].sum()))
        total = torch.zeros((), device=self.device)
        for start in range(0, count, self.micro_batch):
            part = slice(start, start + self.micro_batch)
            losses = self._blended(batch, part) if batch.share < 1 else self._plain(batch, part)
            loss = (losses * batch.weights[part].to(self.device)).sum() / max(good, 1.0)
            total += loss.detach()
            # DeepSpeed divides by accumulation steps and devices; this sum is over the whole batch already.
            self.engine.backward(loss * (self.accumulation * self.devices))
            if start + self.micro_batch >= count:
                norm = gradient_norm(self.net)
            self.engine.step()
        return group.summed(float(total))[0], norm

    def _plain(self, batch: Batch, part: slice) -> Float[Tensor, batch]:
        logits = self.engine(to_device(batch.images[part], self.device))
        return self.losses(logits, batch.labels[part].to(self.device))

    def _blended(self, batch: Batch, part: slice) -> Float[Tensor, batch]:
        """Mixup: images and losses, each with those of the next position of the global batch."""
        following = slice(part.start + 1, part.stop + 1)
        # One that could not be read is black: what it follows stays as it is.
        share = torch.where(batch.weights[following] > 0, batch.share, 1.0).to(self.device)
        own, other = (to_device(batch.images[which], self.device) for which in (part, following))
        weight = share[:, None, None, None]
        logits = self.engine(own.mul_(weight).add_(other.mul_(1 - weight)))
        one, two = (self.losses(logits, batch.labels[which].to(self.device)) for which in (part, following))
        return share * one + (1 - share) * two

    def losses(self, logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, batch]) -> Float[Tensor, batch]:
        return per_image_loss(logits.float(), labels, self.recipe)

    def state(self) -> dict[str, Tensor]:
        """The optimizer's state by parameter name: `NAME.exp_avg` and so on."""
        found = {}
        for name, parameter in self.net.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            found.update({f"{name}.{key}": state[key].detach().clone() for key in STATES if key in state})
        return found

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Puts back what `state` gave after `step` optimizer steps."""
        for name, parameter in self.net.named_parameters():
            state = {key: tensors[f"{name}.{key}"].to(self.device) for key in STATES if f"{name}.{key}" in tensors}
            if "exp_avg" in state:
                state["step"] = torch.tensor(float(step), device=self.device)  # where fused AdamW keeps it
            if state:
                self.optimizer.state[parameter] = state

    def close(self) -> None:
        """Frees what DeepSpeed holds."""
        self.engine.destroy()


def make_optimizer(net: nn.Module, recipe: Recipe, kind: Literal["adamw", "sgd"]) -> torch.optim.Optimizer:
    """AdamW with decay on matrices and kernels only (no bias, norm, embedding, class token), or SGD, momentum 0.9."""
    if kind == "sgd":
        return torch.optim.SGD(net.parameters(), lr=recipe.lr, momentum=0.9)
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in net.named_parameters():
        matrix = parameter.ndim >= 2 and "pos_embedding" not in name and not name.endswith("class_token")
        (decayed if matrix else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), fused=True)


def gradient_norm(net: nn.Module) -> float:
    """L2 norm over all gradients, before clipping; at ZeRO 0 in fp32 DeepSpeed reports none."""
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))) if gradients else 0.0


def per_image_loss(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, batch], recipe: Recipe
) -> Float[Tensor, batch]:
    """Cross-entropy of each image: softmax, or the sum of sigmoid terms over classes."""
    if recipe.loss == "softmax":
        return nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=recipe.label_smoothing)
    targets = nn.functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    targets = targets * (1 - recipe.label_smoothing) + recipe.label_smoothing / logits.shape[1]
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1)


def to_device(
    images: UInt8[Tensor, "batch 3 height width"], device: torch.device
) -> Float[Tensor, "batch 3 height width"]:
    """Bytes to the device, and there to [-1, 1]."""
    return images.to(device).float().div_(127.5).sub_(1.0)
