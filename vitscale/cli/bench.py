"""`vitscale bench`: how fast each shape of a study trains here, and how much memory that takes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitscale.cli import options
from vitscale.cli.engine import CUT_UP, CutUp, takes
from vitscale.cli.only import filter_of
from vitscale.cli.screen import print_json, print_table, reports_errors, say
from vitscale.errors import RUN_FAILED, USAGE, VitscaleError

if TYPE_CHECKING:
    from vitscale.launch.sweep import Machine
    from vitscale.study.job import Job


@reports_errors
@takes(CutUp)
def bench(
    study: options.StudyFile,
    settings: options.Settings = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="TEXT", help="Only models whose name holds it, or runs.")
    ] = None,
    threads: options.Threads = None,
    devices: options.Devices = None,
    engine: CutUp = CUT_UP,
    runs: options.Runs = Path("runs"),
    json: options.Json = False,
) -> None:
    """Time some steps of each shape of STUDY on this machine, and see how much memory they take.

    It reads no images; a study without its data at hand gives data.size, as for `vitscale plan`, which then prices by
    what was measured.
    """
    from vitscale.launch.rates import keep
    from vitscale.launch.sweep import current_plan
    from vitscale.study.load import load

    loaded = load(study, settings=settings or [])
    now = current_plan(loaded, runs, share=False)
    shapes = _shapes([*now.jobs, *now.waiting], filter_of(only))
    options.check_micro_batch(options.given(engine.micro_batch), devices or 1, shapes)
    machine = options.machine(1, threads, most=1, devices=devices, **engine.settings())
    measured, failed = [], []
    for job in shapes:
        say(f"timing {job.label} at {job.run.data.resolution} px, {job.run.recipe.batch_size:,} images a step")
        outcome = _timed(job, machine, loaded.base)
        if outcome["status"] != "done":
            say(f"failed: {outcome['reason']}")
            failed.append(job)
            continue
        facts = {key: outcome[key] for key in ("images_per_second", "memory", "settings", "threads")}
        keep(job, outcome["device"], {**facts, "devices": machine.devices, "measured": outcome["ended"]})
        measured.append((job, outcome))
    if json:
        print_json({"study": loaded.name, "shapes": [_document(job, outcome) for job, outcome in measured]})
    else:
        print_table([_row(job, outcome) for job, outcome in measured], ["model", "px", "batch", *MEASURED])
    if failed:
        raise VitscaleError(
            f"{len(failed)} of {len(shapes)} shapes could not be timed: {', '.join(job.label for job in failed)}",
            hint="the reasons stand above; --micro-batch, --zero and --activation-checkpointing need less memory",
            exit_code=RUN_FAILED,
        )


MEASURED = ("images/s", "GFLOP/s a device", "GiB", "micro-batch", "device")


def _shapes(jobs: list[Job], wanted: Any) -> list[Job]:
    from vitscale.launch.rates import shape_of

    found: dict[str, Job] = {}
    for job in jobs:
        if job.kind == "pretrain" and wanted(job):
            found.setdefault(shape_of(job), job)
    if not found:
        raise VitscaleError(
            "nothing to time: no run that is wanted is pre-trained", hint="vitscale plan lists them", exit_code=USAGE
        )
    return list(found.values())


def _timed(job: Job, machine: Machine, base: Path) -> dict[str, Any]:
    """The outcome of a run that only times its steps, in a folder that is gone afterwards."""
    from vitscale.launch.single import time_steps

    with tempfile.TemporaryDirectory() as runs:
        return time_steps(job, Path(runs), machine, base)


def _row(job: Job, outcome: dict[str, Any]) -> list[str]:
    rate = outcome["images_per_second"]
    return [
        job.label,
        str(job.run.data.resolution),
        f"{job.run.recipe.batch_size:,}",
        f"{rate:,.1f}",
        f"{rate * 6 * job.macs / outcome['n_devices'] / 1e9:,.1f}",
        f"{outcome['memory'] / 2**30:.3g}",
        str(outcome["settings"]["micro_batch"]),
        outcome["device"],
    ]


def _document(job: Job, outcome: dict[str, Any]) -> dict[str, Any]:
    kept = ("images_per_second", "steps", "memory", "settings", "device", "n_devices")
    return {
        "model": job.label,
        "resolution": job.run.data.resolution,
        "batch_size": job.run.recipe.batch_size,
        **{key: outcome[key] for key in kept},
    }
