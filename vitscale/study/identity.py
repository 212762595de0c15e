"""A run's id: a hash over what changes its outcome and differs from the defaults.

Paths, device counts, ZeRO stage, micro-batch and loader workers are no part of it, because they must not change the
outcome. A new field with a default keeps old ids; a changed default raises `SCHEMA`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vitscale import models
from vitscale.config import Data, Model, Recipe, Run, Task, Transfer
from vitscale.study.archs import IN_ARCH
from vitscale.study.datasets import Dataset, task_identity
from vitscale.study.schedule import total_steps

SCHEMA = 1

NUMERICS = 1
"""Raised by hand when a change of the code moves results."""

_ONLY_OF = {"fewshot": ("shots",), "finetune": ("lr", "steps", "batch_size", "warmup_steps", "seeds")}


def pretrain_id(run: Run, arch: models.Arch, dataset: Dataset, test: Dataset | None) -> str:
    """12 hex digits of a pre-training run."""
    return _digest(pretrain_identity(run, arch, dataset, test))


def transfer_id(
    run: Run, transfer: Transfer, task: Task, arch: models.Arch, dataset: Dataset, test: Dataset | None
) -> str:
    """12 hex digits of a transfer: of the run it starts from, or, of a baseline, of what it starts from instead."""
    settings = _differing(transfer, Transfer())
    for key in ("task", "resolution", *(k for p, keys in _ONLY_OF.items() if p != transfer.protocol for k in keys)):
        settings.pop(key, None)
    settings["resolution"] = transfer.resolution or run.data.resolution
    if settings["resolution"] == run.data.resolution:
        settings.pop("pos_resize", None)
    start: dict[str, Any]
    if transfer.init == "pretrained":
        start = {"parent": pretrain_identity(run, arch, dataset, test)}
    elif transfer.init == "untrained":
        start = {
            "arch": models.to_dict(arch),
            "pre_logits": run.model.pre_logits,
            "num_classes": dataset.num_classes,  # the head's size moves what the generator gives the rest
            "resolution": run.data.resolution,
            "precision": run.recipe.precision,
            "seed": run.seed,
        }
    else:
        start = {}
    return _digest({**start, "transfer": settings, "task": task_identity(task), "schema": SCHEMA, "numerics": NUMERICS})


def pretrain_identity(run: Run, arch: models.Arch, dataset: Dataset, test: Dataset | None) -> dict[str, Any]:
    """What is hashed: architecture by its numbers, data by fingerprint, duration in steps, the rest by difference."""
    data = _differing(run.data, Data())
    for key in ("shards", "test", "size", "num_classes"):
        data.pop(key, None)
    data["dataset"] = dataset.fingerprint or {"size": dataset.samples, "num_classes": dataset.num_classes}
    if dataset.empty_classes:
        data["num_classes"] = dataset.num_classes
    data["examples"] = dataset.training_examples(run.data)
    if data["examples"] < dataset.samples - run.data.val_examples:
        data["subset_seed"] = run.seed if run.data.subset_seed is None else run.data.subset_seed
    else:
        data.pop("subset_seed", None)
    if run.data.crop == "none":
        data.pop("crop_area", None)
    if test is not None:
        data["test"] = test.fingerprint
    recipe = _differing(run.recipe, Recipe())
    for key in ("epochs", "examples"):
        recipe.pop(key, None)
    recipe["steps"] = total_steps(run.recipe, data["examples"])
    recipe.pop("validate_every", None)
    if run.recipe.keep == "best" and run.recipe.validate_every is not None:
        recipe["validate_steps"] = max(run.recipe.validate_every // run.recipe.batch_size, 1)
    model = _differing(run.model, Model())
    for key in IN_ARCH:
        model.pop(key, None)
    return {
        "arch": models.to_dict(arch),
        "model": model,
        "data": data,
        "recipe": recipe,
        "seed": run.seed,
        "schema": SCHEMA,
        "numerics": NUMERICS,
    }


def _differing(part: Any, default: Any) -> dict[str, Any]:
    values = {f.name: getattr(part, f.name) for f in fields(part)}
    return {key: value for key, value in values.items() if value != getattr(default, key)}


def _digest(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
