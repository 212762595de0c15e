"""A run's id: a hash over what changes its outcome and differs from the defaults.

Paths, device counts, ZeRO stage, micro-batch and loader workers are no part of it, because they must not change the
outcome. A new field with a default keeps old ids; a changed default raises `SCHEMA`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from typing import Any

from vitscale import models
from vitscale.config import Data, Model, Recipe, Run, Task, Transfer
from vitscale.sampling import fraction_of
from vitscale.study.archs import IN_ARCH, default_head_bias
from vitscale.study.datasets import Dataset, task_identity
from vitscale.study.schedule import knows_its_end, total_steps
from vitscale.study.subsets import available, num_classes, subset_seed, training_examples

SCHEMA = 1

NUMERICS = 1
"""Raised by hand when a change of the code moves results."""

OF_MASKED = ("masked_target", "masked_fraction")
"""Settings without effect on a classification."""

OF_THE_END = ("steps", "cooldown", "cooldown_shape", "end_lr")
"""Settings without effect before the cool-down of a schedule that does not know its end."""

ONLY_OF = {"fewshot": ("shots",), "finetune": ("lr", "steps", "batch_size", "warmup_steps", "seeds", "ema")}
"""Settings of a transfer that are of one protocol alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a transfer starts from: a pre-training run, or a published checkpoint."""

    run: Run
    arch: models.Arch
    dataset: Dataset
    test: Dataset | None = None
    checkpoint: str | None = None
    """SHA-256 of the file of a published checkpoint."""


def origin_id(origin: Origin) -> str:
    """12 hex digits of a pre-training run, or of a published checkpoint."""
    return _digest(origin_identity(origin))


def trunk_id(origin: Origin) -> str:
    """12 hex digits of what runs have in common that differ only in how long they train and cool down."""
    identity = origin_identity(origin)
    recipe = {key: value for key, value in identity["recipe"].items() if key not in OF_THE_END}
    return _digest({**identity, "recipe": recipe, "trunk": True})


def transfer_id(origin: Origin, transfer: Transfer, task: Task) -> str:
    """12 hex digits of a transfer: of the run it starts from, or, of a baseline, of what it starts from instead."""
    run, arch = origin.run, origin.arch
    settings = _differing(transfer, Transfer())
    for key in ("task", "resolution", *(k for p, keys in ONLY_OF.items() if p != transfer.protocol for k in keys)):
        settings.pop(key, None)
    settings["resolution"] = transfer.resolution or run.data.resolution
    positions = "none" if transfer.init == "pixels" else getattr(arch, "pos_embedding", "none")
    if settings["resolution"] == run.data.resolution or positions == "none":
        settings.pop("pos_resize", None)
    start: dict[str, Any]
    if transfer.init == "pretrained":
        start = {"parent": origin_identity(origin)}
    elif transfer.init == "untrained":
        start = {
            "arch": _numbers(arch),
            "pre_logits": run.model.pre_logits and origin.checkpoint is None,
            # The head's size moves what the generator gives the rest.
            "num_classes": num_classes(origin.dataset, run.data) or task.num_classes,
            "resolution": run.data.resolution,
            "precision": run.recipe.precision,
            "seed": run.seed,
        }
    else:
        start = {}
    return _digest({**start, "transfer": settings, "task": task_identity(task), "schema": SCHEMA, "numerics": NUMERICS})


def origin_identity(origin: Origin) -> dict[str, Any]:
    """What is hashed: architecture by its numbers, data by fingerprint, duration in steps, the rest by difference."""
    run, arch = origin.run, origin.arch
    if origin.checkpoint is not None:
        return {
            "arch": _numbers(arch),
            "checkpoint": origin.checkpoint,
            "resolution": run.data.resolution,
            "precision": run.recipe.precision,
            "schema": SCHEMA,
            "numerics": NUMERICS,
        }
    data = _data_identity(origin)
    recipe = _differing(run.recipe, Recipe())
    for key in ("epochs", "examples"):
        recipe.pop(key, None)
    recipe["steps"] = total_steps(run.recipe, data["examples"])
    recipe.pop("validate_every", None)
    recipe.pop("probe", None)
    if run.recipe.keep == "best" and run.recipe.validate_every is not None:
        recipe["validate_steps"] = max(run.recipe.validate_every // run.recipe.batch_size, 1)
    if not run.recipe.cooldown:
        recipe.pop("cooldown_shape", None)
        if not knows_its_end(run.recipe):  # nor does its rate fall to any end
            recipe.pop("end_lr", None)
    predicts_patches = run.recipe.objective == "masked-patch"
    if not predicts_patches:
        for key in OF_MASKED:
            recipe.pop(key, None)
    model = _differing(run.model, Model())
    for key in IN_ARCH:
        model.pop(key, None)
    if run.model.head_bias == default_head_bias(run.recipe):
        model.pop("head_bias", None)
    if arch.family == "resnet" or predicts_patches:  # neither has one
        model.pop("pre_logits", None)
    if arch.family == "resnet":
        recipe.pop("dropout", None)
    return {
        "arch": _numbers(arch),
        "model": model,
        "data": data,
        "recipe": recipe,
        "seed": run.seed,
        "schema": SCHEMA,
        "numerics": NUMERICS,
    }


def _data_identity(origin: Origin) -> dict[str, Any]:
    run, dataset, test = origin.run, origin.dataset, origin.test
    data = _differing(run.data, Data())
    for key in ("shards", "test", "size", "num_classes", "exclude", "max_bad", "fraction"):
        data.pop(key, None)
    data["dataset"] = dataset.fingerprint or {"size": dataset.samples, "num_classes": dataset.num_classes}
    if dataset.empty_classes:
        data["num_classes"] = dataset.num_classes
    data["examples"] = training_examples(dataset, run)
    if data["examples"] < available(dataset, run.data):
        data["subset_seed"] = subset_seed(run)
    else:
        data.pop("subset_seed", None)
    if run.data.classes == dataset.num_classes:
        data.pop("classes")
    elif run.data.classes is not None and run.data.fraction is not None:
        share = fraction_of(available(dataset, run.data), run.data.fraction)
        if share < available(dataset, run.data):
            data["fraction_of_all"] = share
    if dataset.exclusions is not None:
        data["exclude"] = dataset.exclusions
    for key in _without_effect(run.data):
        data.pop(key, None)
    if test is not None:
        data["test"] = test.fingerprint
    return data


def _without_effect(data: Data) -> list[str]:
    """Settings of what is not done."""
    told = {
        "crop_area": data.crop != "none",
        "eval_crop_ratio": data.eval_crop != "none",
        "randaugment_magnitude": data.randaugment_layers > 0,
    }
    return [key for key, has_effect in told.items() if not has_effect]


def _differing(part: Any, default: Any) -> dict[str, Any]:
    return {key: value for key in _names(part.__class__) if (value := getattr(part, key)) != getattr(default, key)}


@cache
def _names(section: type) -> tuple[str, ...]:
    """Of its fields, for the ids of thousands of runs."""
    return tuple(field.name for field in fields(section))


@lru_cache(maxsize=1024)
def _numbers(arch: models.Arch) -> Mapping[str, Any]:
    """Looked up once for the many runs that share an architecture; not to be changed."""
    return models.to_dict(arch)


def _digest(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
