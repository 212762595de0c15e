"""`vitscale plan --memory`: what each shape of a study needs of a device, as counted and as `vitscale bench` saw it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitscale.study.bill import Terms
    from vitscale.study.job import Job

# Short: a terminal may have 80 columns.
HEADER = ("model", "px", "devices", "images", "ZeRO", "recompute", "GiB", "fits", "measured", "ratio")
SPARE = ("px", "devices", "images")
"""What a narrow terminal does without."""


def memory_rows(jobs: Iterable[Job], terms: Terms) -> Iterator[list[str]]:
    """For each shape a row for each way to cut it up: those that `terms` names, and that in which it was measured."""
    from vitscale.launch.rates import shape_of

    shapes: dict[str, Job] = {}
    for job in jobs:
        if job.kind == "pretrain":
            shapes.setdefault(shape_of(job), job)
    for job in shapes.values():
        yield from _rows(job, terms)


def _rows(job: Job, terms: Terms) -> Iterator[list[str]]:
    images = job.images_at_once(terms.devices, terms.micro_batch)
    planned = {
        (terms.devices, images, each["zero"], each["activation_checkpointing"], False): each["bytes"]
        for each in terms.memory_bytes(job) or []
    }
    peak = terms.rates.peak(job)
    if peak is not None:
        planned.setdefault(peak.cut_up, peak.planned(job))
    for cut_up, number in planned.items():
        devices, images, stage, recompute, offload = cut_up
        measured = peak.bytes if peak is not None and peak.cut_up == cut_up else None
        yield [
            job.label,
            str(job.run.data.resolution),
            str(devices),
            f"{images:,}",
            f"{stage}, offload" if offload else str(stage),
            "yes" if recompute else "no",
            _gib(number),
            # What of a shape was not measured weighs what it did where it was.
            "yes" if (measured or number * terms.ratio(job)) <= (terms.memory or 0.0) * 2**30 else "no",
            "-" if measured is None else _gib(measured),
            "-" if measured is None else f"{measured / number:.2f}",
        ]


def memory_document(job: Job, terms: Terms) -> dict[str, Any] | None:
    """What was measured of a job's shape, beside what is planned for the same, in bytes; None where nothing was."""
    peak = terms.rates.peak(job)
    if peak is None:
        return None
    planned = peak.planned(job)
    return {
        "device": terms.rates.device,
        "devices": peak.devices,
        "micro_batch": peak.micro_batch,
        "zero": peak.zero_stage,
        "activation_checkpointing": peak.activation_checkpointing,
        "offload": peak.offload,
        "bytes": peak.bytes,
        "planned": planned,
        "ratio": peak.bytes / planned,
    }


def _gib(number: float) -> str:
    return f"{number / 2**30:.3g}"
