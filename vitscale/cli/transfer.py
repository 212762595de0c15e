"""`vitscale finetune` and `vitscale fewshot`: one transfer of a finished run."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitscale.cli import options
from vitscale.cli.pretrain import run_one
from vitscale.cli.screen import reports_errors
from vitscale.errors import MISSING, USAGE, Problem, VitscaleError

if TYPE_CHECKING:
    from vitscale.config import Transfer
    from vitscale.launch.machine import Machine

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, its beginning, or its folder.")]
TaskName = Annotated[str, typer.Option("--task", help="A task's name, or the path of a task file.")]

ASKED = ("resolution", "shots", "lr", "steps", "batch_size")
"""Settings of a transfer that can be asked for here; they tell single transfers of one run apart."""


@reports_errors
def finetune(
    run: RunId,
    task: TaskName,
    lr: Annotated[list[float] | None, typer.Option("--lr", help="Several: the best on the dev split is taken.")] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps.")] = 500,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images in a step.")] = 512,
    resolution: Annotated[int | None, typer.Option("--resolution", min=1, help="Side of the image, px.")] = None,
    threads: options.Threads = None,
    save_every: options.SaveEvery = 60.0,
    runs: options.Runs = Path("runs"),
    results: options.Results = Path("results"),
) -> None:
    """Fine-tune all weights of RUN on a task and test once. The same command goes on with one that was stopped."""
    from vitscale.config import Transfer
    from vitscale.study.fields import each_once

    rates = each_once(lr) if lr else Transfer().lr
    transfer = Transfer(
        task=task, protocol="finetune", steps=steps, batch_size=batch_size, resolution=resolution, lr=rates
    )
    _transfer(run, transfer, runs, results, options.machine(1, threads, most=1, save_every=save_every))


@reports_errors
def fewshot(
    run: RunId,
    task: TaskName,
    shots: Annotated[list[int] | None, typer.Option("--shots", min=1, help="Labelled images a class.")] = None,
    resolution: Annotated[int | None, typer.Option("--resolution", min=1, help="Side of the image, px.")] = None,
    threads: options.Threads = None,
    runs: options.Runs = Path("runs"),
    results: options.Results = Path("results"),
) -> None:
    """Ridge regression on RUN's frozen features, with the task's draws of few labelled images."""
    from vitscale.config import Transfer
    from vitscale.study.fields import each_once

    given = each_once(shots) if shots else Transfer().shots
    transfer = Transfer(task=task, protocol="fewshot", resolution=resolution, shots=given)
    _transfer(run, transfer, runs, results, options.machine(1, threads, most=1))


def _transfer(run: str, transfer: Transfer, runs: Path, results: Path, machine: Machine) -> None:
    from dataclasses import fields

    from vitscale import models
    from vitscale.config import Transfer
    from vitscale.launch import folders
    from vitscale.study.check import check_transfer
    from vitscale.study.datasets import Dataset, load_task
    from vitscale.study.fields import from_dict
    from vitscale.study.job import Job
    from vitscale.study.plan import transfer_job

    folder = find(run, runs)
    told = folders.document(folder)
    if told["kind"] == "transfer":
        raise VitscaleError(f"{folder.name} is itself a transfer", hint="name a pre-training run", exit_code=USAGE)
    if (state := folders.state(folder)) == "refused":
        ended = folders.outcome(folder) or {}
        raise VitscaleError(ended["reason"], hint=ended["hint"], exit_code=ended["exit_code"])
    if state != "done":
        raise VitscaleError(
            f"run {folder.name} is not done ({state})",
            hint="finish its pre-training first, with the command that began it",
            exit_code=MISSING,
        )
    try:
        task = load_task(transfer.task, base=Path())
    except VitscaleError as error:
        raise VitscaleError.of(error.problems, exit_code=USAGE) from None
    arch = models.from_dict(told["arch"])
    trained_at = told["config"]["data"]["resolution"]
    resolution = transfer.resolution or trained_at
    problems = [Problem(f"transfer.{c.key}: {c.message}", c.hint) for c in check_transfer(transfer, task)]
    problems += [Problem(p, "choose another --resolution") for p in arch.problems(resolution, trained_at=trained_at)]
    if problems:
        raise VitscaleError.of(problems, exit_code=USAGE)
    parent = Job(
        id=told["id"],
        role="cell",
        run=from_dict(told["config"]),
        arch=arch,
        dataset=Dataset.from_facts(told["dataset"]),
        test=Dataset.from_facts(told["test"]) if told["test"] else None,
        checkpoint=told.get("checkpoint"),
        varied={},
    )
    asked = {f"transfer.{f.name}": getattr(transfer, f.name) for f in fields(Transfer) if f.name in ASKED}
    job = transfer_job(parent, transfer, task, differing=asked)
    run_one(job, folder.parent, results, machine)


def find(run: str, runs: Path) -> Path:
    """A run's folder from its id, the beginning of it, or its path."""
    if (Path(run) / "run.json").is_file():
        return Path(run).resolve()
    found = sorted(path.parent for path in runs.glob(f"{glob.escape(run)}*/run.json")) if run and "/" not in run else []
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found[:5])
        raise VitscaleError(f"several runs begin with {run!r}: {names}", hint="give more of the id", exit_code=USAGE)
    raise VitscaleError(
        f"there is no run {run!r} in {runs}", hint="vitscale status STUDY lists the runs of a study", exit_code=MISSING
    )
