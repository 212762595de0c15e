"""The device that a process computes on: its name, and what it can do."""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vitscale.config import Recipe
from vitscale.errors import MISSING, VitscaleError
from vitscale.files import write_whole
from vitscale.locations import cache_folder


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


# Dense matrix products in FLOP/s, from NVIDIA's data sheets (without sparsity): bf16, and fp32 outside of tensor cores.
# The first name that stands in the device's name as a word holds: special forms stand before general ones.
GPU_PEAKS = {
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100 NVL": (835e12, 60e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "A40": (149.7e12, 37.4e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
}
SIDE = 1024  # of the matrices that a processor is measured with
ROUNDS = 8


@cache
def peak_flops(precision: str) -> float | None:
    """What this process's device can do in matrix products, FLOP/s; None for a GPU that is not known.

    A processor is measured, and the most that was ever found counts: it may have been busy with something else.
    """
    if torch.cuda.is_available():
        return _gpu_peak(torch.cuda.get_device_name(), precision)
    found = _matmul_rate(torch.bfloat16 if precision == "bf16" else torch.float32)
    return _most(f"{device_name()}, {precision}, torch {torch.__version__}", found)


def _gpu_peak(name: str, precision: str) -> float | None:
    if "MIG" in name:  # a part of one
        return None
    known = next((peaks for model, peaks in GPU_PEAKS.items() if re.search(rf"\b{model}\b", name)), None)
    return None if known is None else known[precision == "fp32"]


def _matmul_rate(dtype: torch.dtype) -> float:
    matrix, out = torch.ones(SIDE, SIDE, dtype=dtype), torch.empty(SIDE, SIDE, dtype=dtype)
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        torch.mm(matrix, matrix, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * SIDE**3 / best


def _most(key: str, found: float) -> float:
    """The largest number that was ever found under this key on this machine."""
    path = cache_folder() / "peaks.json"
    with suppress(OSError, ValueError):  # it is a memory, and can be done without
        known = json.loads(path.read_text()) if path.exists() else {}
        found = max(found, float(known.get(key, 0.0)))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({**known, key: found}, indent=1).encode())
    return found


def memory_peak() -> int:
    """Bytes: the most that this process has held on its GPU, or of the machine's memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def random_states() -> dict[str, Tensor]:
    """Of the generators that dropout and stochastic depth draw from."""
    states = {"rng": torch.get_rng_state()}
    return {**states, "rng_cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["rng"])
    if torch.cuda.is_available() and "rng_cuda" in states:
        torch.cuda.set_rng_state(states["rng_cuda"])
