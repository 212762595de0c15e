"""The device's name and peak."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitscale.peaks import gpu_peak
from vitscale.train import device, group


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA L40", None, None),
        ("NVIDIA RTX A4000", None, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None),
    ],
)
def test_a_gpu_that_is_not_known_exactly_has_no_peak(name: str, bf16: float | None, fp32: float | None) -> None:
    assert gpu_peak(name, "bf16") == bf16
    assert gpu_peak(name, "fp32") == fp32


def test_the_most_that_a_processor_was_ever_found_to_do_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path))
    assert device._most("this", 5e9) == 5e9
    assert device._most("this", 3e9) == 5e9
    assert device._most("this", 8e9) == 8e9
    assert device._most("that", 1e9) == 1e9
    assert json.loads((tmp_path / "peaks.json").read_text()) == {"this": 8e9, "that": 1e9}


def test_a_memory_of_peaks_that_cannot_be_read_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path))
    (tmp_path / "peaks.json").write_text("{")
    assert device._most("this", 5e9) == 5e9


def test_a_processor_s_peak_is_measured() -> None:
    assert 1e9 < device._matmul_rate(device.torch.float32) < 1e14


@pytest.mark.parametrize(("visible", "number"), [(4, 3), (1, 0)])
def test_a_process_has_the_gpu_of_its_number_or_the_one_that_it_is_shown(
    monkeypatch: pytest.MonkeyPatch, visible: int, number: int
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    group.use_own_device()
    assert chosen == [group.device()] == [torch.device("cuda", number)]


def test_on_a_gpu_fp32_is_fp32_and_kernels_are_deterministic() -> None:
    """In a process of its own: these settings hold for all that follows."""
    code = (
        "import os, torch\n"
        "from vitscale.train.device import be_exact\n"
        "be_exact()\n"
        "print(torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,\n"
        "      torch.are_deterministic_algorithms_enabled(), os.environ['CUBLAS_WORKSPACE_CONFIG'])\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "False", "True", ":4096:8"]
