"""A study as `sweep` would leave it: 3 families x 4 sizes x 3 seeds, two more budgets, baselines, one failure."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from vitscale.results.store import write_part

FAMILIES = {"vit": "ViT-nano/4", "hybrid": "R+ViT-nano/4", "resnet": "R26x0.5"}
FLOPS = {"vit": 5.4e7, "hybrid": 5.6e7, "resnet": 5.2e7}
SIZES = (1_000, 4_000, 16_000, 55_000)
SEEN = 880_000
# Accuracy at 1,000 images and its gain per decade of images.
UPSTREAM = {"vit": (0.70, 0.095), "hybrid": (0.755, 0.082), "resnet": (0.80, 0.062)}
DOWNSTREAM = {1: (0.55, 0.05), 5: (0.74, 0.045), 10: (0.81, 0.035)}
PIXELS = {1: 0.61, 5: 0.79, 10: 0.85}


def study(folder: Path, *, draws: int = 20, seeds: int = 3) -> Path:
    noise = random.Random(0)
    cells = [(family, size, SEEN) for family in FAMILIES for size in SIZES]
    cells += [(family, SIZES[-1], seen) for family in FAMILIES for seen in (SEEN // 4, SEEN * 4)]
    for family, size, seen in cells:
        for seed in range(seeds):
            trunk = f"{family}{size}x{seen}s{seed}"
            row = common(family, size, seen, seed)
            if (family, size, seen, seed) == ("hybrid", 16_000, SEEN, 1):
                failed = {**row, "run_id": trunk, "status": "failed", "reason": "loss is not finite at step 120"}
                write([{**failed, "protocol": "pretrain", "task": "upstream_val"}], folder, trunk)
                continue
            write(upstream(row, trunk, family, size, seen, noise), folder, trunk)
            write(transfers(row, trunk, family, size, seen, noise, draws), folder, trunk + "t")
    tuning = {**common("vit", 1_000, SEEN, 0), "run_id": "tune", "role": "tuning", "protocol": "pretrain"}
    write([{**tuning, "task": "upstream_val", "metric": "accuracy", "value": 0.1}], folder, "tune")
    write(baselines(noise, draws, seeds), folder, "base")
    return folder


def common(family: str, size: int, seen: int, seed: int) -> dict[str, Any]:
    return {
        "study": "synthetic", "status": "done", "role": "cell", "family": family, "model": FAMILIES[family],
        "dataset": "fashion-mnist-train", "resolution": 28, "examples": size, "examples_seen": seen, "seed": seed,
        "flops_per_example": FLOPS[family], "flops_standalone": FLOPS[family] * seen, "lr": 1e-3,
        "settings": {"data.examples": size, "model.name": FAMILIES[family], "recipe.lr": 1e-3, "seed": seed},
        "lr_at_edge": family == "vit" and size == 1_000, "device": "cpu", "n_devices": 1, "device_seconds": 60 * seen / SEEN,
        "git_commit": "0" * 40, "git_dirty": False, "code_hash": "a" * 64, "versions": {"torch": "2.13.0"},
    }  # fmt: skip


def write(rows: list[dict[str, Any]], folder: Path, run_id: str) -> None:
    write_part(rows, folder, run_id=run_id, attempt=1)


def upstream(
    row: dict[str, Any], trunk: str, family: str, size: int, seen: int, noise: random.Random
) -> list[dict[str, Any]]:
    accuracy = quality(family, size, seen) + noise.gauss(0, 0.008)
    measured = {**row, "run_id": trunk, "protocol": "pretrain", "n_test": 10_000}
    return [
        {**measured, "task": task, "metric": metric, "value": value}
        for task, drop in (("upstream_val", 0.0), ("upstream_test", 0.006))
        for metric, value in (("accuracy", accuracy - drop), ("loss", -math.log(accuracy - drop)))
    ]


def quality(family: str, size: int, seen: int) -> float:
    start, slope = UPSTREAM[family]
    return start + slope * math.log10(size / 1_000) + 0.03 * math.log2(seen / SEEN) / 2


def transfers(
    row: dict[str, Any], trunk: str, family: str, size: int, seen: int, noise: random.Random, draws: int
) -> list[dict[str, Any]]:
    gain = quality(family, size, seen) - 0.7
    shared = {**row, "parent_id": trunk, "run_id": trunk + "t", "init": "pretrained", "task": "digits"}
    shared |= {"metric": "accuracy", "n_test": 797, "task_version": 1}
    rows = [
        {**shared, "protocol": "fewshot", "shots": shots, "draw": draw, "value": base + gain * 0.6 + wobble}
        for shots, (base, _) in DOWNSTREAM.items()
        for draw in range(draws)
        for wobble in [noise.gauss(0, 0.05 / math.sqrt(shots))]
    ]
    return [*rows, {**shared, "protocol": "finetune", "draw": 0, "value": 0.955 + gain * 0.1 + noise.gauss(0, 0.003)}]


def baselines(noise: random.Random, draws: int, seeds: int) -> list[dict[str, Any]]:
    shared = {"study": "synthetic", "status": "done", "role": "baseline", "task": "digits", "metric": "accuracy"}
    shared |= {"n_test": 797, "task_version": 1, "code_hash": "a" * 64}
    rows: list[dict[str, Any]] = [
        {**shared, "family": "raw", "model": "pixels", "init": "pixels", "protocol": "fewshot"}
        | {"shots": shots, "draw": draw, "value": value + noise.gauss(0, 0.02)}
        for shots, value in PIXELS.items()
        for draw in range(draws)
    ]
    for number, (family, model) in enumerate(FAMILIES.items()):
        for seed in range(seeds):
            network = {**shared, "family": family, "model": model, "seed": seed, "init": "untrained"}
            rows += [
                {**network, "protocol": "fewshot", "shots": shots, "draw": draw}
                | {"value": value - 0.12 + 0.02 * number + noise.gauss(0, 0.02)}
                for shots, value in PIXELS.items()
                for draw in range(draws)
            ]
            scratch = 0.935 + 0.008 * number + noise.gauss(0, 0.003)
            rows.append({**network, "protocol": "finetune", "draw": 0, "value": scratch})
    return rows
