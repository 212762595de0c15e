"""Numbers that no run can have, whatever else it is."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from vitscale.config import Run
from vitscale.errors import INVALID_STUDY
from vitscale.study.fields import value_of

BELOW_1 = tuple(f"recipe.{key}" for key in ("beta1", "beta2", "ema", "dropout", "stochastic_depth"))
LARGEST = 2**63 - 1
"""What a column of results holds."""
TOO_LARGE = f"it must be at most {LARGEST:,}"
AT_LEAST = {
    "data.resolution": 1,
    "data.examples": 1,
    "data.size": 1,
    "data.num_classes": 2,
    "data.classes": 2,
    "data.val_examples": 0,
    "data.shuffle_block": 1,
    "data.randaugment_layers": 0,
    "data.randaugment_magnitude": 0,
    "recipe.batch_size": 1,
    "recipe.steps": 1,
    "recipe.examples": 1,
    "recipe.lr": 0,
    "recipe.warmup_steps": 0,
    "recipe.end_lr": 0,
    "recipe.weight_decay": 0,
    "recipe.grad_clip": 0,
    "recipe.mixup": 0,
    "recipe.validate_every": 1,
}
SHARES = (
    "data.crop_area",
    "data.max_bad",
    "data.eval_crop_ratio",
    "recipe.cooldown",
    "recipe.dropout",
    "recipe.stochastic_depth",
    "recipe.label_smoothing",
    "recipe.masked_fraction",
    "recipe.beta1",
    "recipe.beta2",
    "recipe.ema",
)
ABOVE_0 = ("recipe.epochs", "data.eval_crop_ratio")


@dataclass(frozen=True, slots=True)
class Complaint:
    """What is wrong with the value of `key`, and the way out."""

    key: str
    message: str
    hint: str
    exit_code: int = INVALID_STUDY


def ranges(run: Run) -> list[Complaint]:
    """Written so that a value that is not a number fails, too."""
    found = [each for key, least in AT_LEAST.items() for each in bounded(key, value_of(run, key), least)]
    for key in SHARES:
        share = value_of(run, key)
        if not 0 <= share <= 1:
            found.append(Complaint(key, f"{key} is {share}", "it is a share from 0 to 1"))
        elif share == 1 and key in BELOW_1:
            found.append(Complaint(key, f"{key} is {share}", "it must be below 1"))
    for key in ABOVE_0:
        value = value_of(run, key)
        if value is not None and not value > 0:
            found.append(Complaint(key, f"{key} is {value}", "it must be above 0"))
        else:
            found += bounded(key, value, 0)
    fraction, magnitude = run.data.fraction, run.data.randaugment_magnitude
    if fraction is not None and not 0 < fraction <= 1:
        found.append(Complaint("data.fraction", f"data.fraction is {fraction}", "it is a share above 0, at most 1"))
    if 30 < magnitude <= LARGEST:
        message = f"data.randaugment_magnitude is {magnitude}"
        found.append(Complaint("data.randaugment_magnitude", message, "it goes from 0 to 30; 10 to 20 are usual"))
    return found


def bounded(key: str, value: float | None, least: int) -> list[Complaint]:
    """What is wrong with a number that must be at least that, and finite; a count is such as results can hold."""
    most = LARGEST if isinstance(value, int) or key in ABOVE_0 else sys.float_info.max
    if value is None or least <= value <= most:
        return []
    finite = TOO_LARGE if most == LARGEST else "it must be a finite number"
    return [Complaint(key, f"{key} is {value}", finite if value > most else f"it must be at least {least}")]
