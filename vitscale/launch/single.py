"""One run, outside any study, with a study's run folder, worker and result part."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from vitscale import lease
from vitscale.errors import BEREFT, DONE, HELD, INTERRUPTED, MISSING, RUN_FAILED, VitscaleError
from vitscale.failures import Failure
from vitscale.files import wait_for_shared, write_whole
from vitscale.launch import folders
from vitscale.launch.collect import collect
from vitscale.launch.local import Worker, cause, last_words, trouble, wait_any
from vitscale.launch.machine import Machine, Places
from vitscale.launch.placement import Place
from vitscale.launch.progress import passed_over, progress
from vitscale.launch.sweep import Say, not_saved
from vitscale.processes import STOP_SIGNALS
from vitscale.study.job import Job

VISIBLE = 120.0
"""Seconds for the first process to plan the run, and for its folder to be seen on other hosts."""

SPEAKS = 5.0
"""Seconds for the process that knows why its run has ended to say so: torchrun ends all of them with the first."""


def run_single(job: Job, *, places: Places, machine: Machine, study: str, say: Say, place: Place | None = None) -> bool:
    """Runs a job to its end and records it; True where a signal, to whichever of its processes, stopped it before.

    Raises:
        VitscaleError: somebody else holds the run, or the disk took nothing (exit 5); its worker left no word (exit 4).
    """
    if folders.result(places.runs / job.id) is None:
        _take_over(places.runs / job.id, say)
        folder = folders.prepare(job, places.runs, base=Path(), machine=machine.told())
        environment = place.environment if place else {}
        worker = Worker(
            [folder], machine.threads, machine.devices_for(job), machine.hosts_for(job), environment=environment
        )
        _watch(worker, folder, job, say)
        worker.record_death(place.who if place else "")
        code = worker.process.returncode
        if code == HELD:
            raise _held(folder)
        if folders.result(folder) is None:
            if code == MISSING:
                problem = trouble(folder)
                raise VitscaleError.of([problem], exit_code=code) if problem else not_saved(folder)
            if worker.asked_to_stop or code == INTERRUPTED:
                return True
            raise VitscaleError(cause(code, folder), hint=last_words(folder), exit_code=RUN_FAILED)
    collect(job, places.runs, places.results, study)
    return False


def _watch(worker: Worker, folder: Path, job: Job, say: Say) -> None:
    """Says how far the run is, and of one that ends before it was first said, what must not go unsaid."""
    said: list[str] = []

    def report() -> None:
        said.append(progress(folder, job) or "starting")
        say(said[-1])

    wait(worker, report)
    damaged = passed_over(folder)
    if damaged and not any(damaged in line for line in said):
        say(damaged)


def time_steps(job: Job, runs: Path, machine: Machine, base: Path) -> dict[str, Any]:
    """The outcome of a worker that times a pre-training's steps instead of training it.

    Raises:
        VitscaleError: it was stopped (exit 130), or it left no word (exit 4).
    """
    folder = folders.prepare(job, runs, base=base, machine=machine.told())
    told = {**folders.document(folder), "kind": "bench"}
    write_whole(folder / "run.json", json.dumps(told).encode())
    worker = Worker([folder], machine.threads, machine.devices)
    wait(worker)
    worker.record_death()
    outcome = folders.result(folder)
    if outcome is None:
        stopped = worker.asked_to_stop
        raise VitscaleError(
            "stopped before all shapes were timed" if stopped else "the worker left no word",
            hint="start the same command again: what was timed is kept",
            exit_code=INTERRUPTED if stopped else RUN_FAILED,
        )
    return outcome


def take_part(folder: Path, threads: int, place: Place) -> int:
    """Joins a run that the process of rank 0 has planned and begins; returns the exit code.

    Raises:
        VitscaleError: its folder does not appear on this host (exit 5); this rank was killed (exit 4).
    """
    wait_for_shared(folder / "run.json", VISIBLE)
    if (folders.result(folder) or {}).get("status") == "done":
        return DONE
    worker = Worker([folder], threads, environment=place.environment)
    wait(worker)
    code = worker.process.returncode
    if code < 0 and not worker.asked_to_stop:
        reason = f"{place.who}{cause(code, folder)}"
        hint = "the same command goes on from the last checkpoint"
        folders.record_failure(folder, Failure.KILLED, reason, hint, RUN_FAILED)
        raise VitscaleError(reason, hint=hint, exit_code=RUN_FAILED)
    if code == BEREFT:
        time.sleep(SPEAKS)
    return RUN_FAILED if code < 0 or code == BEREFT else code


def wait_for_holder(folder: Path, say: Say) -> None:
    """Until it is certain that nobody holds the run any more.

    Raises:
        VitscaleError: whoever holds it moves (exit 75).
    """
    watch, seen = lease.Watch(), lease.holder(folder)
    if seen is not None:
        limit = lease.STILL * seen.interval
        who = f"process {seen.pid} on {seen.host}" if seen.pid else seen.host
        say(f"run {folder.name} is held by {who}: looking for up to {limit:g} s whether that still moves")
    while watch.is_held(folder):
        if lease.holder(folder) not in (seen, None):
            raise lease.held_by(folder.name, lease.holder(folder))
        time.sleep(0.2)


def _take_over(folder: Path, say: Say) -> None:
    """As `wait_for_holder`, of a command: what is held is missing (exit 5)."""
    try:
        wait_for_holder(folder, say)
    except VitscaleError:
        raise _held(folder) from None


def _held(folder: Path) -> VitscaleError:
    problem = lease.held_by(folder.name, lease.holder(folder)).problems[0]
    return VitscaleError(problem.message, hint=problem.hint, exit_code=MISSING)


def wait(worker: Worker, report: Callable[[], None] = lambda: None) -> None:
    """Until it has ended; signals are passed on. It reports every ten seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        # A scheduler may say it twice; who is impatient, by Ctrl-C.
        worker.stop(now=worker.asked_to_stop and number == signal.SIGINT)

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        while not wait_any([worker], 10.0):
            report()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
