"""The options of how a run is trained, none of which changes its outcome: spelled once for the verbs that take them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Parameter
from typing import Any, TypeVar, get_type_hints

from vitscale.cli import options
from vitscale.study.cost import KEPT

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class CutUp:
    """How a step is cut up; each as `Machine` has it."""

    micro_batch: options.MicroBatch = options.AUTO
    zero_stage: options.Zero = options.AUTO
    activation_checkpointing: options.ActivationCheckpointing = None
    offload: options.Offload = None
    compiled: options.Compile = False

    def settings(self) -> dict[str, Any]:
        """Of `Machine`, by its names.

        Raises:
            VitscaleError: as `options.monitors`.
        """
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**told, "micro_batch": options.given(self.micro_batch), "zero_stage": options.given(self.zero_stage)}


@dataclass(frozen=True, kw_only=True)
class Engine(CutUp):
    """And all else of a training."""

    workers: options.Workers = None
    skip_nonfinite: options.SkipNonfinite = 0
    save_every: options.SaveEvery = 60.0
    keep_last: options.KeepLast = KEPT
    keep_every: options.KeepEvery = None
    stall: options.Stall = 300.0
    tensorboard: options.Tensorboard = None
    wandb: options.Wandb = None

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **options.monitors(self.tensorboard, self.wandb)}


CUT_UP, ENGINE = CutUp(), Engine()
"""As they are unless something is given."""


def takes(kind: type[CutUp]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Of a verb with a parameter `engine`: on the command line its fields are options of their own, in its place."""
    hints = get_type_hints(kind, include_extras=True)
    own = [
        Parameter(each.name, Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name])
        for each in fields(kind)
    ]

    def decorate(verb: Callable[..., R]) -> Callable[..., R]:
        @wraps(verb)
        def wrapped(**told: Any) -> R:
            engine = kind(**{each.name: told.pop(each.name) for each in own})
            return verb(**told, engine=engine)

        signature = inspect.signature(verb, eval_str=True)
        shown: list[Parameter] = []
        for each in signature.parameters.values():
            shown += own if each.name == "engine" else [each.replace(kind=Parameter.KEYWORD_ONLY)]
        wrapped.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        return wrapped

    return decorate
