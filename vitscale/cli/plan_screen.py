"""What `vitscale plan` shows of a study: a row for each run, and what all of it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitscale.cli.plan_memory import memory_document
from vitscale.study.bill import Flops, disk_bytes, flops_of, is_left, left_of, passing_bytes
from vitscale.study.describe import variant, with_settings
from vitscale.wording import count

if TYPE_CHECKING:
    from vitscale.models.counts import Counting
    from vitscale.study.bill import Terms
    from vitscale.study.job import Job

HEADER = (
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
    "hours",
    "GiB/device",
    "state",
)
SPARE = (
    "MMACs/image",
    "exaFLOPs alone",
    "GiB/device",
    "params",
    "exaFLOPs",
    "hours",
    "seen",
    "role",
    "lr",
    "seed",
    "examples",
    "model",
    "of",
    "variant",
)
"""Of both tables, what a narrow terminal does without."""
TRANSFER_HEADER = ("run", "role", "task", "protocol", "variant", "of", "model", "exaFLOPs", "hours", "state")


def document(job: Job, state: str, terms: Terms) -> dict[str, Any]:
    """A job for `--json`."""
    transfer = job.run.transfer
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
        "lr": None if job.to_select else job.run.recipe.lr,
        "params": job.params.total,
        "macs": job.macs_by(terms.counting),
        "flops": job.flops_by(terms.counting),
        "flops_alone": job.flops_alone_by(terms.counting) if job.kind == "pretrain" else None,
        "share_left": terms.begun.get(job.id, 1.0) if is_left(state) else 0.0,
        "device_seconds": terms.rates.seconds(job),
        "memory_bytes": terms.memory_bytes(job),
        "memory_measured": memory_document(job, terms),
        "parent": None if job.to_select else job.parent,
        "trunk": job.branch.trunk if job.branch else None,
        "transfer": None if transfer is None else f"{transfer.protocol} {transfer.task}",
        "init": None if transfer is None else transfer.init,
        "variant": variant(job) or None,
        "provisional": job.dataset.fingerprint is None,
        "state": state,
    }


def row(job: Job, state: str, terms: Terms) -> list[str]:
    """A pre-training, or a published checkpoint, of which nothing is trained."""
    published, selecting = job.kind == "import", job.to_select
    if published:
        memory = f"{job.memory_bytes() / 2**30:.3g}"
    else:
        found = [each["bytes"] for each in terms.memory_bytes(job) or []]
        memory = f"{found[0] / 2**30:.3g} to {min(found) / 2**30:.3g}"
    trained = [
        f"{job.examples:,}",
        f"{job.examples_seen:,}",
        str(job.run.seed),
        "to select" if selecting else f"{job.run.recipe.lr:g}",
    ]
    alone = "-" if job.role == "trunk" else f"{job.flops_alone_by(terms.counting) / 1e18:.4g}"
    spent = [alone, f"{job.flops_by(terms.counting) / 1e18:.4g}", f"{terms.rates.seconds(job) / 3600:.3g}"]
    return [
        "-" if selecting else job.id,
        "published" if published else job.role,
        with_settings(job.label, job),
        *(["-"] * 4 if published else trained),
        f"{job.params.total:,}",
        f"{job.macs_by(terms.counting) / 1e6:,.1f}",
        *(["-"] * 3 if published else spent),
        memory,
        state,
    ]


def transfer_row(job: Job, state: str, terms: Terms) -> list[str]:
    """A transfer of a pre-training run, or a baseline."""
    transfer, selecting = job.run.transfer, job.to_select
    assert transfer is not None
    return [
        "-" if selecting else job.id,
        job.role,
        transfer.task,
        transfer.protocol,
        variant(job),
        (transfer.init if job.parent is None else job.parent) if not selecting else "to select",
        "pixels" if transfer.init == "pixels" else with_settings(job.label, job),
        f"{job.flops_by(terms.counting) / 1e18:.4g}",
        f"{terms.rates.seconds(job) / 3600:.3g}",
        state,
    ]


def bill(jobs: Sequence[Job], states: Mapping[str, str], terms: Terms) -> Iterator[str]:
    """Device-hours, money and disk of what is left; what cannot fit."""
    left = left_of(jobs, states)
    hours = terms.hours(left)
    price = terms.money(hours)
    money = "" if price is None else f", {price:,.2f} at {terms.price:g} a device-hour"
    shown = f"{hours:,.0f}" if 100 <= hours < 1e9 else f"{hours:.3g}"
    yield f"device-hours left: {shown}{money} ({terms.rates.how}); start-up, data and evaluation come on top"
    training = [job for job in left if job.kind == "pretrain"]
    if training:
        during, after = (sum(disk_bytes(job, cleaned=end) for job in training) / 1e9 for end in (False, True))
        yield f"checkpoints of these: at most {during:,.3g} GB, {after:,.3g} GB after vitscale clean"
    if passing := passing_bytes(left) / 1e9:
        yield f"a fine-tuning keeps up to {passing:,.3g} GB of its own until it is done"
    limit = terms.memory
    for job in training if limit is not None else ():
        least = terms.least_gib(job)
        if limit is not None and least > limit:
            how = [f"ZeRO over {terms.devices} devices"] if terms.devices > 1 else []
            how += ["activation checkpointing", f"{terms.micro_batch or 1} images at once"]
            how += ["by what bench has measured"] if terms.rates.peak(job) is not None else []
            yield f"does not fit: {job.id} {job.label}: {least:,.3g} GiB a device at the least ({', '.join(how)})"


def totals(
    jobs: Sequence[Job],
    states: Mapping[str, str],
    counting: Counting = "dense",
    *,
    begun: Mapping[str, float] | None = None,
) -> list[str]:
    """Counts and FLOPs of all jobs and of what is still to do; `begun` as in `Terms`."""
    flops = flops_of(jobs, states, counting, begun)
    pretraining = sum(job.kind == "pretrain" and job.role != "trunk" for job in jobs)
    every_trunk = [job for job in jobs if job.role == "trunk"]
    trunks = sum(job.branch is None for job in every_trunk)  # others go on where one of these ends
    published = sum(job.kind == "import" for job in jobs)
    baselines = sum(job.role == "baseline" for job in jobs)
    transfers = len(jobs) - pretraining - len(every_trunk) - published - baselines
    checkpoints = f"{count(published, 'published checkpoint')}, " if published else ""
    left = left_of(jobs, states)
    most = "at most " if any(job.to_select for job in left) else ""  # as with the dearest trial of [select]
    return [
        f"{count(pretraining, 'pre-training run')}, {checkpoints}{count(transfers, 'transfer')}, "
        f"{count(baselines, 'baseline')}; {flops.total:.2e} FLOPs",
        *(_saved(flops, trunks) if pretraining or trunks else []),
        f"left to run: {count(len(left), 'job')}, {most}{flops.left:.2e} FLOPs",
        *_held_back(jobs, states),
    ]


def _held_back(jobs: Sequence[Job], states: Mapping[str, str]) -> list[str]:
    """What is not left to run, and is not done either."""
    from vitscale.launch.progress import stuck_words
    from vitscale.launch.standing import stuck

    waiting = stuck(states, jobs)
    if not waiting:
        return []
    counts = {name: sum(state == name for state in states.values()) for name in ("failed", "refused")}
    told = [f"{number} {name}" for name, number in counts.items() if number]
    again = "; vitscale sweep STUDY --retry-failed tries again" if counts["failed"] else ""
    return [", ".join([*told, stuck_words(waiting)]) + again]


def _saved(flops: Flops, trunks: int) -> list[str]:
    """What sharing trunks saves of the pre-training."""
    if not trunks and flops.shared == flops.alone:
        return [f"no shared trunk: pre-training takes {flops.alone:.2e} FLOPs, each run alone (0% saved)"]
    return [
        f"{count(trunks, 'shared trunk')}: pre-training takes {flops.shared:.2e} FLOPs instead of "
        f"{flops.alone:.2e} ({1 - flops.shared / flops.alone:.0%} saved)"
    ]


def unequal(jobs: Sequence[Job], counting: Counting = "dense") -> list[str]:
    """Says where compared families do not cost the same an image within 10 %."""
    cost = {(job.label, job.macs_by(counting)): None for job in jobs}
    families = {job.arch.family for job in jobs}
    if len(families) < 2 or max(macs for _, macs in cost) <= 1.1 * min(macs for _, macs in cost):
        return []
    shown = ", ".join(f"{name} {macs / 1e6:,.1f}" for name, macs in cost)
    return [f"note: the models differ by more than 10 % in multiply-adds an image (millions: {shown})"]
