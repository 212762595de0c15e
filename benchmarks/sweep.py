"""What a sweep costs beside its runs, how planning and results grow with a study, and what a shared trunk saves.

`overhead`: a sweep of short runs, one at a time, beside the seconds that its workers' own attempts took: what is left
is starting Python, torch and DeepSpeed for each run, planning and recording. `scale`: commands on made-up studies whose
runs all have an outcome, written by the code that writes real ones, in seconds on a processor. `sharing`: the ViT of
studies/compute.toml with one seed and a part of its budgets' images, swept with its trunk and then with each run alone;
device-seconds are those of the rows, so evaluation counts and start-up does not. The images are fractals, made here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from tables import at_least, table

from vitscale.data import fractals
from vitscale.launch import folders
from vitscale.launch.collect import collect
from vitscale.launch.sweep import current_plan
from vitscale.results import provenance, store
from vitscale.study.job import Job
from vitscale.study.load import load
from vitscale.train.device import processor

COMPUTE = Path(__file__).parents[1] / "studies" / "compute.toml"
BUDGET = re.compile(r'^("recipe.examples" = )\[(.*)\]$', re.MULTILINE)
STUDY = """
[sizes.nano]
width = 64
depth = 4
mlp = 256
heads = 2
[model]
stem = "small"
[data]
{data}
resolution = 28
val_examples = 500
[recipe]
batch_size = 64
warmup_steps = 5
schedule = "{schedule}"
cooldown = {cooldown}
[[axes]]
"model.name" = {models}
"recipe.examples" = {examples}
seed = {seeds}
"""
COMMANDS = ("plan many.toml", "status many.toml", "results many", "results many", "sweep many.toml")
BUDGETS = [1000 * 2**k for k in range(10)]
ROW = {"protocol": "pretrain", "flops_eval": 1e9, "flops_lost": 0.0, "device_seconds": 60.0, "value": 0.5}
MEASURED = [
    {**ROW, "task": task, "metric": metric}
    for task in ("upstream_val", "upstream_test")
    for metric in ("accuracy", "loss")
]


def vitscale(*arguments: str, cwd: Path) -> tuple[float, float]:
    """Seconds that the command takes by the clock, and on a processor."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "vitscale", *arguments],
        cwd=cwd,
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        sys.exit(f"vitscale {' '.join(arguments)} ends with {done.returncode}\n{done.stderr.decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begun, busy


def images(folder: Path) -> None:
    """10,000 fractals at 28 px in 10 classes."""
    fractals.write(folder, classes=10, per_class=1_000, resolution=28, seed=0, workers=1)


def overhead(scratch: Path, given: argparse.Namespace) -> list[list[str]]:
    images(scratch / "images")
    numbers = {"data": 'shards = "images"', "schedule": "cosine", "cooldown": 0.0, "models": ["ViT-nano/7"]}
    (scratch / "short.toml").write_text(STUDY.format(**numbers, examples=[6_400], seeds=list(range(given.runs))))
    found = []
    for jobs in (1, 2):
        runs = scratch / f"runs-{jobs}"
        command = ["sweep", "short.toml", "--jobs", str(jobs), "--threads", "1", "--runs", str(runs)]
        wall, _ = vitscale(*command, "--results", str(scratch / f"results-{jobs}"), cwd=scratch)
        own = sum(map(_seconds, runs.glob("*/result.json")))
        added = (wall * jobs - own) / given.runs
        found.append([f"{given.runs}", f"{jobs}", f"{wall:.1f} s", f"{own:.1f} s", f"{added:.1f} s"])
    return found


def _seconds(result: Path) -> float:
    """That a worker's attempt took: its engine, its steps, its checkpoints and its measurements."""
    told = json.loads(result.read_text())
    ended, started = (datetime.fromisoformat(told[key]) for key in ("ended", "started"))
    return (ended - started).total_seconds()


def scale(scratch: Path, given: argparse.Namespace) -> Iterator[list[str]]:
    for runs in given.sizes:
        for shared in (False, True):
            folder = scratch / f"{runs}-{shared}"
            folder.mkdir()
            how = {"schedule": "constant", "cooldown": 0.2} if shared else {"schedule": "cosine", "cooldown": 0.0}
            seeds = list(range(-(-runs // (2 * len(BUDGETS)))))
            data = "size = 60_000\nnum_classes = 10"
            numbers = {"data": data, "models": ["ViT-nano/7", "R26x0.5"], "examples": BUDGETS, "seeds": seeds}
            (folder / "many.toml").write_text(STUDY.format(**numbers, **how))
            before = vitscale("plan", "many.toml", cwd=folder)
            count = fill(folder)
            after = [vitscale(*command.split(), cwd=folder) for command in COMMANDS]
            trunks = "with trunks" if shared else "none shared"
            yield [f"{count:,}", trunks, *(f"{busy:.2f} s" for _, busy in (before, *after))]


def fill(folder: Path) -> int:
    """Gives every run of the study an outcome, as a sweep would; how many there are."""
    study, runs = load(folder / "many.toml"), folder / "runs"
    jobs = current_plan(study, runs).jobs
    known = provenance.collect()
    folders.provenance.collect = lambda: known  # git is asked once, not for each run
    os.fsync = lambda _: None  # the disk is not waited for some 60,000 times: nothing made up needs to last
    for job in jobs:
        place = folders.prepare(job, runs, base=folder, machine={"shards": ""})
        (place / "checkpoints" / f"step-{job.steps:08d}").mkdir(parents=True)
        (place / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events(job)))
        (place / "result.json").write_text(json.dumps(outcome(job)))
        collect(job, runs, folder / "results", study.name)
    store.write_plan(folder / "results" / study.name, store.Held(frozenset(job.id for job in jobs)))
    return len(jobs)


NOW = "2026-01-01T00:00:00.000+00:00"


def events(job: Job) -> list[dict[str, Any]]:
    step = {
        "step": job.steps,
        "steps": job.steps,
        "loss": 1.0,
        "lr": 1e-3,
        "images_per_second": 1e3,
        "seconds_left": 0.0,
    }
    told = [{"event": "start", "attempt": 1, "device": "made up"}, {"event": "step", **step}, {"event": "done"}]
    return [{**event, "time": NOW} for event in told]


def outcome(job: Job) -> dict[str, Any]:
    spent = {"flops_segment": float(job.flops), "trunk_id": job.branch.trunk if job.branch else None}
    rows = MEASURED[:1] if job.role == "trunk" else MEASURED
    attempt = {"attempt": 1, "started": NOW, "ended": NOW, "device": "made up", "n_devices": 1}
    facts = {"checkpoint": f"step-{job.steps:08d}", "score": 0.5, "reached": job.steps}
    return {"status": "done", **attempt, **facts, "rows": [{**row, **spent} for row in rows]}


def sharing(scratch: Path, given: argparse.Namespace) -> list[list[str]]:
    images(scratch / "images")
    (scratch / "compute.toml").write_text(BUDGET.sub(lambda line: smaller(line, given.divide), COMPUTE.read_text()))
    settings = [f"data.shards={scratch / 'images'}", "data.test=", "data.val_examples=500", "seed=0"]
    settings += [f"model.name={given.model}", "recipe.warmup_steps=10"]
    told = [word for setting in settings for word in ("--set", setting)]
    found, spent = [], {}
    for way in ("--share", "--no-share"):
        command = ["sweep", "compute.toml", *told, way, "--jobs", "1", "--threads", "1", "--runs", way.strip("-")]
        wall, _ = vitscale(*command, "--results", f"results-{way.strip('-')}", cwd=scratch)
        rows = store.read(scratch / f"results-{way.strip('-')}" / "compute")
        each = rows[rows["protocol"] == "pretrain"].drop_duplicates("run_id")
        spent[way] = each["device_seconds"].sum()
        flops = each["flops_segment"].sum()
        found.append([way, f"{len(each)}", f"{flops:.3g}", f"{spent[way]:.1f} s", f"{wall:.1f} s"])
    saved = 1 - spent["--share"] / spent["--no-share"]
    found.append(["saved", "", "", f"{saved:.0%}", ""])
    return found


def smaller(line: re.Match[str], by: int) -> str:
    """The study's list of budgets, each divided."""
    return line[1] + str([int(number) // by for number in line[2].replace("_", "").split(",")])


COLUMNS = {
    "overhead": ("runs", "at a time", "sweep", "its runs themselves", "added a run"),
    "scale": ("runs", "trunks", "plan", "plan, all done", "status", "results", "results again", "sweep, all done"),
    "sharing": ("way", "pre-trainings", "FLOPs", "device-seconds", "sweep"),
}
PARTS = {"overhead": overhead, "scale": scale, "sharing": sharing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), nargs="+", default=list(PARTS))
    parser.add_argument("--runs", type=at_least(1), default=8, help="overhead: runs of the sweep")
    parser.add_argument("--sizes", type=at_least(20), nargs="+", default=[1_000, 10_000], help="scale: runs of a study")
    parser.add_argument("--model", default="ViT-nano/7", help="sharing: the model")
    parser.add_argument("--divide", type=at_least(1), default=4, help="sharing: of a budget's images one in so many")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    given = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for part in given.part:
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["VITSCALE_CACHE"] = str(Path(scratch, "cache"))
            print(table(COLUMNS[part], list(PARTS[part](Path(scratch), given)), markdown=given.markdown), flush=True)


if __name__ == "__main__":
    main()
