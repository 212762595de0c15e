"""How long jobs will take here: by the rate of runs that are done, else by a guess."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitscale.launch import folders
from vitscale.study.job import Job

FLOPS_PER_CORE = 2e10
"""A guess for fp32 training of small models on one server core, until something has been measured."""
SECONDS_PER_PROCESS = 8.0
"""Starting Python, torch and DeepSpeed on a server core."""
SECONDS_PER_JOB = 4.0
"""What a run spends beside its steps there: its engine, its data, its record."""


def expected_seconds(
    jobs: Sequence[Job], left: Sequence[Job], runs: Path, *, processes: int, threads: int
) -> tuple[float, bool]:
    """(wall-clock seconds that those `left` of the jobs take here, whether the rate was measured by earlier runs)."""
    measured, done = [], {}
    for job in jobs:
        event = folders.last_event(runs / job.id) if job.kind == "pretrain" else None
        if event is not None:
            measured.append(event["images_per_second"] * 6 * job.macs)
            first = job.branch.step if job.branch else 0
            done[job.id] = max(event["step"] - first, 0) / max(event["steps"] - first, 1)
    rate = sum(measured) / len(measured) if measured else FLOPS_PER_CORE * threads
    groups = {job.id if job.kind != "transfer" else job.parent or job.run.model.name for job in left}
    overhead = len(groups) * SECONDS_PER_PROCESS + len(left) * SECONDS_PER_JOB
    flops = sum(job.flops * (1 - done.get(job.id, 0.0)) for job in left)
    return (flops / rate + overhead) / processes, bool(measured)
