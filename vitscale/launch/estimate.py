"""How long jobs will take here: by the rate of runs so far, else as `vitscale bench` has timed it, else by a guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from vitscale.launch import eventlog, folders
from vitscale.launch.rates import Rates, rates_of, shape_of
from vitscale.launch.trunks import shares_left
from vitscale.study.job import Job

SECONDS_PER_PROCESS = 8.0
"""Starting Python, torch and DeepSpeed on a server core."""
SECONDS_PER_JOB = 4.0
"""What a run spends beside its steps there: its engine, its data, its record."""
LINES = 7
"""Of a run that its rate is taken from, 5 s each: any one of them may have had a checkpoint, or a neighbour, in it."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Wall-clock seconds, and what they are judged by."""

    seconds: float
    how: str
    measured: bool


def expected(
    jobs: Sequence[Job],
    left: Sequence[Job],
    runs: Path,
    *,
    processes: int,
    devices: int = 1,
    threads: int | None = None,
) -> Expected:
    """What those `left` of the jobs take here, so many `processes` at once.

    `threads` of a run where that is known: what was timed on another number of them is scaled.
    """
    seen = _rates_so_far(jobs, runs)
    running = _shares_of_running(left, runs)
    share = {**shares_left(left, runs), **running}
    timed = rates_of(jobs, None, threads or 1)
    scale = devices * (threads / timed.threads if threads and timed.threads else 1.0)
    flops = ((job, job.flops * share.get(job.id, 1.0)) for job in left)
    computing = sum(number / _rate(job, seen, timed, scale) for job, number in flops)
    to_begin = [job for job in left if job.id not in running]
    groups = {job.id if job.kind != "transfer" else job.parent or job.run.model.name for job in to_begin}
    overhead = len(groups) * SECONDS_PER_PROCESS + len(to_begin) * SECONDS_PER_JOB
    how = "a guess before anything has run here"
    if seen or timed.measured:
        how = "at the rate of its runs so far" if seen else "as vitscale bench has timed it"
    return Expected((computing + overhead) / processes, how, measured=bool(seen or timed.measured))


def _rates_so_far(jobs: Sequence[Job], runs: Path) -> dict[str, list[float]]:
    """FLOP/s by shape, of runs that have logged more than their first step, which has start-up in it."""
    rates: dict[str, list[float]] = {}
    for job in jobs:
        found = eventlog.newest_steps(runs / job.id, LINES) if job.kind == "pretrain" else []
        lines = [line for line in found if line.get("seconds_left", 0.0) is not None]
        if lines:
            rates.setdefault(shape_of(job), []).extend(line["images_per_second"] * 6 * job.macs for line in lines)
    return rates


def _shares_of_running(left: Sequence[Job], runs: Path) -> dict[str, float]:
    """By id, of pre-trainings that somebody is at work on, the share of their own steps that their last line leaves.

    One that has ended will go on from its checkpoint, as `shares_left` counts, and has to start first.
    """
    found = {}
    for job in left:
        lines = eventlog.newest_steps(runs / job.id, 1) if job.kind == "pretrain" else []
        if lines and lines[0]["step"] and folders.is_held(runs / job.id):
            step, steps = lines[0]["step"], lines[0]["steps"]
            first = job.branch.step if job.branch else 0
            found[job.id] = 1 - max(step - first, 0) / max(steps - first, 1)
    return found


def _rate(job: Job, seen: Mapping[str, Sequence[float]], timed: Rates, scale: float) -> float:
    """FLOP/s of a run: of its own shape where that is known, of others where it is not."""
    shape = shape_of(job)
    if shape in seen:
        return median(seen[shape])
    if shape in timed.measured or not seen:
        return timed.measured.get(shape, timed.guess) * scale
    return median(rate for rates in seen.values() for rate in rates)
