"""What a report shows beside the results: loss curves and commands from run folders, the counting from the study."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vitscale.errors import VitscaleError

if TYPE_CHECKING:
    import pandas as pd

    from vitscale.report.records import Sources, Trace
    from vitscale.study.load import Study

POINTS = 40  # of a loss curve: the page has one of every run


def sources(study: Path | None, name: str, runs: Path, ids: Iterable[str]) -> Sources:
    """As far as it is at hand: neither a study that is being edited nor a damaged run folder stops a report."""
    from vitscale.report.records import Sources

    ids = set(ids)
    traces = {id_: found for id_ in ids if (found := trace(runs / id_)) is not None}
    again = str(study or f"studies/{name}.toml")
    loaded = None if study is None else _loaded(study)
    if loaded is None:
        return Sources(again, traces)
    return Sources(again, traces, flops_outside(loaded), planned(loaded, runs, ids))


def trace(folder: Path) -> Trace | None:
    from vitscale.launch import folders
    from vitscale.report.records import Trace
    from vitscale.study import describe

    try:
        command = describe.command(folders.document(folder))
    except (VitscaleError, KeyError):
        return None
    return Trace(command, tuple(_thinned(losses(folder))))


def losses(folder: Path) -> list[tuple[int, float]]:
    """Training loss by step; of a step that was computed twice, the later."""
    try:
        lines = (folder / "events.jsonl").read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = {}
    for line in lines:
        try:
            event = json.loads(line) if '"event": "step"' in line else {}
            found[int(event["step"])] = float(event["loss"])
        except (ValueError, KeyError, TypeError):
            continue
    return sorted(found.items())


def _loaded(study: Path) -> Study | None:
    from vitscale.study.load import load

    try:
        return load(study)
    except VitscaleError:
        return None


def planned(study: Study, runs: Path, done: Collection[str]) -> pd.DataFrame:
    """The cells that have no result yet, those whose settings wait for a selection left out."""
    import pandas as pd

    from vitscale.analysis.curves import PLANNED
    from vitscale.launch.sweep import current_plan

    try:
        jobs = current_plan(study, runs).jobs
    except VitscaleError:  # its data are not at hand
        jobs = ()
    cells = [job for job in jobs if job.kind == "pretrain" and job.role == "cell" and job.id not in done]
    return pd.DataFrame([(job.arch.family, job.examples, float(job.pretrain_flops)) for job in cells], columns=PLANNED)


def flops_outside(study: Study) -> dict[str, float]:
    """Of each model: training FLOPs of one image's taps outside the image, which the paper's Table 6 does not count."""
    from vitscale.models.counts import Head
    from vitscale.study.archs import arch_of
    from vitscale.study.cost import training_flops

    found = {}
    for run in {cell.run.model.name: cell.run for cell in study.cells}.values():
        arch = arch_of(run.model, study.sizes)
        if arch is not None:
            dense, valid = (
                arch.macs(run.data.resolution, Head(num_classes=1), way).total for way in ("dense", "valid")
            )
            found[run.model.name] = float(training_flops(dense - valid, 1))
    return found


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Evenly, with the first and the last."""
    if len(points) <= POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (POINTS - 1))] for i in range(POINTS)]
