"""One job of a study: what it is, what it costs, and what its worker is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from vitscale import models
from vitscale.config import Run, Task, Transfer
from vitscale.locations import locate
from vitscale.models.counts import Activations, Counting, Head
from vitscale.models.masked import masked_head
from vitscale.study import cost
from vitscale.study.datasets import Dataset
from vitscale.study.identity import Origin, trunk_id
from vitscale.study.schedule import total_steps
from vitscale.study.subsets import num_classes, training_examples

Role = Literal["cell", "tuning", "baseline", "trunk"]


@dataclass(frozen=True, slots=True)
class Branch:
    """Where a run leaves the trunk that it shares with others."""

    trunk: str
    step: int
    """Optimizer steps that the trunk has trained before: the first of the cool-down."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run folder: a pre-training run, or one transfer of it."""

    id: str
    role: Role
    run: Run
    arch: models.Arch
    dataset: Dataset
    test: Dataset | None = None
    checkpoint: str | None = None
    """Of a published checkpoint and its transfers: SHA-256 of the file."""
    task: Task | None = None
    probes: tuple[Task, ...] = ()
    """Of a pre-training: the tasks of `recipe.probe`."""
    parent: str | None = None
    """Of a transfer: the pre-training."""
    branch: Branch | None = None
    """Of a pre-training that can start from a trunk's checkpoint; its outcome is that of the same run alone."""
    branches: tuple[tuple[int, str], ...] = ()
    """Of a trunk: the steps at which runs leave it, and their ids."""
    prospects: tuple[tuple[int, str], ...] = ()
    """Of a trunk: the same of runs that would if [select] chose a trial that leaves it, with names for their ids."""
    varied: Mapping[str, Any]
    """The settings that vary in the study, with this job's values."""
    flops_tuning: int = 0
    """What choosing this job's settings cost beside itself."""
    at_edge: bool | None = None
    """The chosen learning rate is the smallest or largest of its grid; None: it was not chosen."""
    to_select: bool = False
    """Its settings wait for a choice: it has those of some trial, and no run's id."""
    share_left: float = 1.0
    """Of a job that waits for a choice: how much of it is to be trained, as far as run folders have it already."""
    tried: tuple[Mapping[str, Any], ...] = ()
    """That grid: settings by dotted key, and the validation `score` that each got; None of one that failed."""

    @property
    def kind(self) -> Literal["pretrain", "import", "transfer"]:
        if self.run.transfer is not None:
            return "transfer"
        return "pretrain" if self.checkpoint is None else "import"

    @property
    def label(self) -> str:
        """The model's name, with the options of it that vary in the study, and what it is trained for if not labels."""
        names = {key.removeprefix("model."): value for key, value in self.varied.items() if key.startswith("model.")}
        options = [f"{key}={value}" for key, value in names.items() if key not in ("name", "checkpoint")]
        if self.run.recipe.objective != "classification" and self.checkpoint is None:
            options.append(self.run.recipe.objective)
        return f"{self.run.model.name} ({', '.join(options)})" if options else self.run.model.name

    @property
    def origin(self) -> Origin:
        return Origin(run=self.run, arch=self.arch, dataset=self.dataset, test=self.test, checkpoint=self.checkpoint)

    @cached_property
    def trunk_id(self) -> str:
        """Of the trunk that it can have."""
        return trunk_id(self.origin)

    @property
    def examples(self) -> int:
        """Unique images of the pre-training subset."""
        return training_examples(self.dataset, self.run)

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of the pre-training; 0 of a published checkpoint."""
        return 0 if self.checkpoint else total_steps(self.run.recipe, self.examples)

    @property
    def saves(self) -> bool:
        """Whether it goes on from a checkpoint where it was stopped: a few-shot transfer begins again."""
        return self.run.transfer is None or self.run.transfer.protocol == "finetune"

    @property
    def last_step(self) -> int:
        """Of its checkpoints, which in a fine-tuning count the steps of all its trainings; 0: it saves none."""
        transfer = self.run.transfer
        if transfer is not None:
            return transfer.steps * trainings(transfer) if self.saves else 0
        return self.steps

    @property
    def prospects_within(self) -> list[tuple[int, str]]:
        """Of a trunk's prospects, those for which it has to save: others would go on from its end."""
        return [(step, name) for step, name in self.prospects if step < self.steps]

    @property
    def examples_seen(self) -> int:
        return self.steps * self.run.recipe.batch_size

    @property
    def examples_trained(self) -> int:
        """Those seen by this job itself, those of its trunk left out."""
        before = self.branch.step if self.branch else 0
        return (self.steps - before) * self.run.recipe.batch_size

    @cached_property
    def head(self) -> Head:
        """Behind the representation in pre-training; of a published checkpoint none, of its transfers the task's."""
        if self.checkpoint is not None:
            return Head(num_classes=self.task.num_classes if self.task else 0)
        if self.run.recipe.objective == "masked-patch":
            return masked_head(self.run.recipe, self.arch.ratio, self.run.data.resolution)
        pre_logits = self.run.model.pre_logits and self.arch.family != "resnet"
        return Head(
            num_classes=num_classes(self.dataset, self.run.data),
            pre_logits=self.arch.feature_width if pre_logits else None,
        )

    @cached_property
    def params(self) -> models.Params:
        return _params(self.arch, self.run.data.resolution, self.head)

    @cached_property
    def macs(self) -> int:
        """Of one image's forward pass in pre-training, every tap of a convolution counted."""
        return self.macs_by("dense")

    def macs_by(self, counting: Counting) -> int:
        return _macs(self.arch, self.run.data.resolution, self.head, counting)

    @property
    def pretrain_flops(self) -> int:
        """Training FLOPs of the pre-training alone: the x axis of its transfers, too. A baseline has none."""
        return self.flops_alone_by("dense")

    def flops_alone_by(self, counting: Counting) -> int:
        """Those of the pre-training, had it no trunk; neither a trunk nor a baseline has any."""
        examples = 0 if self.role in ("baseline", "trunk") else self.examples_seen
        return cost.training_flops(self.macs_by(counting), examples)

    @cached_property
    def flops(self) -> int:
        """What this job itself computes in training, and in a few-shot transfer in extracting features."""
        return self.flops_by("dense")

    def flops_by(self, counting: Counting) -> int:
        transfer, task = self.run.transfer, self.task
        if transfer is None or task is None:
            return cost.training_flops(self.macs_by(counting), self.examples_trained)
        if transfer.init == "pixels":
            return 0
        resolution = transfer.resolution or self.run.data.resolution
        macs = _macs(self.arch, resolution, Head(num_classes=task.num_classes), counting)
        if transfer.protocol == "fewshot":
            return cost.forward_flops(macs, task.train_examples + task.test_examples)
        return cost.training_flops(macs, transfer.steps * transfer.batch_size * trainings(transfer))

    @property
    def flops_per_step(self) -> int:
        """Of an optimizer step of this job; a few-shot transfer has none."""
        transfer = self.run.transfer
        if transfer is None:
            return cost.training_flops(self.macs, self.run.recipe.batch_size)
        return 0 if transfer.protocol == "fewshot" else self.flops // (transfer.steps * trainings(transfer))

    def images_at_once(self, devices: int, micro_batch: int | None) -> int:
        """Of a device; None: its part of the batch, which is the most there can be."""
        batch_size = self.run.recipe.batch_size
        return min(micro_batch or batch_size, -(-batch_size // devices))

    def memory_bytes(
        self,
        *,
        stage: int = 0,
        devices: int = 1,
        micro_batch: int | None = None,
        recompute: bool = False,
        offload: bool = False,
    ) -> int:
        """What pre-training keeps on each device: model states in fp32, and activations of a micro-batch (None: the
        device's part of the batch) in the recipe's precision, with those of a block that is computed again.

        Workspaces come on top: `vitscale bench` measures them.
        """
        if self.kind == "import":
            return 4 * self.params.total
        recipe = self.run.recipe
        images = self.images_at_once(devices, micro_batch)
        kept = _activations(self.arch, self.run.data.resolution, self.head, recompute)
        averaged = recipe.ema > 0
        states = cost.model_state_bytes(
            self.params.total, stage=stage, devices=devices, offload=offload, averaged=averaged
        )
        # A GPU keeps more of group norms in bf16 than all takes in fp32, as it computes them in that.
        counted = "fp32" if self.arch.family != "vit" else recipe.precision
        return states + kept.peak_bytes(images, counted)

    def document(self) -> dict[str, Any]:
        """What a worker is told: `run.json`, but for provenance and the machine's settings."""
        return {
            "schema": 1,
            "id": self.id,
            "kind": self.kind,
            "parent": self.parent,
            "config": asdict(self.run),
            "arch": models.to_dict(self.arch),
            "head": asdict(self.head),
            "dataset": asdict(self.dataset),
            "test": asdict(self.test) if self.test else None,
            "checkpoint": self.checkpoint,
            "task": asdict(self.task) if self.task else None,
            "probes": [asdict(task) for task in self.probes] if self.kind == "pretrain" else [],
            "steps": self.steps,
            "branch": asdict(self.branch) if self.branch else None,
            "branches": self.branches,
            "flops_per_example": cost.training_flops(self.macs, 1),
        }


def trainings(transfer: Transfer) -> int:
    """Of a fine-tuning: one for each rate where it has a choice, and its repetitions."""
    return (len(transfer.lr) if len(transfer.lr) > 1 else 0) + transfer.seeds


# Thousands of runs have a few architectures in common.
@lru_cache(maxsize=1024)
def _params(arch: models.Arch, resolution: int, head: Head) -> models.Params:
    return arch.params(resolution, head)


@lru_cache(maxsize=1024)
def _macs(arch: models.Arch, resolution: int, head: Head, counting: Counting) -> int:
    return arch.macs(resolution, head, counting).total


@lru_cache(maxsize=1024)
def _activations(arch: models.Arch, resolution: int, head: Head, recompute: bool) -> Activations:
    return arch.activations(resolution, head, recompute=recompute)


def files_of(study_base: Path, run: Run) -> dict[str, str]:
    """Where a run's shards and its published checkpoint lie, from any working directory, for the worker."""
    return {
        "shards": locate(run.data.shards, base=study_base).text if run.data.shards else "",
        "test": locate(run.data.test, base=study_base).text if run.data.test else "",
        "exclude": str((study_base / run.data.exclude).resolve()) if run.data.exclude else "",
        "checkpoint": str((study_base / run.model.checkpoint).resolve()) if run.model.checkpoint else "",
    }
