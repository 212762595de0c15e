"""The device's name and peak."""

import json
from pathlib import Path

import pytest

from vitscale.peaks import gpu_peak
from vitscale.train import device


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
