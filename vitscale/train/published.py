"""A published checkpoint as a run that is done: converted, checked, and kept as checkpoints are."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from vitscale import models
from vitscale.errors import MISSING, VitscaleError
from vitscale.models import convert
from vitscale.models.counts import Head
from vitscale.train import checkpoint
from vitscale.train.checkpoint import Progress
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop


def import_published(rundir: RunDir, stop: Stop) -> dict[str, Any]:
    """Converts the file of `model.checkpoint`; the head is as wide as the file says.

    Raises:
        VitscaleError: the file is not the one that was planned with, or does not fit the model or the resolution.
    """
    del stop  # seconds
    file, resolution = Path(rundir.machine["checkpoint"]), rundir.run.data.resolution
    _check_content(file, rundir.document["checkpoint"])
    state = convert.from_file(file, rundir.arch)
    _check_resolution(state, rundir.arch, resolution, file)
    head = head_of(state)
    net = models.build(rundir.arch, num_classes=head.num_classes, resolution=resolution, pre_logits=head.pre_logits)
    checkpoint.load_weights(net, state, file)
    folder = checkpoint.save(rundir.folder, Progress(step=0), weights=net.state_dict(), optimizer={})
    return {"status": "done", "checkpoint": folder.name, "score": None, "rows": [], "head": asdict(head)}


def _check_content(file: Path, planned: str) -> None:
    try:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise VitscaleError(
            f"no checkpoint at {file}: {error.strerror}", hint="put the file back where it was", exit_code=MISSING
        ) from None
    if found != planned:
        raise VitscaleError(
            f"{file} has changed since the run was planned",
            hint="plan again: another file is another run",
            exit_code=MISSING,
        )


def _check_resolution(state: dict[str, Tensor], arch: models.Arch, resolution: int, file: Path) -> None:
    """Position embeddings tell at which resolution the network was trained."""
    for name, tensor in state.items():
        if not name.endswith("pos_embedding") or tensor.shape[1] == arch.tokens(resolution):
            continue
        side = math.isqrt(tensor.shape[1])
        raise VitscaleError(
            f"{file} was trained with {side} x {side} tokens, and {resolution} px give"
            f" {math.isqrt(arch.tokens(resolution))} x {math.isqrt(arch.tokens(resolution))}",
            hint=f"data.resolution = {side * arch.ratio}, or --resolution; a transfer may have one of its own",
            exit_code=MISSING,
        )


def head_of(state: dict[str, Tensor]) -> Head:
    """What stands behind the representation of the network that these are the weights of."""
    biases = {
        name.removeprefix("vit.").removesuffix(".bias"): len(tensor)
        for name, tensor in state.items()
        if name.removeprefix("vit.") in ("head.bias", "pre_logits.bias")
    }
    return Head(num_classes=biases["head"], pre_logits=biases.get("pre_logits"))
