"""`vitscale plan`: what a study would run and what that costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitscale.cli import options
from vitscale.cli.plan_memory import HEADER as MEMORY_HEADER
from vitscale.cli.plan_memory import SPARE as MEMORY_SPARE
from vitscale.cli.plan_memory import memory_rows
from vitscale.cli.plan_screen import HEADER, SPARE, TRANSFER_HEADER, bill, document, row, totals, transfer_row, unequal
from vitscale.cli.screen import print_json, print_table, reports_errors, say, tell_refused
from vitscale.errors import MISSING, VitscaleError
from vitscale.processes import cores
from vitscale.wording import count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitscale.study.bill import Terms
    from vitscale.study.job import Job
    from vitscale.study.plan import Plan


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
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            min=0.0,
            callback=options.finite,
            metavar="GIB",
            help="Of a device: what each shape needs of it, and what cannot fit.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="Hours: on this kind, as timed by vitscale bench, or e.g. H100."),
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", min=0.0, callback=options.finite, help="Of a device-hour.")
    ] = None,
    transfers: Annotated[bool, typer.Option("--transfers", help="List transfers and baselines, too.")] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Only what changed since the study's last sweep, and in which settings.")
    ] = False,
    results: options.Results = Path("results"),
    json: options.Json = False,
) -> None:
    """Say what STUDY would run, what is done, and what the rest costs. Starts nothing.

    Memory is that of a device, without sharing and at the least: with ZeRO and activation checkpointing.
    """
    from vitscale.launch import standing, trunks
    from vitscale.launch.rates import rates_of
    from vitscale.launch.sweep import current_plan
    from vitscale.study.bill import Terms
    from vitscale.study.load import load

    loaded = load(study, settings=settings or [])
    now = current_plan(loaded, runs)
    if diff:
        _print_changes(now, runs, results / loaded.name, json)
        return
    everything = [*now.jobs, *now.waiting]
    terms = Terms(
        counting=counting,
        rates=rates_of(everything, device, cores()),
        devices=devices,
        micro_batch=micro_batch,
        memory=memory,
        price=price,
        begun=trunks.shares_left(everything, runs),
    )
    states = standing.states(now.jobs, runs)
    if not standing.can_choose(now.jobs, states):
        states = {**{job.id: f"{standing.WAITS}failed tuning" for job in now.waiting}, **states}
    if json:
        documents = [document(job, states.get(job.id, "waiting for [select]"), terms) for job in everything]
        numbers = terms.totals(everything, states)
        facts = {"counting": counting, "rates": terms.rates.how, "totals": numbers, "jobs": documents}
        print_json({"study": loaded.name, "title": loaded.title, **facts})
    else:
        _print_plan(everything, states, terms, transfers=transfers)
        tell_refused(now.jobs, states, runs)


def _print_plan(jobs: Sequence[Job], states: Mapping[str, str], terms: Terms, *, transfers: bool) -> None:
    training = [job for job in jobs if job.kind == "pretrain"]
    published = [job for job in jobs if job.kind == "import"]
    print_table([row(job, states.get(job.id, "selecting"), terms) for job in [*training, *published]], HEADER, SPARE)
    moved = [job for job in jobs if job.kind == "transfer"] if transfers else []
    if moved:
        print_table(
            [transfer_row(job, states.get(job.id, "selecting"), terms) for job in moved], TRANSFER_HEADER, SPARE
        )
    if terms.memory is not None:
        print_table(list(memory_rows(training, terms)), MEMORY_HEADER, MEMORY_SPARE)
    for line in [
        *totals(jobs, states, terms.counting, begun=terms.begun),
        *bill(jobs, states, terms),
        *unequal(training, terms.counting),
    ]:
        say(line)
    if any(job.dataset.fingerprint is None for job in training):
        say("note: run ids are provisional, as the data are not at hand")


def _print_changes(now: Plan, runs: Path, results: Path, json: bool) -> None:
    from vitscale.launch.changes import changes
    from vitscale.results.store import read_plan

    held = read_plan(results)
    if held is None:
        raise VitscaleError(
            f"{results}: no sweep of this study is on record, so all of its runs are new",
            hint="vitscale plan STUDY lists them; --results names another folder of results",
            exit_code=MISSING,
        )
    found = list(changes(now, held, runs, results))
    waiting = sum(job.kind == "pretrain" for job in now.waiting)
    if json:
        print_json({"changes": [asdict(change) for change in found], "waiting": waiting})
        return
    rows = [(change.state, change.id, change.model, change.words()) for change in found]
    if rows:
        print_table(rows, ["change", "run", "model", "differs"])
    states = Counter(change.state for change in found)
    told = [f"{states['new']} new", f"{states['gone']} no more in the study"]
    if states["further"]:
        told.append(f"{count(states['further'], 'trunk goes', 'trunks go')} further")
    say(f"pre-training runs: {', '.join(told)}" if found else "nothing has changed")
    if waiting:
        back = "; any that is no more in the study may be among them" if states["gone"] else ""
        say(f"{count(waiting, 'more waits', 'more wait')} for [select], and cannot be compared yet{back}")
