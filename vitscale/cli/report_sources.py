"""What a report shows beside the results: loss curves and commands from run folders, the counting from the study."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vitscale.errors import VitscaleError

if TYPE_CHECKING:
    from vitscale.report.records import Sources, Trace

POINTS = 40  # of a loss curve: the page has one of every run


def sources(study: Path | None, name: str, runs: Path, ids: Iterable[str]) -> Sources:
    """As far as it is at hand: neither a study that is being edited nor a damaged run folder stops a report."""
    from vitscale.report.records import Sources

    traces = {id_: found for id_ in ids if (found := trace(runs / id_)) is not None}
    return Sources(str(study or f"studies/{name}.toml"), traces, {} if study is None else flops_outside(study))


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


def flops_outside(study: Path) -> dict[str, float]:
    """Of each model: training FLOPs of one image's taps outside the image, which the paper's Table 6 does not count."""
    from vitscale.models.counts import Head
    from vitscale.study.archs import arch_of
    from vitscale.study.cost import training_flops
    from vitscale.study.load import load

    try:
        loaded = load(study)
    except VitscaleError:
        return {}
    found = {}
    for run in {cell.run.model.name: cell.run for cell in loaded.cells}.values():
        arch = arch_of(run.model, loaded.sizes)
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
