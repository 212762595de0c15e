"""The device that a process computes on: its name, and what it can do."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from vitscale.config import Recipe
from vitscale.errors import MISSING, VitscaleError


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
