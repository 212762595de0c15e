"""Runs that are worked off in this process, and what came of them."""

from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file

from vitscale.errors import DONE
from vitscale.train import checkpoint
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.worker import work

Make = Callable[..., RunDir]
"""Of the fixture `rundir`."""


def done(rundir: RunDir) -> dict[str, Any]:
    assert work(rundir, Stop()) == DONE
    result = rundir.result()
    assert result is not None
    return result


def weights(rundir: RunDir) -> dict[str, torch.Tensor]:
    result = rundir.result()
    assert result is not None
    return load_file(rundir.folder / "checkpoints" / result["checkpoint"] / checkpoint.MODEL)


def measured(result: dict[str, Any]) -> list[dict[str, Any]]:
    varying = {"device_seconds", "mfu", "flops_lost", "flops_eval"}
    return [{key: value for key, value in row.items() if key not in varying} for row in result["rows"]]
