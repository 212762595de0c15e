"""Sweeps in processes of their own, for tests."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

VARIES = ["attempt", "device_seconds", "mfu", "started", "ended", "flops_lost", "flops_eval", "device"]
"""Columns in which a disturbed sweep may differ from an undisturbed one."""


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "vitscale.cli.main",
        "sweep",
        "study.toml",
        "--jobs",
        "1",
        "--threads",
        "1",
        *options,
    ]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def sweep(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    process = start(folder, *options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    """Until it holds, while the process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the process has ended"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
