"""`vitscale pretrain`, its loader included, beside the script that everybody writes (benchmarks/by_hand.py).

Both train the same network with the same AdamW and clipping on the same shards, with the same crops, as many threads
for matrices and as many for reading (threads of ours, processes of the peer's). Each is a process of its own; in each
round both have their turn, and which is first changes: read the ratios. The rate is that from the end of the first step
to the end of the last; start-up, the first step and the last checkpoint are left out. What passes from the command to
the end of the first step has a column of its own. `--clock cpu` counts images for
each second that any processor spends on the run, for machines that do other work; what a short run takes is taken off.
The data are made here: noise whose spectrum falls as that of photographs, as JPEGs, and fractals. Where there is a GPU
it trains, in bf16, a model that keeps the readers busy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from photographs import write_images
from tables import FEWEST_ROUNDS, at_least, interval, table

from vitscale.data import fractals
from vitscale.data.pack import Plan, pack
from vitscale.data.sources import open_source
from vitscale.train.device import device_name, processor

SHARDS = 8
SHORT = 3  # steps of what is not counted; after the first such run files are in memory, and small images in our cache
PEER = Path(__file__).with_name("by_hand.py")
COLUMNS = ("model", "px", "batch", "images", "rounds", "ours, images/s", "peer, images/s", "ours / peer", "95 %")
WAITS = ("ours waits for data", "peer waits", "ours, s to first step", "peer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model and its data, with as many steps as take a quarter of a minute on two cores of a CPU."""

    name: str
    model: str
    settings: tuple[str, ...] = ()
    resolution: int
    batch_size: int
    steps: int
    make_data: Callable[[Path], object]
    precision: str = "fp32"


@dataclass(frozen=True, slots=True)
class Turn:
    """One training, of ours or of the peer's."""

    images_per_second: float
    """By the wall clock."""
    wait: float
    """Share of the time spent waiting for data."""
    cpu: float
    """Seconds on any processor, of all processes, start-up included."""
    start: float
    """Seconds from the command to the end of the first step."""


def photographs(folder: Path, count: int = 640, copies: int = 1) -> None:
    """JPEGs of 400 x 300 in 10 classes, each under so many names."""
    images = folder.with_name("photographs")
    write_images(images, count, 400, 300, classes=10)
    for path in list(images.glob("*/*.jpg")) if copies > 1 else []:
        for copy in range(1, copies):
            path.with_stem(f"{path.stem}-{copy}").hardlink_to(path)
    pack(open_source(images), folder, Plan(name="photos", shard_samples=count * copies // SHARDS))


def small_images(folder: Path) -> None:
    """8,000 fractals at 28 px in 10 classes."""
    fractals.write(folder, classes=10, per_class=800, resolution=28, seed=0, workers=1, shard_samples=8_000 // SHARDS)


SMALL = ("model.width=64", "model.depth=4", "model.mlp=256", "model.heads=2")
CASES = (
    Case(
        name="ViT-Ti/16",
        model="ViT-Ti/16",
        resolution=224,
        batch_size=8,
        steps=14,
        make_data=photographs,
    ),
    Case(
        name="ViT-small/4 (64 wide, 4 deep)",
        model="ViT-Ti/4",
        settings=SMALL,
        resolution=28,
        batch_size=64,
        steps=120,
        make_data=small_images,
    ),
    Case(
        name="ViT-small/7 (64 wide, 4 deep)",
        model="ViT-Ti/7",
        settings=SMALL,
        resolution=28,
        batch_size=64,
        steps=120,
        make_data=small_images,
    ),
    # The loader's share of the time is that of a device on which the steps above take no longer than these.
    Case(
        name="ViT-small/14 (32 wide, 2 deep)",
        model="ViT-Ti/14",
        settings=("model.width=32", "model.depth=2", "model.mlp=128", "model.heads=2"),
        resolution=28,
        batch_size=256,
        steps=160,
        make_data=small_images,
    ),
)

# On a GPU the step takes so little time that reading is what counts; no image comes twice there, either.
GPU_CASES = (
    Case(
        name="ViT-S/16",
        model="ViT-S/16",
        resolution=224,
        batch_size=512,
        steps=60,
        make_data=lambda folder: photographs(folder, 4096, copies=8),
        precision="bf16",
    ),
)


def ours(case: Case, data: Path, run_in: Path, steps: int, threads: int, workers: int) -> Turn:
    """One run of the command, by the lines of its log."""
    settings = {
        "data.resolution": case.resolution,
        "data.crop_area": 0.08,  # timm's
        "recipe.batch_size": case.batch_size,
        "recipe.steps": steps,
        "recipe.warmup_steps": 0,
        "recipe.lr": 1e-4,
        "recipe.precision": case.precision,
    }
    given = [*(f"{key}={value}" for key, value in settings.items()), *case.settings]
    command = [sys.executable, "-m", "vitscale", "pretrain", "--model", case.model, "--data", str(data)]
    command += [word for setting in given for word in ("--set", setting)]
    command += ["--threads", str(threads), "--workers", str(workers)]
    command += ["--runs", str(run_in), "--results", str(run_in / "results")]
    begun = time.time()
    cpu, _ = run(command, {})
    (log,) = run_in.glob("*/events.jsonl")
    lines = [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "step"]
    first, last = lines[0], lines[-1]
    ended = [datetime.fromisoformat(line["time"]).timestamp() for line in (first, last)]
    seconds = ended[1] - ended[0]
    before = [0, *(line["step"] for line in lines)]
    waited = sum(line["seconds"]["wait"] * (line["step"] - b) for line, b in list(zip(lines, before, strict=False))[1:])
    return Turn((last["step"] - first["step"]) * case.batch_size / seconds, waited / seconds, cpu, ended[0] - begun)


def theirs(folder: Path, steps: int, threads: int, workers: int) -> Turn:
    command = [sys.executable, str(PEER), str(folder), "--threads", str(threads), "--workers", str(workers)]
    begun = time.time()
    cpu, said = run([*command, "--steps", str(steps)], {"OMP_NUM_THREADS": str(threads)})
    found = json.loads(said)
    return Turn(found["images_per_second"], found["wait"], cpu, found["first_step_ended"] - begun)


def run(command: list[str], environment: dict[str, str]) -> tuple[float, bytes]:
    """(seconds on any processor, what it prints)"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, **environment})
    if done.returncode:
        sys.exit(f"{' '.join(command)} ends with {done.returncode}\n{done.stderr.decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout


def measure(case: Case, folder: Path, given: argparse.Namespace) -> list[str]:
    data = folder / "shards"
    case.make_data(data)
    told = {"threads": given.threads, "workers": given.workers}
    ours(case, data, folder / "first", SHORT, **told)
    (trained,) = (path.parent for path in (folder / "first").glob("*/run.json"))
    sides = (
        lambda steps, name: ours(case, data, folder / name, steps, **told),
        lambda steps, _: theirs(trained, steps, **told),
    )
    turns: tuple[list[Turn], list[Turn]] = ([], [])
    rates: tuple[list[float], list[float]] = ([], [])
    for round_ in range(given.rounds):
        for side in (0, 1) if round_ % 2 else (1, 0):
            turn = sides[side](case.steps, f"{round_}")
            # Its start-up is that of a short run at the same time.
            start = sides[side](SHORT, f"{round_}-short").cpu if given.clock == "cpu" else 0.0
            by_cpu = (case.steps - SHORT) * case.batch_size / (turn.cpu - start)
            turns[side].append(turn)
            rates[side].append(turn.images_per_second if given.clock == "wall" else by_cpu)
        shown = " and ".join(f"{rates[side][-1]:.1f} ({turns[side][-1].images_per_second:.1f})" for side in (0, 1))
        print(f"{case.name}: {shown} images/s ({given.clock}, and by the wall)", file=sys.stderr, flush=True)
    ratio = interval([one / other for one, other in zip(*rates, strict=True)])
    middles = (f"{interval(found)[0]:,.1f}" for found in rates)
    waits = (f"{interval([turn.wait for turn in each])[0]:.1%}" for each in turns)
    images = f"{(case.steps - 1) * case.batch_size:,}"
    where = (case.name, f"{case.resolution}", f"{case.batch_size}", images, f"{given.rounds}")
    starts = (f"{interval([turn.start for turn in each])[0]:.1f}" for each in turns)
    return [*where, *middles, f"{ratio[0]:.2f}", f"{ratio[1]:.2f} to {ratio[2]:.2f}", *waits, *starts]


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(FEWEST_ROUNDS), default=FEWEST_ROUNDS, help="alternations")
    parser.add_argument("--threads", type=at_least(1), default=cores, help="for matrices (default: the cores)")
    parser.add_argument("--workers", type=at_least(1), default=cores, help="for reading (default: the cores)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for machines that do other work")
    parser.add_argument("--only", metavar="TEXT", default="", help="models whose name holds it")
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    rows = []
    gpu = torch.cuda.is_available()
    for case in GPU_CASES if gpu else CASES:
        if given.only in case.name:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(case, Path(folder), given))
    devices = f"{device_name()}, bf16; {processor()}" if gpu else f"{processor()}, fp32"
    print(f"{devices}; threads: {given.threads}, and {given.workers} for reading; {given.clock} time")
    print(table((*COLUMNS, *WAITS), rows, markdown=given.markdown))


if __name__ == "__main__":
    main()
