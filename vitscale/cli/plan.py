"""`vitscale plan`: what a study would run and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitscale.cli import options
from vitscale.cli.screen import print_json, print_table, reports_errors, say

if TYPE_CHECKING:
    from vitscale.models.counts import Counting
    from vitscale.study.job import Job


@reports_errors
def plan(
    study: options.StudyFile,
    settings: options.Settings = None,
    runs: options.Runs = Path("runs"),
    counting: options.CountingOption = "dense",
    devices: Annotated[int, typer.Option("--devices", min=1, help="Memory: devices that share a run.")] = 1,
    micro_batch: Annotated[
        int | None, typer.Option("--micro-batch", min=1, help="Memory: images at once on a device. Default: its part.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Say what STUDY would run, what is done, and what the rest costs. Starts nothing.

    Memory is that of a device, without sharing and at the least: with ZeRO and activation checkpointing.
    """
    from vitscale.launch import folders
    from vitscale.launch.sweep import current_plan
    from vitscale.study.load import load

    loaded = load(study, settings=settings or [])
    now = current_plan(loaded, runs)
    states = {job.id: folders.state_of(job, runs) for job in now.jobs}
    waiting = [job for job in now.waiting if job.kind == "pretrain"]
    pretraining = [job for job in now.jobs if job.kind == "pretrain"]
    published = [job for job in now.jobs if job.kind == "import"]
    if json:
        told = [(job, states[job.id]) for job in now.jobs] + [(job, "waiting for [select]") for job in now.waiting]
        documents = [
            {**_document(job, state, counting), "memory_bytes": _memory(job, devices, micro_batch)}
            for job, state in told
        ]
        print_json({"study": loaded.name, "title": loaded.title, "counting": counting, "jobs": documents})
        return
    listed = [(job, states[job.id]) for job in pretraining] + [(job, "selecting") for job in waiting]
    print_table(
        [_row(job, state, counting, _most_and_least(job, devices, micro_batch)) for job, state in listed]
        + [_published_row(job, states[job.id], counting) for job in published],
        [
            "run",
            "role",
            "model",
            "examples",
            "seen",
            "seed",
            "lr",
            "params",
            "MMACs/image",
            "exaFLOPs alone",
            "exaFLOPs",
            "GiB/device",
            "state",
        ],
    )
    for line in [*totals([*now.jobs, *now.waiting], states, counting), *unequal(pretraining + waiting, counting)]:
        say(line)
    if any(job.dataset.fingerprint is None for job in pretraining + waiting):
        say("note: run ids are provisional, as the data are not at hand")


def _document(job: Job, state: str, counting: Counting) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "role": job.role,
        "model": job.run.model.name,
        "family": job.arch.family,
        "objective": job.run.recipe.objective,
        "examples": job.examples,
        "examples_seen": job.examples_seen,
        "seed": job.run.seed,
        "lr": job.run.recipe.lr,
        "params": job.params.total,
        "macs": job.macs_by(counting),
        "flops": job.flops_by(counting),
        "flops_alone": job.flops_alone_by(counting) if job.kind == "pretrain" else None,
        "parent": job.parent,
        "trunk": job.branch.trunk if job.branch else None,
        "transfer": None if job.run.transfer is None else f"{job.run.transfer.protocol} {job.run.transfer.task}",
        "init": None if job.run.transfer is None else job.run.transfer.init,
        "provisional": job.dataset.fingerprint is None,
        "state": state,
    }


def _memory(job: Job, devices: int, micro_batch: int | None) -> list[dict[str, Any]] | None:
    """Bytes on a device by ZeRO stage, with activation checkpointing and without; None of a job that trains nothing."""
    if job.kind != "pretrain":
        return None
    return [
        {
            "zero": stage,
            "activation_checkpointing": recompute,
            "bytes": job.memory_bytes(stage=stage, devices=devices, micro_batch=micro_batch, recompute=recompute),
        }
        for stage in (range(4) if devices > 1 else (0,))
        for recompute in (False, True)
    ]


def _most_and_least(job: Job, devices: int, micro_batch: int | None) -> str:
    found = [each["bytes"] for each in _memory(job, devices, micro_batch) or []]
    return f"{found[0] / 2**30:.3g} to {min(found) / 2**30:.3g}"


def _row(job: Job, state: str, counting: Counting, memory: str) -> list[str]:
    selecting = state == "selecting"
    return [
        "-" if selecting else job.id,
        job.role,
        job.label,
        f"{job.examples:,}",
        f"{job.examples_seen:,}",
        str(job.run.seed),
        "to select" if selecting else f"{job.run.recipe.lr:g}",
        f"{job.params.total:,}",
        f"{job.macs_by(counting) / 1e6:,.1f}",
        "-" if job.role == "trunk" else f"{job.flops_alone_by(counting) / 1e18:.4g}",
        f"{job.flops_by(counting) / 1e18:.4g}",
        memory,
        state,
    ]


def _published_row(job: Job, state: str, counting: Counting) -> list[str]:
    """Nothing is trained: the price is that of the network without a head."""
    weights = f"{job.memory_bytes() / 2**30:.3g}"
    id_, _, model, _, _, _, _, params, macs, _, _, memory, state = _row(job, state, counting, weights)
    return [id_, "published", model, "-", "-", "-", "-", params, macs, "-", "-", memory, state]


def totals(jobs: Sequence[Job], states: Mapping[str, str], counting: Counting = "dense") -> list[str]:
    """Counts and FLOPs of all jobs and of those still to do."""
    left = [job for job in jobs if states.get(job.id) not in ("done", "failed")]
    pretraining = sum(job.kind == "pretrain" and job.role != "trunk" for job in jobs)
    trunks = sum(job.role == "trunk" for job in jobs)
    published = sum(job.kind == "import" for job in jobs)
    baselines = sum(job.role == "baseline" for job in jobs)
    transfers = len(jobs) - pretraining - trunks - published - baselines
    checkpoints = f"{published} published checkpoint{'s' if published > 1 else ''}, " if published else ""
    return [
        f"{pretraining} pre-training runs, {checkpoints}{transfers} transfers, {baselines} baselines; "
        f"{sum(job.flops_by(counting) for job in jobs):.2e} FLOPs",
        *_saved(jobs, trunks, counting),
        f"left to run: {len(left)} jobs, {sum(job.flops_by(counting) for job in left):.2e} FLOPs",
    ]


def _saved(jobs: Sequence[Job], trunks: int, counting: Counting) -> list[str]:
    """What sharing trunks saves of the pre-training."""
    if not trunks:
        return []
    pretraining = [job for job in jobs if job.kind == "pretrain"]
    alone = sum(job.flops_alone_by(counting) for job in pretraining)
    together = sum(job.flops_by(counting) for job in pretraining)
    return [
        f"{trunks} shared trunk{'s' if trunks > 1 else ''}: pre-training takes {together:.2e} FLOPs instead of "
        f"{alone:.2e} ({1 - together / alone:.0%} saved)"
    ]


def unequal(jobs: Sequence[Job], counting: Counting = "dense") -> list[str]:
    """Says where compared families do not cost the same an image within 10 %."""
    cost = {(job.label, job.macs_by(counting)): None for job in jobs}
    families = {job.arch.family for job in jobs}
    if len(families) < 2 or max(macs for _, macs in cost) <= 1.1 * min(macs for _, macs in cost):
        return []
    shown = ", ".join(f"{name} {macs / 1e6:,.1f}" for name, macs in cost)
    return [f"note: the models differ by more than 10 % in multiply-adds an image (millions: {shown})"]
