"""What GPUs can do at most, by name."""

from __future__ import annotations

import re

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


def gpu_peak(name: str, precision: str) -> float | None:
    """FLOP/s in matrix products of the GPU that is called so; None for one that is not known, or for a part of one."""
    known = known_gpu(name)
    return None if known is None else GPU_PEAKS[known][precision == "fp32"]


def known_gpu(name: str) -> str | None:
    """The name in the table of the GPU that is called so, in whatever case; None as of `gpu_peak`."""
    if "MIG" in name:
        return None
    return next((model for model in GPU_PEAKS if re.search(rf"\b{model}\b", name, re.IGNORECASE)), None)
