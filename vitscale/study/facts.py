"""Architectures and data sets of a study's cells, looked up once each, and the pre-training jobs made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitscale import models
from vitscale.config import Model, Run, Task
from vitscale.locations import locate
from vitscale.study import fields, select
from vitscale.study.archs import arch_of
from vitscale.study.check import dataset_of
from vitscale.study.datasets import Dataset, describe, load_task
from vitscale.study.identity import Origin, origin_id
from vitscale.study.job import Job, Role
from vitscale.study.load import Study
from vitscale.study.published import UNKNOWN_DATA, content


class Facts:
    """What the planning of one study has looked up."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._datasets: dict[Any, Dataset] = {}
        self._archs: dict[Model, models.Arch] = {}
        self._tasks: dict[str, Task] = {}

    def pretrain(self, cell: select.Cell, chosen: Mapping[str, Any], *, role: Role) -> Job:
        """The cell's pre-training with the chosen settings."""
        run = fields.build({**cell.values, **chosen})
        if run.model.checkpoint:
            checkpoint = content(self.study.base / run.model.checkpoint)
            origin = Origin(run=run, arch=self._arch(run), dataset=UNKNOWN_DATA, checkpoint=checkpoint)
        else:
            origin = Origin(run=run, arch=self._arch(run), dataset=self._dataset(run), test=self._test(run))
        return Job(
            id=origin_id(origin),
            role=role,
            run=run,
            arch=origin.arch,
            dataset=origin.dataset,
            test=origin.test,
            checkpoint=origin.checkpoint,
            probes=() if origin.checkpoint else tuple(self._task(name) for name in run.recipe.probe),
            varied={**cell.varied, **chosen},
        )

    def _task(self, name: str) -> Task:
        if name not in self._tasks:
            self._tasks[name] = load_task(name, base=self.study.base)
        return self._tasks[name]

    def _arch(self, run: Run) -> models.Arch:
        if run.model not in self._archs:
            arch = arch_of(run.model, self.study.sizes)
            if arch is None:
                raise ValueError(f"unknown model {run.model.name!r}")
            self._archs[run.model] = arch
        return self._archs[run.model]

    def _dataset(self, run: Run) -> Dataset:
        key = (run.data.shards, run.data.size, run.data.num_classes, run.data.exclude)
        if key not in self._datasets:
            dataset = dataset_of(run.data, base=self.study.base, strict=True)
            assert dataset is not None  # strict
            self._datasets[key] = dataset
        return self._datasets[key]

    def _test(self, run: Run) -> Dataset | None:
        if not run.data.test:
            return None
        if run.data.size is not None and not locate(run.data.test, base=self.study.base).at_hand:
            return None
        key = run.data.test
        if key not in self._datasets:
            self._datasets[key] = describe(key, base=self.study.base)
        return self._datasets[key]
