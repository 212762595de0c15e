"""How long jobs will take here: by the rate of runs so far, else as `vitscale bench` has timed it, else by a guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from vitscale.launch import eventlog
from vitscale.launch.rates import Rates, rates_of, shape_of
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
    seen, done = _so_far(jobs, runs)
    timed = rates_of(jobs, None, threads or 1)
    scale = devices * (threads / timed.threads if threads and timed.threads else 1.0)
    flops = ((job, job.flops * (1 - done.get(job.id, 0.0))) for job in left)
    computing = sum(number / _rate(job, seen, timed, scale) for job, number in flops)
    to_begin = [job for job in left if job.id not in done]
    groups = {job.id if job.kind != "transfer" else job.parent or job.run.model.name for job in to_begin}
    overhead = len(groups) * SECONDS_PER_PROCESS + len(to_begin) * SECONDS_PER_JOB
    how = "a guess before anything has run here"
    if seen or timed.measured:
        how = "at the rate of its runs so far" if seen else "as vitscale bench has timed it"
    return Expected((computing + overhead) / processes, how, measured=bool(seen or timed.measured))


def _so_far(jobs: Sequence[Job], runs: Path) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Of runs that have logged a step: FLOP/s by shape, and by id the share of its own steps that each has done."""
    rates: dict[str, list[float]] = {}
    done = {}
    for job in jobs:
        lines = eventlog.newest_steps(runs / job.id, LINES) if job.kind == "pretrain" else []
        if lines:
            event = lines[0]
            rates.setdefault(shape_of(job), []).extend(line["images_per_second"] * 6 * job.macs for line in lines)
            first = job.branch.step if job.branch else 0
            if event["step"]:
                done[job.id] = max(event["step"] - first, 0) / max(event["steps"] - first, 1)
    return rates, done


def _rate(job: Job, seen: Mapping[str, Sequence[float]], timed: Rates, scale: float) -> float:
    """FLOP/s of a run: of its own shape where that is known, of others where it is not."""
    shape = shape_of(job)
    if shape in seen:
        return median(seen[shape])
    if shape in timed.measured or not seen:
        return timed.measured.get(shape, timed.guess) * scale
    return median(rate for rates in seen.values() for rate in rates)
