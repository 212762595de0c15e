"""`vitscale pretrain`: one pre-training run, outside any study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitscale import checkpoints
from vitscale.cli import options
from vitscale.cli.engine import ENGINE, Engine, takes
from vitscale.cli.screen import reports_errors, say
from vitscale.errors import INTERRUPTED, INVALID_STUDY, RUN_FAILED, USAGE, Problem, VitscaleError

if TYPE_CHECKING:
    from vitscale.launch.machine import Machine
    from vitscale.launch.placement import Place
    from vitscale.study.job import Job

SINGLE = "single"
"""The folder of results for runs that belong to no study."""


@reports_errors
@takes(Engine)
def pretrain(
    size: Annotated[str, typer.Option("--size", help="Ti, S, B, L, H, ... or, of a ResNet, 50x1.")] = "Ti",
    patch: Annotated[int, typer.Option("--patch", min=1, help="Patch size; of a hybrid the whole down-sampling.")] = 16,
    family: Annotated[str, typer.Option("--family", help="vit, hybrid (over R50) or resnet.")] = "vit",
    model: Annotated[
        str | None, typer.Option("--model", help="The literature's name instead, e.g. R26+ViT-S/32.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="WebDataset shards: a folder, a pattern, or a URL.")
    ] = None,
    settings: options.Settings = None,
    threads: options.Threads = None,
    devices: options.Devices = None,
    nodes: options.Nodes = None,
    hostfile: options.Hostfile = None,
    engine: Engine = ENGINE,
    runs: options.Runs = Path("runs"),
    results: options.Results = Path("results"),
) -> None:
    """Pre-train one model. `--set` gives the rest, e.g. --set recipe.epochs=7 --set data.resolution=224.

    On several hosts: with --hostfile, or start this command once for each device with torchrun or srun.
    """
    place = options.place(devices, hostfile)
    if place is not None:
        from vitscale.launch.placement import stop_with_torchrun

        stop_with_torchrun()
    with options.only_first_speaks(place):
        job = _job(model or _name(family, size, patch), data, settings or [])
        hosts = options.hosts(hostfile, nodes, devices)
        world_size = place.world_size if place else options.world_size(hosts, devices)
        settings_of_engine = engine.settings()
        options.check_micro_batch(settings_of_engine["micro_batch"], world_size, [job])
    machine = options.machine(
        1,
        threads,
        most=1,
        devices=devices,
        hosts=hosts,
        shared_by=place.local_size if place else 1,
        **settings_of_engine,
    )
    run_one(job, runs, results, machine, place)


def _name(family: str, size: str, patch: int) -> str:
    forms = {"vit": f"ViT-{size}/{patch}", "hybrid": f"R50+ViT-{size}/{patch}", "resnet": f"R{size.removeprefix('R')}"}
    if family not in forms:
        raise VitscaleError(f"unknown family {family!r}", hint="vit, hybrid or resnet", exit_code=USAGE)
    return forms[family]


def _job(name: str, data: str | None, settings: list[str]) -> Job:
    from vitscale.study.load import Study, read_settings
    from vitscale.study.plan import plan
    from vitscale.study.select import Cell

    given: dict[str, Any] = {
        "model.name": name,
        **({"data.shards": data} if data else {}),
        **read_settings(settings),
    }
    if given.get("model.checkpoint"):
        raise VitscaleError(
            "a published checkpoint is not trained",
            hint="vitscale checkpoint import FILE --model NAME makes a run of it",
            exit_code=USAGE,
        )
    if not given.get("data.shards"):
        raise VitscaleError(
            "no data to pre-train on",
            hint="give --data FOLDER; vitscale data fractals FOLDER makes some, vitscale data pack packs your own",
            exit_code=USAGE,
        )
    from vitscale.study import fields
    from vitscale.study.check import check_run, check_steps

    if not {"recipe.steps", "recipe.epochs", "recipe.examples"} & set(given):
        given["recipe.epochs"] = 7.0  # as most runs of arXiv 2010.11929, Table 6
    run = fields.build(given)
    complaints = check_run(run, sizes={}, base=Path()) or check_steps(run, base=Path())
    if complaints:
        problems = [Problem(complaint.message, complaint.hint) for complaint in complaints]
        codes = {complaint.exit_code for complaint in complaints}
        raise VitscaleError.of(problems, exit_code=codes.pop() if len(codes) == 1 else INVALID_STUDY)
    # In the results of single runs, what was asked for tells them apart.
    cell = Cell(values=given, run=run, varied={key: value for key, value in given.items() if key != "data.shards"})
    study = Study(name=SINGLE, title=name, base=Path(), sizes={}, cells=(cell,), transfers=(), select=None)
    return plan(study, {}).jobs[0]


def run_one(job: Job, runs: Path, results: Path, machine: Machine, place: Place | None = None) -> None:
    """Runs one job to its end with the launcher that a sweep uses, and prints its run id."""
    from vitscale.launch import folders
    from vitscale.launch.progress import summary, title
    from vitscale.launch.single import run_single, take_part

    if place is not None and place.rank > 0:
        raise typer.Exit(take_part(runs / job.id, machine.threads, place))
    before = folders.state(runs / job.id)
    if before == "refused":
        ended = folders.outcome(runs / job.id) or {}
        raise VitscaleError(ended["reason"], hint=ended["hint"], exit_code=ended["exit_code"])
    cost = f"{job.params.total:,} parameters, {job.flops:.2e} FLOPs"
    say(f"{title(job)}: {'is done already' if before == 'done' else cost}")
    if before == "failed":
        folders.set_aside(runs / job.id, asked=True)
    stopped = run_single(
        job,
        places=options.places(runs, results),
        machine=machine,
        study=SINGLE,
        say=say,
        place=place,
    )
    if stopped:
        saved = checkpoints.last(runs / job.id) is not None
        say(f"stopped; the same command {'goes on from here' if saved else 'begins again'}")
        raise typer.Exit(INTERRUPTED)
    outcome = folders.result(runs / job.id)
    assert outcome is not None  # else `run_single` raises
    if outcome["status"] == "failed":
        hint = outcome.get("hint") or f"{runs / job.id / 'log.txt'} has the whole log"
        raise VitscaleError(outcome["reason"], hint=hint, exit_code=outcome.get("exit_code") or RUN_FAILED)
    say(summary(outcome))
    print(job.id)
