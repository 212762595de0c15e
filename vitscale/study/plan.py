"""The graph of jobs behind a study: tuning and pre-training runs, their transfers, the baselines; what each costs.

Pure but for the descriptions of data sets: the same study and the same scores give the same jobs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vitscale import models
from vitscale.config import Task, Transfer
from vitscale.study import select
from vitscale.study.facts import Facts
from vitscale.study.identity import transfer_id
from vitscale.study.job import Job
from vitscale.study.load import Study
from vitscale.study.sharing import shared
from vitscale.study.tuning import Scores, Tuning, tune


@dataclass(frozen=True, kw_only=True)
class Open:
    """A choice of [select] that is still to come."""

    trials: Sequence[tuple[Mapping[str, Any], Job]]
    """Those that can still be chosen: settings, and the run that tries them."""
    cells: Sequence[select.Cell]
    """All that will take the choice."""
    sharing: Sequence[select.Cell]
    """Those of them that would have a trial's trunk, without that of the trials."""
    alike: bool
    """Whether only what lies in run folders can make one trial dearer than another."""
    facts: Facts

    def if_chosen(self, values: Mapping[str, Any], cells: Iterable[select.Cell]) -> list[Job]:
        """The pre-trainings of these cells with these settings, under their ids, each once."""
        jobs = (replace(self.facts.pretrain(cell, values, role="cell"), varied=cell.varied) for cell in cells)
        return list({job.id: job for job in jobs}.values())

    def transfers(self, parents: Iterable[Job]) -> list[Job]:
        """Those of these pre-trainings, each once."""
        jobs = (transfer for job in parents for transfer in _transfers(self.facts.study, job))
        return list({job.id: job for job in jobs}.values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    jobs: tuple[Job, ...]
    """All that can be named now, parents before their transfers, each id once."""
    waiting: tuple[Job, ...]
    """Jobs whose settings are not chosen yet, as they would be alone with the default ones; their ids are no run's."""
    open: tuple[Open, ...] = ()
    """The choices that they wait for."""
    prospects: Mapping[str, tuple[tuple[int, str], ...]] = field(default_factory=dict)
    """Of trunks, by id: as `Job.prospects`."""


def plan(study: Study, scores: Scores) -> Plan:
    """The study's jobs, as far as the finished runs' scores decide what is selected."""
    facts = Facts(study)
    tuning = tune(study, facts, scores)
    jobs: dict[str, Job] = {}
    waiting: dict[select.Group, dict[str, Job]] = {}
    waiting_transfers: dict[tuple[select.Group, str], Job] = {}
    tuned_at = select.groups(study.select, study.cells)
    tried_at = {group: facts.pretrain(cell, {}, role="cell").id for group, cell in tuned_at.items()}
    pretrained: list[Job] = []
    for cell in study.cells:
        job, group = tuning.pretrain(cell)
        pretrained.append(job)
        if group is None or group in tuning.choices:
            jobs.setdefault(job.id, job)
            continue
        # A run at which settings are tried will be one of its trials, and is among them already.
        if job.id != tried_at.get(group):
            waiting.setdefault(group, {}).setdefault(job.id, job)
        for transfer in _transfers(study, job):
            waiting_transfers.setdefault((group, transfer.id), transfer)
    for id_, job in tuning.jobs.items():
        jobs.setdefault(id_, job)
    for job in [job for job in jobs.values() if job.role == "cell"]:
        for transfer in _transfers(study, job):
            jobs.setdefault(transfer.id, transfer)
    for baseline in _baselines(study, pretrained):
        jobs.setdefault(baseline.id, baseline)
    prospects = tuning.prospects()
    known = tuple(shared(jobs.values(), prospects=prospects))
    # Those of one group will have the same settings, and so a trunk in common where these would have one.
    left = [job for group in waiting.values() for job in shared(group.values())]
    waits = tuple(map(unnamed, [*left, *waiting_transfers.values()]))
    return Plan(jobs=known, waiting=waits, open=tuple(_open(tuning, scores)), prospects=prospects)


def _open(tuning: Tuning, scores: Scores) -> Iterator[Open]:
    for group, trials in tuning.trials.items():
        if group not in tuning.choices:
            # Where all have failed, so that nothing can be chosen, what waits is told all the same.
            good = [(values, trial) for values, trial in trials if scores.get(trial.id, 0.0) is not None] or trials
            cells = [cell for cell, _ in tuning.members[group]]
            yield Open(
                trials=good,
                cells=cells,
                sharing=tuning.sharing(group),
                alike=tuning.are_alike(group),
                facts=tuning.facts,
            )


def unnamed(job: Job) -> Job:
    """A job that waits, under ids that no folder has: with its settings it may have been run before."""
    return replace(
        job,
        to_select=True,
        id=f"select-{job.id}",
        parent=job.parent and f"select-{job.parent}",
        branch=job.branch and replace(job.branch, trunk=f"select-{job.branch.trunk}"),
    )


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
        # Also where other classes are pre-trained on: no setting of an untrained network would tell them apart.
        networks.setdefault((str(models.to_dict(job.arch)), job.varied.get("model.pre_logits"), resolution), job)
        resolutions.setdefault(resolution, job)
    for transfer, task in study.transfers:
        differing = _differing(study, transfer)
        if transfer.protocol == "fewshot":
            for job in resolutions.values():
                yield transfer_job(job, replace(transfer, init="pixels"), task, differing=differing)
        for job in networks.values():
            yield transfer_job(job, replace(transfer, init="untrained"), task, differing=differing)
