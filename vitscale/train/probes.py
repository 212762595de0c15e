"""Few-shot accuracy of a network on downstream tasks while it is trained: as a few-shot transfer measures it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from vitscale.config import PROBE_SHOTS, Task
from vitscale.data import downstream
from vitscale.data.downstream import support_sets
from vitscale.data.preprocess import preprocess
from vitscale.models.counts import Head
from vitscale.study.cost import forward_flops
from vitscale.train import group
from vitscale.train.evaluate import features
from vitscale.train.fewshot import ridge_accuracy
from vitscale.train.objective import Network
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Interrupted, Stop


class Probes:
    """The tasks of `recipe.probe`. Every process of a run takes part, each with its share of images and draws."""

    def __init__(self, rundir: RunDir) -> None:
        resolution, self._precision = rundir.run.data.resolution, rundir.run.recipe.precision
        self._probes = [_Probe(task, resolution) for task in rundir.probes]
        self.flops = sum(
            forward_flops(rundir.arch.macs(resolution, Head(num_classes=probe.task.num_classes)).total, probe.images)
            for probe in self._probes
        )
        """Of all of them, once."""

    def accuracies(self, network: Network, stop: Stop, at_once: int) -> dict[str, float]:
        """By task, of a network in evaluation mode that is given so many images at once.

        Raises:
            Interrupted: a signal came.
        """
        device = group.device().type

        def features_of(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
            with torch.autocast(device, torch.bfloat16, enabled=self._precision == "bf16"):
                return network(images, features_only=True)

        return {probe.task.name: probe.accuracy(features_of, stop, at_once) for probe in self._probes}


class _Probe:
    """One task, with the support sets that its few-shot transfers have."""

    def __init__(self, task: Task, resolution: int) -> None:
        self.task, self.data, self.how = task, downstream.load(task), preprocess(task, resolution)
        labels = self.data.train_labels
        self.support = [support_sets(labels, shots=PROBE_SHOTS, draw=draw) for draw in range(task.draws)]
        self.used = np.unique(np.concatenate(self.support))
        """The training images that stand in any of them: of a large task a small part."""
        self.tested = np.arange(len(self.data.test_labels), dtype=np.int64)

    @property
    def images(self) -> int:
        return len(self.used) + len(self.tested)

    def accuracy(self, features_of: Network, stop: Stop, at_once: int) -> float:
        """The mean over the draws."""
        told: dict[str, Any] = {"how": self.how, "stop": stop, "at_once": at_once}
        train = features(features_of, self.data.train, self.used, **told)
        test = features(features_of, self.data.test, self.tested, **told)
        total = 0.0
        for first in range(0, self.task.draws, group.world_size()):
            stop.at("solving few-shot regressions", together=True)
            if stop.asked():
                raise Interrupted
            if (draw := first + group.rank()) < self.task.draws:
                total += self._of_draw(draw, train, test)
        return group.summed(total)[0] / self.task.draws

    def _of_draw(
        self, draw: int, train: Float64[np.ndarray, "used features"], test: Float64[np.ndarray, "tested features"]
    ) -> float:
        chosen = self.support[draw]
        return ridge_accuracy(
            train[np.searchsorted(self.used, chosen)],
            self.data.train_labels[chosen],
            test,
            self.data.test_labels,
            num_classes=self.task.num_classes,
            ridge=self.task.ridge,
        )
