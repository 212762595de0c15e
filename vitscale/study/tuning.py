"""The tuning runs of a study, what they say, and which trunks of theirs the chosen settings' runs will leave.

Whichever trial is chosen, runs that differ from it only in how long they train begin as it did. So every trial leaves a
trunk as soon as one such run waits for the choice, and that trunk saves where those runs would leave it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from vitscale import branches
from vitscale.study import fields, select
from vitscale.study.facts import Facts
from vitscale.study.job import Job
from vitscale.study.load import Study
from vitscale.study.sharing import DURATIONS, can_branch, leaves_at

Scores = Mapping[str, float | None]
"""Run id -> upstream validation score of a finished run (accuracy, of labels or of patches, or minus the loss of
pixels); None for a run that failed."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Trials of every group, and the choices of those whose trials have all ended."""

    facts: Facts
    trials: Mapping[select.Group, Sequence[tuple[Mapping[str, Any], Job]]]
    """Of each group its grid, each combination with its run."""
    choices: Mapping[select.Group, select.Choice]
    members: dict[select.Group, list[tuple[select.Cell, Job]]] = field(default_factory=dict, init=False)
    """Of each group the cells that `pretrain` was asked for, which has to be all before trunks are asked for."""
    _known_others: dict[select.Group, list[tuple[select.Cell, Job]]] = field(default_factory=dict, init=False)

    def pretrain(self, cell: select.Cell) -> tuple[Job, select.Group | None]:
        """The cell's pre-training with what is chosen for it, else default settings; the group whose choice it is."""
        chosen = self.facts.study.select
        if chosen is None or cell.run.model.checkpoint:
            return self.facts.pretrain(cell, {}, role="cell"), None
        group = select.group_of(cell, chosen)
        choice = self.choices.get(group)
        job = self.facts.pretrain(cell, choice.values if choice else {}, role="cell")
        if choice is not None:
            spent = self.flops[group] - (job.flops if job.id in self.jobs else 0)
            job = replace(job, flops_tuning=spent, at_edge=choice.rate_at_edge, tried=choice.tried)
        self.members.setdefault(group, []).append((cell, job))
        return job, group

    @cached_property
    def jobs(self) -> dict[str, Job]:
        return {job.id: job for trials in self.trials.values() for _, job in trials}

    @cached_property
    def flops(self) -> dict[select.Group, int]:
        """What each group's trials cost, each as if it had trained alone."""
        return {group: sum({job.id: job.flops for _, job in trials}.values()) for group, trials in self.trials.items()}

    def prospects(self) -> dict[str, tuple[tuple[int, str], ...]]:
        """Of each trunk that a trial leaves and others would: (step at which one would, its name).

        None of them, once the choice is made; what the trial has left, or waits for, is its trunk all the same.
        """
        found: dict[str, set[tuple[int, str]]] = {}
        for group, trials in self.trials.items():
            for values, trial in trials:
                if not can_branch(trial) or not (others := self._others(group)):
                    continue
                prospects = found.setdefault(trial.trunk_id, set())
                if group not in self.choices:
                    name = prospect_of(trial.id, self.facts.study)
                    prospects.update((leaves_at(self._tried(cell, job, values)), name) for cell, job in others)
        return {id_: tuple(sorted(steps)) for id_, steps in found.items()}

    @cached_property
    def _at(self) -> dict[select.Group, select.Cell]:
        return select.groups(self.facts.study.select, self.facts.study.cells)

    def _others(self, group: select.Group) -> list[tuple[select.Cell, Job]]:
        """Members of a group that would have a trial's trunk, whatever settings of the grid all of them have."""
        if group not in self._known_others:
            values = next(values for values, trial in self.trials[group] if can_branch(trial))
            at, members = self._at[group], self.members[group]
            if self._changes_lengths:  # which trunk it is may be another matter with default settings
                members = [(cell, self.facts.pretrain(cell, values, role="cell")) for cell, _ in members]
            own = next(job for cell, job in members if cell is at)
            trunk = own.trunk_id
            self._known_others[group] = [
                (cell, job) for cell, job in members if job.id != own.id and can_branch(job) and job.trunk_id == trunk
            ]
        return self._known_others[group]

    def _tried(self, cell: select.Cell, job: Job, values: Mapping[str, Any]) -> Job:
        """The cell's job with these settings, as far as it matters to when it would leave a trunk."""
        return replace(job, run=fields.build({**cell.values, **values})) if self._changes_lengths else job

    def sharing(self, group: select.Group) -> list[select.Cell]:
        """The cells, beside that of the trials, that would have a trial's trunk."""
        if not any(can_branch(trial) for _, trial in self.trials[group]):
            return []
        return [cell for cell, _ in self._others(group)]

    def are_alike(self, group: select.Group) -> bool:
        """Whether it costs the same whichever trial is chosen, and no other choice's runs share their trunks.

        That is, as long as no run folder tells between them.
        """
        chosen = self.facts.study.select
        shapes = {(trial.macs, trial.run.data.resolution) for _, trial in self.trials[group]}
        return len(shapes) == 1 and not self._changes_lengths and not (chosen and _of_length(chosen.per))

    @cached_property
    def _changes_lengths(self) -> bool:
        chosen = self.facts.study.select
        return _of_length(chosen.over if chosen else ())


def _of_length(keys: Iterable[str]) -> bool:
    """Whether any of these settings may say how long a run is, or where it leaves its trunk."""
    of_length = (*DURATIONS, "recipe.schedule", "recipe.batch_size")
    return any(key in of_length or key.startswith("data.") for key in keys)


def tune(study: Study, facts: Facts, scores: Scores) -> Tuning:
    """The study's trials, and what those that have ended decide."""
    trials: dict[select.Group, list[tuple[Mapping[str, Any], Job]]] = {}
    choices: dict[select.Group, select.Choice] = {}
    tuned = select.groups(study.select, study.cells)
    for group, cell in tuned.items():
        assert study.select is not None  # else there is no group
        trials[group] = [(values, facts.pretrain(cell, values, role="tuning")) for values in select.grid(study.select)]
        ended = [(values, scores[job.id]) for values, job in trials[group] if job.id in scores]
        good = [(values, score) for values, score in ended if score is not None]
        if len(ended) == len(trials[group]) and good:
            tried = tuple({**values, "score": score} for values, score in ended)
            choices[group] = select.choose(good, tried)
    return Tuning(facts=facts, trials=trials, choices=choices)


def prospect_of(trial: str, study: Study) -> str:
    """The name, where a run's id would stand, of those that leave its trunk if this study chooses the trial.

    Another file of the same name is another study, and so is the file under other settings of the command line.
    """
    said = [study.name if study.file is None else str(study.file.resolve()), *study.settings]
    return f"{branches.OF_SELECT}{trial}-{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:8]}"
