"""Checkpoints by parameter name: safetensors for tensors, JSON for the rest; written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitscale import checkpoints
from vitscale.errors import MISSING, VitscaleError
from vitscale.failures import Failure
from vitscale.files import is_full, sync, write_whole

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
AVERAGES = "averages.safetensors"
STATE = "state.json"
ASIDE = ".aside"
SCHEMA = 4
SEALED = 4
"""The first schema whose state has a checksum of its own."""


class NotSaved(VitscaleError):  # noqa: N818
    """The disk refused a checkpoint: the run has not failed, it can go on once there is room."""


class ForeignError(VitscaleError):
    """A checkpoint that is whole, and none of this run or for this version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands after `step` optimizer steps."""

    step: int
    device_seconds: float = 0.0
    flops_lost: float = 0.0
    flops_eval: float = 0.0
    best_step: int | None = None
    best_score: float | None = None
    skipped: int = 0
    """Steps whose loss or gradients were not finite, and which left the weights as they were."""
    branched_at: int = 0
    """Of these steps so many were a trunk's; seconds and FLOPs count from there."""
    validation_due: bool = False
    """The validation after this step was cut short: it comes before the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    folder: Path
    progress: Progress
    weights: Mapping[str, Tensor]
    averages: Mapping[str, Tensor]
    """Moving averages of the weights; nothing where the recipe has none."""
    optimizer: Mapping[str, Tensor]

    @property
    def best_weights(self) -> Mapping[str, Tensor]:
        """What is measured and transferred."""
        return self.averages or self.weights


class Tensors(Mapping[str, Tensor]):
    """A safetensors file, of which each tensor is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def save(
    run: Path,
    progress: Progress,
    *,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    averages: Mapping[str, Tensor] | None = None,
    milestone: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Writes `checkpoints/step-<n>/` under another name, syncs and renames it, then moves `latest`.

    `milestone` marks it as one that is kept for good.

    Raises:
        NotSaved: the disk is full; what was there before is untouched (exit 5).
        VitscaleError: something else is in its way there (exit 5).
        Whatever `check` raises, where the run is somebody else's by now: as well.
    """
    final = folder_of(run, progress.step)
    temporary = _temporary(final)
    check()
    files = {MODEL: weights, OPTIMIZER: optimizer, **({AVERAGES: averages} if averages else {})}
    try:
        _make(temporary)
        for name, tensors in files.items():
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, temporary / name)
        _write_state(temporary, run, progress, {name: _sha256(temporary / name) for name in files}, milestone)
        for name in files:
            sync(temporary / name)
        check()
        _put(temporary, final)
        write_whole(final.parent / "latest", final.name.encode())
    except VitscaleError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _not_saved(final, error) from None
    return final


def adopt(source: Checkpoint, run: Path, progress: Progress, *, milestone: bool = False) -> Path:
    """Makes another run's checkpoint one of this run's, or one of its own one of other `progress`, without a copy where
    the file system has links.

    Raises:
        NotSaved, VitscaleError: as `save`.
        FileNotFoundError: the other run has let go of it meanwhile.
    """
    final = folder_of(run, progress.step)
    temporary = _temporary(final)
    state = json.loads((source.folder / STATE).read_text())
    try:
        _make(temporary)
        for name in state["sha256"]:
            _link(source.folder / name, temporary / name)
        _write_state(temporary, run, progress, state["sha256"], milestone)
        _put(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, FileNotFoundError):
            raise
        raise _not_saved(final, error) from None
    return final


def _write_state(folder: Path, run: Path, progress: Progress, sums: Mapping[str, str], milestone: bool) -> None:
    state = {"schema": SCHEMA, "run": run.name, "progress": asdict(progress), "sha256": sums, "milestone": milestone}
    (folder / STATE).write_text(json.dumps(sealed(state), indent=2))
    sync(folder / STATE)


def _temporary(final: Path) -> Path:
    """Another one each time: where processes are few, what a killed one has left may have the same number."""
    return final.with_name(f".{final.name}.{os.getpid()}{secrets.randbelow(10**6):06}")


def _make(temporary: Path) -> None:
    """Not the run's own folder: one that was moved away is not begun again at its old place."""
    temporary.parent.mkdir(exist_ok=True)
    temporary.mkdir()


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """With its own checksum."""
    return {**state, "seal": _seal(state)}


def _seal(state: Mapping[str, Any]) -> str:
    """The checksum of the state itself, whatever its spaces."""
    told = {key: value for key, value in state.items() if key != "seal"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _put(temporary: Path, final: Path) -> None:
    """Gives a whole checkpoint its name; one of that name goes only when it is there."""
    sync(temporary)
    aside = final.with_name(f".{final.name}{ASIDE}")
    shutil.rmtree(aside, ignore_errors=True)
    if final.is_dir():
        final.rename(aside)
    temporary.rename(final)
    sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def put_back(folder: Path) -> None:
    """What a process had put aside that died before the next one had its name."""
    for aside in folder.glob(f".step-*{ASIDE}"):
        final = aside.with_name(aside.name.removesuffix(ASIDE)[1:])
        if not final.exists():
            aside.rename(final)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
        sync(target)


def _not_saved(folder: Path, error: Exception) -> VitscaleError:
    message = f"no checkpoint could be written to {folder}: {error}"
    if is_full(error):
        hint = f"free some disk space and start the same command again: it {checkpoints.way_on(folder.parent.parent)}"
        return NotSaved(message, hint=hint, exit_code=MISSING)
    hint = "put right what keeps it out: the same command then tries again, a sweep with --retry-failed"
    return VitscaleError(message, hint=hint, exit_code=MISSING, failure=Failure.SETUP)


def load(folder: Path, *, verify: bool = True) -> Checkpoint:
    """Opens one checkpoint and verifies its checksums.

    Raises:
        VitscaleError: it is missing, cut short, altered, of another run, or of a later version (exit 5).
    """
    try:
        state: dict[str, Any] = json.loads(_file(folder / STATE).read_text())
        # First of all, and alike in every schema: else what was altered may pass for another run's.
        if "seal" in state and state["seal"] != _seal(state):
            raise ValueError(f"{STATE} does not have its checksum")
        check_origin(state, folder)
        progress = Progress(**state["progress"])
        if state["schema"] >= SEALED and "seal" not in state:
            raise ValueError(f"{STATE} has no checksum")
        if "seal" in state and folder.name != folder_of(Path(), progress.step).name:
            raise ValueError(f"{STATE} is that of step {progress.step}")
        for name, expected in state["sha256"].items() if verify else ():
            if _sha256(_file(folder / name)) != expected:
                raise ValueError(f"{name} does not have its checksum")
        return Checkpoint(
            folder=folder,
            progress=progress,
            weights=Tensors(folder / MODEL),
            averages=Tensors(folder / AVERAGES) if AVERAGES in state["sha256"] else {},
            optimizer=Tensors(folder / OPTIMIZER),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise VitscaleError(
            f"checkpoint {folder} cannot be used: {error}",
            hint="delete the folder to train it again",
            exit_code=MISSING,
        ) from None


def _file(path: Path) -> Path:
    """Not what would never be read to an end."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name} is no file")
    return path


def check_origin(state: Mapping[str, Any], folder: Path) -> None:
    """Raises ForeignError where what lies in a run's `checkpoints` is not its own, or for a later version."""
    run = folder.absolute().parent.parent.name
    if state["schema"] > SCHEMA:
        message = f"was written by a later version of vitscale (schema {state['schema']}; this one knows {SCHEMA})"
        raise ForeignError(f"checkpoint {folder} {message}", hint="go on with that version", exit_code=MISSING)
    if state.get("run", run) != run:
        hint = f"move it back to run {state['run']}: another run has another model, other data or another recipe"
        raise ForeignError(f"checkpoint {folder} is of run {state['run']}", hint=hint, exit_code=MISSING)


def load_weights(net: torch.nn.Module, weights: Mapping[str, Tensor], origin: Path) -> None:
    """Copies weights into a network that must have exactly their names and shapes.

    Raises:
        VitscaleError: the checkpoint is of another architecture (exit 5); the first differences are named.
    """
    own = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    weights = dict(weights)
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
