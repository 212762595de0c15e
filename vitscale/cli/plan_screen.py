"""What `vitscale plan` shows of a study: a row for each run, and what all of it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vitscale.cli.plan_memory import memory_document
from vitscale.study.cost import checkpoint_bytes
from vitscale.study.describe import with_settings
from vitscale.wording import count

if TYPE_CHECKING:
    from vitscale.launch.rates import Rates
    from vitscale.models.counts import Counting
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
TRANSFER_HEADER = ("run", "role", "task", "protocol", "of", "model", "exaFLOPs", "hours", "state")
KEPT = 2  # checkpoints of a run, unless --keep-last says otherwise


def is_left(state: str | None) -> bool:
    """Whether a sweep would do something about it; None, and what is waited for: of a job that is to be selected."""
    return state in (None, "selecting", "waiting for [select]", "to do", "stopped", "running")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a study is priced by."""

    counting: Counting
    rates: Rates
    devices: int = 1
    """Of a run."""
    micro_batch: int | None = None
    memory: float | None = None
    """GiB of a device."""
    price: float | None = None
    """Of a device-hour."""

    begun: Mapping[str, float] = field(default_factory=dict)
    """By the ids of runs that have begun, the share of each that is left."""

    def hours(self, jobs: Sequence[Job]) -> float:
        """Device-hours that are left of them."""
        return sum(self.rates.seconds(job) * self.begun.get(job.id, 1.0) for job in jobs) / 3600

    def memory_bytes(self, job: Job) -> list[dict[str, Any]] | None:
        """Bytes on a device by ZeRO stage, with activation checkpointing and without; None of what trains nothing."""
        if job.kind != "pretrain":
            return None
        told: dict[str, Any] = {"devices": self.devices, "micro_batch": self.micro_batch}
        return [
            {
                "zero": stage,
                "activation_checkpointing": recompute,
                "bytes": job.memory_bytes(stage=stage, recompute=recompute, **told),
            }
            for stage in self._stages()
            for recompute in (False, True)
        ]

    def least_gib(self, job: Job) -> float:
        """GiB that a device needs at the least: image by image, shared and computed again.

        Where bench has measured the shape, counted bytes weigh what they did there, and its peak is enough.
        """
        stages = self._stages()
        told: dict[str, Any] = {"devices": self.devices, "micro_batch": self.micro_batch or 1, "recompute": True}
        counted = min(job.memory_bytes(stage=stage, **told) for stage in stages)
        peak = self.rates.peak(job)
        least = counted if peak is None else min(peak.bytes, counted * peak.bytes / peak.planned(job))
        return least / 2**30

    def _stages(self) -> range:
        return range(4 if self.devices > 1 else 1)

    def document(self, job: Job, state: str) -> dict[str, Any]:
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
            "lr": job.run.recipe.lr,
            "params": job.params.total,
            "macs": job.macs_by(self.counting),
            "flops": job.flops_by(self.counting),
            "flops_alone": job.flops_alone_by(self.counting) if job.kind == "pretrain" else None,
            "share_left": self.begun.get(job.id, 1.0) if is_left(state) else 0.0,
            "device_seconds": self.rates.seconds(job),
            "memory_bytes": self.memory_bytes(job),
            "memory_measured": memory_document(job, self),
            "parent": job.parent,
            "trunk": job.branch.trunk if job.branch else None,
            "transfer": None if transfer is None else f"{transfer.protocol} {transfer.task}",
            "init": None if transfer is None else transfer.init,
            "provisional": job.dataset.fingerprint is None,
            "state": state,
        }

    def row(self, job: Job, state: str) -> list[str]:
        """A pre-training, or a published checkpoint, of which nothing is trained."""
        published, selecting = job.kind == "import", state == "selecting"
        if published:
            memory = f"{job.memory_bytes() / 2**30:.3g}"
        else:
            found = [each["bytes"] for each in self.memory_bytes(job) or []]
            memory = f"{found[0] / 2**30:.3g} to {min(found) / 2**30:.3g}"
        trained = [
            f"{job.examples:,}",
            f"{job.examples_seen:,}",
            str(job.run.seed),
            "to select" if selecting else f"{job.run.recipe.lr:g}",
        ]
        alone = "-" if job.role == "trunk" else f"{job.flops_alone_by(self.counting) / 1e18:.4g}"
        spent = [alone, f"{job.flops_by(self.counting) / 1e18:.4g}", f"{self.rates.seconds(job) / 3600:.3g}"]
        return [
            "-" if selecting else job.id,
            "published" if published else job.role,
            with_settings(job.label, job),
            *(["-"] * 4 if published else trained),
            f"{job.params.total:,}",
            f"{job.macs_by(self.counting) / 1e6:,.1f}",
            *(["-"] * 3 if published else spent),
            memory,
            state,
        ]

    def transfer_row(self, job: Job, state: str) -> list[str]:
        """A transfer of a pre-training run, or a baseline."""
        transfer, selecting = job.run.transfer, state == "selecting"
        assert transfer is not None
        return [
            "-" if selecting else job.id,
            job.role,
            transfer.task,
            transfer.protocol,
            (transfer.init if job.parent is None else job.parent) if not selecting else "to select",
            "pixels" if transfer.init == "pixels" else with_settings(job.label, job),
            f"{job.flops_by(self.counting) / 1e18:.4g}",
            f"{self.rates.seconds(job) / 3600:.3g}",
            state,
        ]


def bill(jobs: Sequence[Job], states: Mapping[str, str], terms: Terms) -> Iterator[str]:
    """Device-hours, money and disk of what is left; what cannot fit."""
    left = [job for job in jobs if is_left(states.get(job.id))]
    hours = terms.hours(left)
    money = "" if terms.price is None else f", {hours * terms.price:,.2f} at {terms.price:g} a device-hour"
    shown = f"{hours:,.0f}" if 100 <= hours < 1e9 else f"{hours:.3g}"
    yield f"device-hours left: {shown}{money} ({terms.rates.how}); start-up, data and evaluation come on top"
    training = [job for job in left if job.kind == "pretrain"]
    if training:
        during, after = (sum(_disk(job, end) for job in training) / 1e9 for end in (False, True))
        yield f"checkpoints of these: at most {during:,.3g} GB, {after:,.3g} GB after vitscale clean"
    limit = terms.memory
    for job in training if limit is not None else ():
        least = terms.least_gib(job)
        if limit is not None and least > limit:
            how = [f"ZeRO over {terms.devices} devices"] if terms.devices > 1 else []
            how += ["activation checkpointing", f"{terms.micro_batch or 1} images at once"]
            how += ["by what bench has measured"] if terms.rates.peak(job) is not None else []
            yield f"does not fit: {job.id} {job.label}: {least:,.3g} GiB a device at the least ({', '.join(how)})"


def _disk(job: Job, cleaned: bool) -> int:
    """Bytes of a pre-training's checkpoints, at the end or at most."""
    recipe = job.run.recipe
    one = checkpoint_bytes(job.params.total, averaged=recipe.ema > 0)
    if cleaned:
        return one
    return one * (KEPT + (recipe.keep == "best") + len({step for step, _ in job.branches}))


def totals_document(jobs: Sequence[Job], states: Mapping[str, str], terms: Terms) -> dict[str, Any]:
    """What `totals` and `bill` say, in numbers for `--json`."""
    left = [job for job in jobs if is_left(states.get(job.id))]
    pretraining = [job for job in jobs if job.kind == "pretrain"]
    hours = terms.hours(left)
    return {
        "flops": sum(job.flops_by(terms.counting) for job in jobs),
        "flops_left": sum(job.flops_by(terms.counting) * terms.begun.get(job.id, 1.0) for job in left),
        "pretrain_flops_alone": sum(job.flops_alone_by(terms.counting) for job in pretraining),
        "pretrain_flops_shared": sum(job.flops_by(terms.counting) for job in pretraining),
        "pretrain_flops_saved": sum(
            job.flops_alone_by(terms.counting) - job.flops_by(terms.counting) for job in pretraining
        ),
        "device_hours_left": hours,
        "price_left": None if terms.price is None else hours * terms.price,
        "checkpoint_bytes": sum(_disk(job, cleaned=False) for job in left if job.kind == "pretrain"),
    }


def totals(
    jobs: Sequence[Job],
    states: Mapping[str, str],
    counting: Counting = "dense",
    *,
    begun: Mapping[str, float] | None = None,
) -> list[str]:
    """Counts and FLOPs of all jobs and of what is still to do; `begun` as in `Terms`."""
    left = [job for job in jobs if is_left(states.get(job.id))]
    flops_left = sum(job.flops_by(counting) * (begun or {}).get(job.id, 1.0) for job in left)
    pretraining = sum(job.kind == "pretrain" and job.role != "trunk" for job in jobs)
    trunks = sum(job.role == "trunk" for job in jobs)
    published = sum(job.kind == "import" for job in jobs)
    baselines = sum(job.role == "baseline" for job in jobs)
    transfers = len(jobs) - pretraining - trunks - published - baselines
    checkpoints = f"{count(published, 'published checkpoint')}, " if published else ""
    return [
        f"{pretraining} pre-training runs, {checkpoints}{transfers} transfers, {baselines} baselines; "
        f"{sum(job.flops_by(counting) for job in jobs):.2e} FLOPs",
        *_saved(jobs, trunks, counting),
        f"left to run: {count(len(left), 'job')}, {flops_left:.2e} FLOPs",
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


def _saved(jobs: Sequence[Job], trunks: int, counting: Counting) -> list[str]:
    """What sharing trunks saves of the pre-training."""
    pretraining = [job for job in jobs if job.kind == "pretrain"]
    alone = sum(job.flops_alone_by(counting) for job in pretraining)
    together = sum(job.flops_by(counting) for job in pretraining)
    if not pretraining:
        return []
    if not trunks and together == alone:
        return [f"no shared trunk: pre-training takes {alone:.2e} FLOPs, each run alone (0% saved)"]
    return [
        f"{count(trunks, 'shared trunk')}: pre-training takes {together:.2e} FLOPs instead of "
        f"{alone:.2e} ({1 - together / alone:.0%} saved)"
    ]


def unequal(jobs: Sequence[Job], counting: Counting = "dense") -> list[str]:
    """Says where compared families do not cost the same an image within 10 %."""
    cost = {(job.label, job.macs_by(counting)): None for job in jobs}
    families = {job.arch.family for job in jobs}
    if len(families) < 2 or max(macs for _, macs in cost) <= 1.1 * min(macs for _, macs in cost):
        return []
    shown = ", ".join(f"{name} {macs / 1e6:,.1f}" for name, macs in cost)
    return [f"note: the models differ by more than 10 % in multiply-adds an image (millions: {shown})"]
