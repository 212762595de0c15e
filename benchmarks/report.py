"""`vitscale report` on a study of many rows: time with an empty cache and then, processor time, memory, and page.

The study is made up: three families, five set sizes at one budget and the largest at three, each with as many seeds as
the rows ask for; few-shot on three numbers of shots with five draws, and fine-tuning.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from tables import at_least, table

from vitscale.results.store import write_part

FAMILIES = {"vit": ("ViT-S/16", 0.60), "hybrid": ("R26+ViT-S/32", 0.64), "resnet": ("R50x1", 0.66)}
SIZES, BUDGETS = (1_000, 4_000, 16_000, 64_000, 256_000), (250_000, 1_000_000, 4_000_000)
CELLS = [*((size, BUDGETS[1]) for size in SIZES), *((SIZES[-1], seen) for seen in (BUDGETS[0], BUDGETS[2]))]
SHOTS, DRAWS = (1, 5, 10), 5
SAMPLED = 0.1  # seconds between looks at the memory
ROWS_A_RUN = 2 + len(SHOTS) * DRAWS + 1


def runs(seeds: int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    noise = random.Random(0)
    for family, (model, quality) in FAMILIES.items():
        for examples, seen in CELLS:
            for seed in range(seeds):
                shared = {
                    "study": "made_up", "status": "done", "role": "cell", "family": family, "model": model,
                    "examples": examples, "examples_seen": seen, "seed": seed, "subset_seed": seed, "lr": 1e-3,
                    "flops_per_example": 2.7e10, "flops_standalone": 2.7e10 * seen, "device": "made up", "n_devices": 1,
                    "device_seconds": seen / 1000 * noise.uniform(0.95, 1.05), "patch": 16, "params_total": 22_000_000,
                    "settings": {"model.name": model, "data.examples": examples, "seed": seed}, "metric": "accuracy",
                }  # fmt: skip
                best = quality + 0.05 * math.log10(examples / 1000) + 0.04 * math.log10(seen / 1e6)
                yield f"{family}{examples}x{seen}s{seed}", measured(shared, best, noise)


def measured(shared: dict[str, Any], best: float, noise: random.Random) -> list[dict[str, Any]]:
    trunk = [
        {**shared, "protocol": "pretrain", "task": task, "value": best + noise.gauss(0, 0.01), "n_test": 10_000}
        for task in ("upstream_val", "upstream_test")
    ]
    transferred = {**shared, "task": "digits", "task_version": 1, "init": "pretrained", "n_test": 797}
    few = [
        {**transferred, "protocol": "fewshot", "shots": shots, "draw": draw, "value": best - 0.3 / shots}
        for shots in SHOTS
        for draw in range(DRAWS)
    ]  # fmt: skip
    return [
        *trunk,
        *few,
        {**transferred, "protocol": "finetune", "draw": 0, "value": best + 0.1 + noise.gauss(0, 0.01)},
    ]


def make(folder: Path, rows: int) -> tuple[int, int]:
    """Writes parts until there are `rows` or more; how many rows and pre-training runs."""
    seeds = math.ceil(rows / ROWS_A_RUN / len(FAMILIES) / len(CELLS))
    written = count = 0
    for run_id, found in runs(seeds):
        write_part(found[:2], folder, run_id=run_id, attempt=1)
        write_part([{**row, "parent_id": run_id} for row in found[2:]], folder, run_id=f"{run_id}t", attempt=1)
        written, count = written + len(found), count + 1
    return written, count


def command(results: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "vitscale", "report", "made_up", "--results", str(results), "--out", str(out)]


def timed(results: Path, out: Path) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command(results, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def peak(results: Path, out: Path) -> float:
    """GB of all its processes together, at most; a run of its own, as to look often takes a processor's time."""
    with subprocess.Popen(command(results, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        most = 0.0
        while process.poll() is None:
            most = max(most, memory(process.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLED)
    if process.returncode:
        raise SystemExit(f"error: vitscale report exits with {process.returncode}")
    return most


def memory(pid: int) -> float:
    """GB that a process and its children hold; what they share counts once."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += process.memory_full_info().pss
    return total / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=at_least(500), nargs="+", default=[1_000, 10_000], help="of the made-up studies")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="after the first, of which the quickest counts")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    given = parser.parse_args()
    found = []
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as scratch:
            results, out = Path(scratch, "results"), Path(scratch, "report")
            written, count = make(results / "made_up", rows)
            os.environ["VITSCALE_CACHE"] = str(Path(scratch, "cache"))
            first, _ = timed(results, out)
            wall, busy = min(timed(results, out) for _ in range(given.rounds))
            most = peak(results, out)
            page = (out / "report.html").stat().st_size / 1e6
        found.append(
            [
                f"{written:,}",
                f"{count:,}",
                f"{first:.1f} s",
                f"{wall:.1f} s",
                f"{busy:.1f} s",
                f"{most:.2f} GB",
                f"{page:.1f} MB",
            ]
        )
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(
        table(
            ["rows", "runs", "first time", "then", "processor time", "peak memory", "page"],
            found,
            markdown=given.markdown,
        )
    )


if __name__ == "__main__":
    main()
