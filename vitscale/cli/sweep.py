"""`vitscale sweep`: run what is not done yet."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitscale.cli import options
from vitscale.cli.engine import ENGINE, Engine, takes
from vitscale.cli.launchers import Launch, Launcher, in_slurm, on_this_machine
from vitscale.cli.live import view
from vitscale.cli.only import filter_of
from vitscale.cli.plan_screen import totals, unequal
from vitscale.cli.screen import reports_errors, say
from vitscale.errors import INTERRUPTED, RUN_FAILED, USAGE, VitscaleError
from vitscale.study.bill import is_left
from vitscale.wording import count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vitscale.launch.sweep import Ended, Sweep
    from vitscale.study.job import Job
    from vitscale.study.load import Study


@reports_errors
@takes(Engine)
def sweep(
    study: options.StudyFile,
    settings: options.Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be started, and start nothing.")] = False,
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="TEXT",
            help="Only runs whose id begins so, or whose model's name holds it, and what these need.",
        ),
    ] = None,
    share: Annotated[
        bool,
        typer.Option("--share/--no-share", help="Train what budgets of one model have in common once, as their trunk."),
    ] = True,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed runs again.")] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first failure that is not tried again.")
    ] = False,
    accept_code_change: Annotated[
        bool, typer.Option("--accept-code-change", help="Go on with half-done runs that other code began.")
    ] = False,
    launcher: Annotated[
        Launcher, typer.Option("--launcher", help="Where runs start: on this machine, or as jobs of a Slurm cluster.")
    ] = Launcher.LOCAL,
    max_array: Annotated[
        int | None,
        typer.Option("--max-array", min=1, help="Slurm: tasks of one array. Default: as many as the cluster allows."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Slurm: leave when all that can be is submitted; start it again to go on.")
    ] = False,
    jobs: options.Jobs = None,
    threads: options.Threads = None,
    gpus: options.Gpus = None,
    per_gpu: options.PerGpu = 1,
    devices: options.Devices = None,
    nodes: options.Nodes = None,
    hostfile: options.Hostfile = None,
    engine: Engine = ENGINE,
    runs: options.Runs = Path("runs"),
    results: options.Results = Path("results"),
) -> None:
    """Run everything in STUDY that is not done yet: tuning, pre-training, transfers, baselines.

    Stop it at any time: the next sweep goes on where this one was.
    """
    from vitscale.study.load import load

    options.check_alone()
    reload = partial(load, study, settings=settings or [])
    loaded = reload()
    wanted = filter_of(only, loaded)
    everything, states = _planned(loaded, runs, wanted, share)
    if all(job.role == "trunk" for job in everything):
        raise VitscaleError(
            f"--only {only}: no run of {study} is named so", hint=f"vitscale plan {study} lists them", exit_code=USAGE
        )
    common = {"jobs": jobs, "threads": threads, "devices": devices, "nodes": nodes, "engine": engine.settings()}
    here = {"hostfile": hostfile, "gpus": gpus, "per_gpu": per_gpu}
    launch = _launch(launcher, loaded, len(everything), common, here, max_array, detach)
    options.check_micro_batch(launch.machine.micro_batch, launch.world_size, everything)
    if retry_failed and not dry_run:
        _set_failed_aside(loaded, runs, wanted, share)
        everything, states = _planned(loaded, runs, wanted, share)
    _say_what(loaded, everything, states, runs)
    if dry_run:
        _print_open(everything, states)
        return
    _say_how_long(everything, states, runs, launch)
    with view(sys.stderr) as shown:
        running = launch.sweep(
            study=loaded,
            places=options.places(runs, results),
            machine=launch.machine,
            say=shown.say,
            tick=shown.tick,
            only=wanted,
            share=share,
            fail_fast=fail_fast,
            accept_code_change=accept_code_change,
            overrides=tuple(settings or ()),
            reload=reload,
        )
        ended = running.run()
    _tell(ended, running, study, results / loaded.name, detached=detach)


def _launch(
    launcher: Launcher,
    study: Study,
    runs: int,
    common: Mapping[str, Any],
    here: Mapping[str, Any],
    max_array: int | None,
    detach: bool,
) -> Launch:
    """Where the runs start, of which there are so many at all; `here`: options of this machine alone."""
    if launcher is Launcher.SLURM:
        local = {"--gpus": here["gpus"], "--per-gpu": here["per_gpu"] > 1, "--hostfile": here["hostfile"]}
        return in_slurm(study, max_array=max_array, detach=detach, local=local, **common)
    slurm = {"--max-array": max_array, "--detach": detach}
    return on_this_machine(most=max(runs, 1), slurm=slurm, **here, **common)


def _say_what(study: Study, jobs: Sequence[Job], states: Mapping[str, str], runs: Path) -> None:
    """What the study is, and how much of it is left."""
    from vitscale.launch.trunks import shares_left

    say(study.title)
    training = [job for job in jobs if job.kind == "pretrain"]
    for line in [*totals(jobs, states, begun=shares_left(jobs, runs)), *unequal(training)]:
        say(line)


def _set_failed_aside(study: Study, runs: Path, wanted: Callable[[Job], bool], share: bool) -> None:
    from vitscale.launch.sweep import current_plan, retry_failed

    jobs = [job for job in current_plan(study, runs, wanted, share=share).jobs if wanted(job)]
    say(f"trying {count(retry_failed(jobs, runs, say), 'failed run')} again")


def _planned(
    study: Study, runs: Path, wanted: Callable[[Job], bool], share: bool
) -> tuple[list[Job], Mapping[str, str]]:
    """The jobs that are wanted, those that wait for a selection included; and where each of all jobs stands."""
    from vitscale.launch import standing
    from vitscale.launch.sweep import current_plan

    now = current_plan(study, runs, wanted, share=share)
    states = standing.states(now.jobs, runs)
    if not standing.can_choose(now.jobs, states):
        states = {**{job.id: f"{standing.WAITS}failed tuning" for job in now.waiting}, **states}
    return [job for job in [*now.jobs, *now.waiting] if wanted(job)], states


def _tell(ended: Ended, running: Sweep, study: Path, place: Path, *, detached: bool) -> None:
    """How it ended, in words and by the exit code."""
    from vitscale.launch.progress import stuck_words

    refused = f", {ended.refused} refused" if ended.refused else ""
    left = f", {ended.unfinished} not finished" if ended.unfinished else ""
    stuck = f" ({stuck_words(ended.stuck)})" if ended.stuck else ""
    say(f"{ended.done} done, {ended.failed} failed{refused}{left}{stuck}; results in {place}")
    if ended.beside:
        why = "of --set" if running.overrides else "that the study's file does not hold any more"
        say(f"note: results and report leave out {count(ended.beside, 'run')} {why}")
    if ended.interrupted:
        say("stopped; the same command goes on from here")
        raise typer.Exit(INTERRUPTED)
    if running.refused:
        raise VitscaleError.of(list(running.refused.values()), exit_code=running.refused_code)
    if ended.failed or (ended.unfinished and not detached):
        way_out = "--retry-failed tries failed runs again"
        if not ended.failed and not ended.stuck:
            way_out = "nothing has failed, and the same command goes on from here"
        say(f"hint: vitscale status {study} names the reasons; {way_out}")
        raise typer.Exit(RUN_FAILED)


def _print_open(jobs: Sequence[Job], states: Mapping[str, str]) -> None:
    """What a sweep would start, now or after a selection."""
    from vitscale.launch.progress import title

    for job in jobs:
        state = states.get(job.id, "waits for [select]")
        if state not in ("done", "refused"):
            print(title(job), state, sep="\t")


def _say_how_long(jobs: Sequence[Job], states: Mapping[str, str], runs: Path, launch: Launch) -> None:
    from vitscale.launch.estimate import expected
    from vitscale.launch.progress import duration

    if launch.at_a_time is None:
        return
    left = [job for job in jobs if is_left(states.get(job.id))]
    cut_up = {"threads": launch.machine.threads, "devices": launch.machine.devices}
    rest = expected(jobs, left, runs, processes=launch.at_a_time, **cut_up)
    if left:
        say(f"{_at_a_time(launch.at_a_time, launch.machine.threads)}; about {duration(rest.seconds)} ({rest.how})")


def _at_a_time(jobs: int, threads: int) -> str:
    runs = "one run at a time" if jobs == 1 else f"{jobs} runs at a time"
    return f"{runs}, {threads} thread{'' if threads == 1 else 's'} each"
