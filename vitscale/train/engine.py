"""DeepSpeed around a network: process group, optimizer, one training step, state by parameter name."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitscale.config import Recipe
from vitscale.errors import VitscaleError
from vitscale.train import group
from vitscale.train.device import check_precision
from vitscale.train.objective import Batch, Classification, Objective
from vitscale.train.optim import make_optimizer

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


class Engine:
    """One network in training: forward, backward and step through DeepSpeed."""

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
        compiled: bool = False,
    ) -> None:
        check_precision(recipe)
        if zero_stage:
            raise VitscaleError(
                f"ZeRO stage {zero_stage} is not built yet", hint="leave it at 0: one device needs no more", exit_code=2
            )
        self.recipe = recipe
        self.objective = objective or Classification(recipe)
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
            losses = self.objective(self.engine, batch, part, self.device)
            loss = (losses * batch.weights[part].to(self.device)).sum() / max(good, 1.0)
            total += loss.detach()
            # DeepSpeed divides by accumulation steps and devices; this sum is over the whole batch already.
            self.engine.backward(loss * (self.accumulation * self.devices))
            if start + self.micro_batch >= count:
                norm = gradient_norm(self.net)
            self.engine.step()
        return group.summed(float(total))[0], norm

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


def gradient_norm(net: nn.Module) -> float:
    """L2 norm over all gradients, before clipping; at ZeRO 0 in fp32 DeepSpeed reports none."""
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))) if gradients else 0.0
