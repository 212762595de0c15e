"""Checkpoints by parameter name: safetensors for tensors, JSON for the rest; written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitscale.errors import MISSING, VitscaleError
from vitscale.files import sync, write_whole

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


class NotSaved(VitscaleError):  # noqa: N818
    """The disk refused a checkpoint: the run has not failed, it can go on once there is room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands after `step` optimizer steps."""

    step: int
    device_seconds: float = 0.0
    flops_lost: float = 0.0
    flops_eval: float = 0.0
    best_step: int | None = None
    best_score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    folder: Path
    progress: Progress
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def save(run: Path, progress: Progress, *, weights: dict[str, Tensor], optimizer: dict[str, Tensor]) -> Path:
    """Writes `checkpoints/step-<n>/` under another name, syncs and renames it, then moves `latest`.

    The checkpoints that are neither the latest nor the best are removed afterwards.

    Raises:
        NotSaved: the disk is full or read-only; what was there before is untouched (exit 5).
    """
    final = folder_of(run, progress.step)
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, temporary / MODEL)
        save_file({k: v.detach().cpu().contiguous() for k, v in optimizer.items()}, temporary / OPTIMIZER)
        state = {
            "schema": 1,
            "progress": asdict(progress),
            "sha256": {name: _sha256(temporary / name) for name in (MODEL, OPTIMIZER)},
        }
        (temporary / STATE).write_text(json.dumps(state, indent=2))
        for name in (MODEL, OPTIMIZER, STATE):
            sync(temporary / name)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        sync(final.parent)
        write_whole(final.parent / "latest", final.name.encode())
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise NotSaved(
            f"no checkpoint could be written to {final}: {error}",
            hint="free some disk space and start the same command again: it goes on from the last checkpoint",
            exit_code=MISSING,
        ) from None
    _prune(final.parent, keep={progress.step, progress.best_step})
    return final


def load_latest(run: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are passed over. None where there is none."""
    steps = sorted((run / "checkpoints").glob("step-*"), reverse=True)
    for folder in steps:
        try:
            return load(folder)
        except VitscaleError as error:
            print(f"{error}\npassed over: trying the checkpoint before it", flush=True)
    return None


def load(folder: Path) -> Checkpoint:
    """Reads one checkpoint and verifies its checksums.

    Raises:
        VitscaleError: it is missing, cut short or altered (exit 5).
    """
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
        for name, expected in state["sha256"].items():
            if _sha256(folder / name) != expected:
                raise ValueError(f"{name} does not have its checksum")
        return Checkpoint(
            folder=folder,
            progress=Progress(**state["progress"]),
            weights=load_file(folder / MODEL),
            optimizer=load_file(folder / OPTIMIZER),
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise VitscaleError(
            f"checkpoint {folder} cannot be used: {error}",
            hint="delete the folder to train it again",
            exit_code=MISSING,
        ) from None


def load_weights(net: torch.nn.Module, weights: dict[str, Tensor], origin: Path) -> None:
    """Copies weights into a network that must have exactly their names and shapes.

    Raises:
        VitscaleError: the checkpoint is of another architecture (exit 5); the first differences are named.
    """
    own = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    theirs = {name: tuple(t.shape) for name, t in weights.items()}
    if own != theirs:
        keys = [key for key in sorted(own.keys() | theirs.keys()) if own.get(key) != theirs.get(key)]
        shown = "; ".join(f"{k}: {theirs.get(k, 'absent')} there, {own.get(k, 'absent')} here" for k in keys[:3])
        raise VitscaleError(
            f"the checkpoint {origin} is of another architecture ({shown})",
            hint="transfer it as the model that it was trained as: its run.json names it",
            exit_code=MISSING,
        )
    net.load_state_dict(weights)


def _prune(folder: Path, keep: set[int | None]) -> None:
    names = {f"step-{step:08d}" for step in keep if step is not None}
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name not in names:
            shutil.rmtree(entry, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
