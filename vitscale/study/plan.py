"""The graph of jobs behind a study: tuning and pre-training runs, their transfers, the baselines; what each costs.

Pure but for the descriptions of data sets: the same study and the same scores give the same jobs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vitscale import models
from vitscale.config import Model, Run, Task, Transfer
from vitscale.locations import locate
from vitscale.study import fields, select
from vitscale.study.archs import arch_of
from vitscale.study.check import dataset_of
from vitscale.study.datasets import Dataset, describe, load_task
from vitscale.study.identity import Origin, origin_id, transfer_id
from vitscale.study.job import Job, Role
from vitscale.study.load import Study
from vitscale.study.published import UNKNOWN_DATA, content
from vitscale.study.sharing import shared

Scores = Mapping[str, float | None]
"""Run id -> upstream validation score of a finished run (accuracy, of labels or of patches, or minus the loss of
pixels); None for a run that failed."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    jobs: tuple[Job, ...]
    """All that can be named now, parents before their transfers, each id once."""
    waiting: tuple[Job, ...]
    """Jobs whose settings are not chosen yet; their ids are those of the default settings."""


def plan(study: Study, scores: Scores) -> Plan:
    """The study's jobs, as far as the finished runs' scores decide what is selected."""
    facts = _Facts(study)
    jobs: dict[str, Job] = {}
    waiting: dict[select.Group, dict[str, Job]] = {}
    waiting_transfers: dict[tuple[select.Group, str], Job] = {}
    choices, tuning, tuning_flops = _tune(study, facts, scores)
    tuned_at = select.groups(study.select, study.cells)
    tried_at = {group: facts.pretrain(cell, {}, role="cell").id for group, cell in tuned_at.items()}
    pretrained: list[Job] = []
    for cell in study.cells:
        tuned = study.select is not None and not cell.run.model.checkpoint
        group = select.group_of(cell, study.select) if tuned and study.select else ()
        choice = choices.get(group) if tuned else None
        known = not tuned or choice is not None
        job = facts.pretrain(cell, choice.values if choice else {}, role="cell")
        if choice is not None:
            own = job.flops if job.id in tuning else 0
            spent = tuning_flops[group] - own
            job = replace(job, flops_tuning=spent, at_edge=choice.rate_at_edge, tried=choice.tried)
        pretrained.append(job)
        if known:
            jobs.setdefault(job.id, job)
            continue
        # A run at which settings are tried will be one of its trials, and is among them already.
        if job.id != tried_at.get(group):
            waiting.setdefault(group, {}).setdefault(job.id, job)
        for transfer in _transfers(study, job):
            waiting_transfers.setdefault((group, transfer.id), transfer)
    for id_, job in tuning.items():
        jobs.setdefault(id_, job)
    for job in [job for job in jobs.values() if job.role == "cell"]:
        for transfer in _transfers(study, job):
            jobs.setdefault(transfer.id, transfer)
    for baseline in _baselines(study, pretrained):
        jobs.setdefault(baseline.id, baseline)
    # Those of one group will have the same settings, and so a trunk in common where these would have one.
    left = [job for group in waiting.values() for job in shared(group.values())]
    return Plan(jobs=tuple(shared(jobs.values())), waiting=(*left, *waiting_transfers.values()))


class _Facts:
    """Architectures and data sets of a study's cells, looked up once each."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._datasets: dict[Any, Dataset] = {}
        self._archs: dict[Model, models.Arch] = {}
        self._tasks: dict[str, Task] = {}

    def pretrain(self, cell: select.Cell, chosen: Mapping[str, Any], *, role: Role) -> Job:
        run = fields.build({**cell.values, **chosen})
        if run.model.checkpoint:
            checkpoint = content(self.study.base / run.model.checkpoint)
            origin = Origin(run=run, arch=self.arch(run), dataset=UNKNOWN_DATA, checkpoint=checkpoint)
        else:
            origin = Origin(run=run, arch=self.arch(run), dataset=self.dataset(run), test=self.test(run))
        return Job(
            id=origin_id(origin),
            role=role,
            run=run,
            arch=origin.arch,
            dataset=origin.dataset,
            test=origin.test,
            checkpoint=origin.checkpoint,
            probes=() if origin.checkpoint else tuple(self.task(name) for name in run.recipe.probe),
            varied={**cell.varied, **chosen},
        )

    def task(self, name: str) -> Task:
        if name not in self._tasks:
            self._tasks[name] = load_task(name, base=self.study.base)
        return self._tasks[name]

    def arch(self, run: Run) -> models.Arch:
        if run.model not in self._archs:
            arch = arch_of(run.model, self.study.sizes)
            if arch is None:
                raise ValueError(f"unknown model {run.model.name!r}")
            self._archs[run.model] = arch
        return self._archs[run.model]

    def dataset(self, run: Run) -> Dataset:
        key = (run.data.shards, run.data.size, run.data.num_classes, run.data.exclude)
        if key not in self._datasets:
            dataset = dataset_of(run.data, base=self.study.base, strict=True)
            assert dataset is not None  # strict
            self._datasets[key] = dataset
        return self._datasets[key]

    def test(self, run: Run) -> Dataset | None:
        if not run.data.test:
            return None
        if run.data.size is not None and not locate(run.data.test, base=self.study.base).at_hand:
            return None
        key = run.data.test
        if key not in self._datasets:
            self._datasets[key] = describe(key, base=self.study.base)
        return self._datasets[key]


def _tune(
    study: Study, facts: _Facts, scores: Scores
) -> tuple[dict[select.Group, select.Choice], dict[str, Job], dict[select.Group, int]]:
    """Choices of the groups whose tuning runs have all ended, the tuning runs, and what each group's cost."""
    choices: dict[select.Group, select.Choice] = {}
    jobs: dict[str, Job] = {}
    flops: dict[select.Group, int] = {}
    if study.select is None:
        return choices, jobs, flops
    for group, cell in select.groups(study.select, study.cells).items():
        trials = [(values, facts.pretrain(cell, values, role="tuning")) for values in select.grid(study.select)]
        jobs.update({job.id: job for _, job in trials})
        flops[group] = sum({job.id: job.flops for _, job in trials}.values())
        ended = [(values, scores[job.id]) for values, job in trials if job.id in scores]
        good = [(values, score) for values, score in ended if score is not None]
        if len(ended) == len(trials) and good:
            tried = tuple({**values, "score": score} for values, score in ended)
            choices[group] = select.choose(good, tried)
    return choices, jobs, flops


def _transfers(study: Study, parent: Job) -> Iterator[Job]:
    for transfer, task in study.transfers:
        yield transfer_job(parent, transfer, task, differing=_differing(study, transfer))


def _differing(study: Study, transfer: Transfer) -> dict[str, Any]:
    """The settings in which a transfer differs from others of its task and protocol, by dotted key."""
    alike = [t for t, _ in study.transfers if (t.task, t.protocol) == (transfer.task, transfer.protocol)]
    names = [f.name for f in dataclasses.fields(Transfer)]
    return {f"transfer.{name}": getattr(transfer, name) for name in names if len({getattr(t, name) for t in alike}) > 1}


def transfer_job(parent: Job, transfer: Transfer, task: Task, *, differing: Mapping[str, Any] | None = None) -> Job:
    """The job that transfers a pre-training run, or a baseline of it where `transfer.init` says so.

    `differing`: what tells this transfer from others of the study.
    """
    baseline = transfer.init != "pretrained"
    # Whatever it is compared with, an untrained network is the one that a classification starts from.
    recipe = replace(parent.run.recipe, objective="classification") if baseline else parent.run.recipe
    return replace(
        parent,
        id=transfer_id(parent.origin, transfer, task),
        role="baseline" if baseline else parent.role,
        run=replace(parent.run, recipe=recipe, transfer=transfer),
        task=task,
        parent=None if baseline else parent.id,
        varied={
            **{key: value for key, value in parent.varied.items() if _tells_apart(key, transfer)},
            **(differing or {}),
        },
        flops_tuning=0 if baseline else parent.flops_tuning,
        at_edge=None if baseline else parent.at_edge,
        tried=() if baseline else parent.tried,
    )


def _tells_apart(key: str, transfer: Transfer) -> bool:
    """Whether a setting of the pre-training tells transfers apart: no recipe or checkpoint does untrained networks."""
    if key == "model.checkpoint" and transfer.init != "pretrained":
        return False
    kept = {"pretrained": ("",), "untrained": ("model.", "data.resolution"), "pixels": ("data.resolution",)}
    return key.startswith(kept[transfer.init])


def _baselines(study: Study, cells: Sequence[Job]) -> Iterator[Job]:
    """Once a study and resolution: raw pixels, every network untrained (few-shot) and from scratch (fine-tuned)."""
    networks: dict[tuple[Any, ...], Job] = {}
    resolutions: dict[int, Job] = {}
    for job in cells:
        resolution = job.run.data.resolution
        networks.setdefault((str(models.to_dict(job.arch)), job.head, resolution), job)
        resolutions.setdefault(resolution, job)
    for transfer, task in study.transfers:
        differing = _differing(study, transfer)
        if transfer.protocol == "fewshot":
            for job in resolutions.values():
                yield transfer_job(job, replace(transfer, init="pixels"), task, differing=differing)
        for job in networks.values():
            yield transfer_job(job, replace(transfer, init="untrained"), task, differing=differing)
