"""The device that a process computes on: its name, and what it can do."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
import torch
from torch import Tensor

from vitscale.config import Recipe
from vitscale.errors import MISSING, VitscaleError
from vitscale.peaks import gpu_peak
from vitscale.remember import recalled, remember
from vitscale.wording import count


def device_name() -> str:
    """The accelerator's name, or the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{processor()}, {count(threads, 'thread')}"


@cache
def processor() -> str:
    """The processor's name. Linux says it at once; py-cpuinfo, which knows the other systems, asks for a second."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        if name := next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None):
            return name
    import cpuinfo

    return str(cpuinfo.get_cpu_info().get("brand_raw", "CPU"))


def be_exact() -> None:
    """Has this process's GPU compute in the precision that is asked for, and the same bits each time.

    Before the first work on it. Left to itself, torch takes TF32 for the convolutions of an fp32 run, and sums the
    gradients of attention and of convolutions in an order that changes from one run to the next.
    """
    # cuBLAS gives the same bits each time with a workspace of a fixed size only; on Hopper this one is its own choice.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True)
    # A help in finding bugs, which writes all memory once more.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it has; its class says so


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


SIDE = 1024  # of the matrices that a processor is measured with
ROUNDS = 8
PEAKS = "peaks.json"


@cache
def peak_flops(precision: str) -> float | None:
    """What this process's device can do in matrix products, FLOP/s; None for a GPU that is not known.

    A processor is measured, and the most that was ever found counts: it may have been busy with something else.
    """
    if torch.cuda.is_available():
        return gpu_peak(torch.cuda.get_device_name(), precision)
    found = _matmul_rate(torch.bfloat16 if precision == "bf16" else torch.float32)
    return _most(f"{device_name()}, {precision}, torch {torch.__version__}", found)


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
    known = recalled(PEAKS, key)
    found = max(found, known if isinstance(known, float) else 0.0)
    remember(PEAKS, key, found)
    return found


def memory_peak() -> int:
    """Bytes: the most that this process has held on its GPU, or of the machine's memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_memory_peak() -> None:
    """From here on `memory_peak` counts anew, where the system can do that."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError, AttributeError):  # Linux alone has these
        ctypes.CDLL(None).malloc_trim(0)  # what was freed still counts until then
        Path("/proc/self/clear_refs").write_text("5")


def memory_held() -> int:
    """Bytes: what this process holds now, of its GPU's memory or of the machine's."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)


NO_MEMORY = (
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)
"""Words of errors that have no type of their own: torch's on a CPU, and libraries' that allocate beside torch."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on a GPU or on the machine."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    )


GPU_SHARE = 0.94
"""Of a GPU's memory: what torch's allocator cannot use lies in pieces between what it has given away."""
RAM_SHARE = 0.8
"""Of the machine's memory: readers of images and the system need some, too."""


def memory_limit(processes: int = 1, *, per_gpu: int = 1) -> int:
    """Bytes that this process may hold: its part of its GPU's memory, or of the machine's among so many processes."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        # Of several that start at once each sees the memory that the others have not taken yet.
        return int(GPU_SHARE * min(free + torch.cuda.memory_reserved(), total / per_gpu))
    return int(RAM_SHARE * min(psutil.virtual_memory().total, _group_limit()) / processes)


def _group_limit() -> float:
    """Bytes that the control groups of this process may hold (a container's, a scheduler's); infinite without any."""
    limits = [float("inf")]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds in ("", "memory"):
                root = Path("/sys/fs/cgroup", kinds)
                own = root / path.lstrip("/")
                name = "memory.limit_in_bytes" if kinds else "memory.max"
                limits += [_limit_in(folder / name) for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return min(limits)


def _limit_in(file: Path) -> float:
    try:
        return float(file.read_text())
    except (OSError, ValueError):  # there is none here, or it says "max"
        return float("inf")


def random_states() -> dict[str, Tensor]:
    """Of the generators that dropout and stochastic depth draw from."""
    states = {"rng": torch.get_rng_state()}
    return {**states, "rng_cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["rng"])
    if torch.cuda.is_available() and "rng_cuda" in states:
        torch.cuda.set_rng_state(states["rng_cuda"])
