"""The images that a pre-training is given, step by step, and how well a network does on those that it never sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from vitscale import exclusions
from vitscale.config import Run
from vitscale.data.images import Images
from vitscale.data.mixup import mixing_share
from vitscale.data.order import device_slots, global_batch
from vitscale.data.preprocess import preprocess
from vitscale.data.shards import Shards, open_shards
from vitscale.data.subsets import split
from vitscale.errors import MISSING, VitscaleError
from vitscale.exclusions import Exclusions
from vitscale.failures import Failure
from vitscale.study.subsets import subset_seed
from vitscale.train import group
from vitscale.train.evaluate import CHUNK, Score, evaluate
from vitscale.train.masked import MaskedPatches, MaskedScore
from vitscale.train.objective import Batch, Network
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop


def masked_patches(rundir: RunDir) -> MaskedPatches | None:
    """The objective of a run that predicts patches; None of one that classifies."""
    if not rundir.head.patches:
        return None
    run, patch = rundir.run, rundir.arch.ratio
    return MaskedPatches(
        target=run.recipe.masked_target,
        patch=patch,
        patches=(run.data.resolution // patch) ** 2,
        corrupted=rundir.head.patches,
    )


def blank(run: Run, masked: MaskedPatches | None, images: int) -> Batch:
    """So many images of nothing, as a step of the run has them."""
    mixed, side = run.recipe.mixup > 0, run.data.resolution
    index = np.arange(images, dtype=np.int64)
    return Batch(
        images=torch.zeros(images + mixed, 3, side, side, dtype=torch.uint8),
        labels=torch.zeros(images + mixed, dtype=torch.int64),
        weights=torch.ones(images + mixed),
        share=0.5 if mixed else 1.0,
        corrupted=masked.draw(index * 0, index, seed=None) if masked else None,
    )


AHEAD = 16
"""Steps whose samples are fetched before they are needed: seconds of training, and few enough pieces to be kept."""


class Upstream:
    """The pre-training data of a run: its subset, validation images and test set."""

    def __init__(self, rundir: RunDir) -> None:
        run, machine = rundir.run, rundir.machine
        self.run: Run = run
        self.shards = _open(machine["shards"], rundir.document["dataset"])
        self.rundir = rundir
        self.masked = masked_patches(rundir)
        self.logged = rundir.bad_samples()
        """(shard, key) of what earlier attempts have noted; whether it is still bad shows when it is read."""
        self.steps: int = rundir.document["steps"]
        self.at_once = CHUNK
        """Images of a validation that are in memory together."""
        for shard, reason in self.shards.damaged.items():
            rundir.log("damaged_shard", {"shard": shard, "reason": reason})
            print(f"{shard}: {reason}; what came after it is not trained on", flush=True)
        self.split = split(
            self.shards.keys,
            self.shards.labels,
            run.data,
            num_classes=self.shards.num_classes,
            seed=subset_seed(run),
            excluded=self._exclusions(),
        )
        used = len(self.split.train) + len(self.split.validation)
        self.images = self._images(self.shards, used)
        self.labels = self.split.labels(self.shards.labels)
        self.how = preprocess(run.data, run.data.resolution)
        self.test = _open(machine["test"], rundir.document["test"]) if rundir.document["test"] else None
        if self.test is not None and self.test.num_classes != self.shards.num_classes:
            raise VitscaleError(
                f"{self.test.location} has {self.test.num_classes} classes and {self.shards.location} "
                f"{self.shards.num_classes}",
                hint="data.test must hold the classes of data.shards",
                exit_code=MISSING,
                failure=Failure.BAD_DATA,
            )

    def positions(self, step: int) -> tuple[Int64[np.ndarray, b], Int64[np.ndarray, b]]:
        """(samples of the data set, epochs) of a step's global batch."""
        index, epoch = global_batch(
            step,
            batch_size=self.run.recipe.batch_size,
            n=len(self.split.train),
            seed=self.run.seed,
            block=self.run.data.shuffle_block,
        )
        return self.split.train[index], epoch

    def slots(self, following: bool) -> Int64[np.ndarray, s]:
        """Places of the global batch that this device reads, the one after them included where it is `following`."""
        own = device_slots(self.run.recipe.batch_size, device=group.rank(), devices=group.world_size())
        return np.arange(own.start, own.stop + following, dtype=np.int64)

    def fetch_ahead(self, step: int) -> None:
        """Has what later steps will read fetched from its server; does nothing where it is local."""
        if self.shards.access.local:
            return
        # The nearest first, and all of them each time: what did not fit into the queue is asked for again.
        for coming in range(step + 1, min(step + AHEAD, self.steps - 1) + 1):
            self.shards.prefetch(self.positions(coming)[0][self.slots(False)])

    def batch(self, step: int) -> Batch:
        """What this device reads of a step's global batch; with mixup also the image that follows its last one."""
        self.fetch_ahead(step)
        share = mixing_share(self.run.seed, step, self.run.recipe.mixup)
        index, epoch = (np.take(found, self.slots(share < 1), mode="wrap") for found in self.positions(step))
        pixels, weights = self.images.train_batch(index, epoch, self.how, seed=self.run.seed)
        labels = np.maximum(self.labels[index], 0)  # of an image without a label, whose weight is 0
        return Batch(
            images=torch.from_numpy(pixels),
            labels=torch.from_numpy(labels),
            weights=torch.from_numpy(weights),
            share=share,
            corrupted=self.masked.draw(epoch, index, seed=self.run.seed) if self.masked else None,
        )

    def blank(self, images: int) -> Batch:
        """So many images of nothing, as a step has them."""
        return blank(self.run, self.masked, images)

    def _exclusions(self) -> Exclusions | None:
        """The list as it was planned.

        Raises:
            VitscaleError: it has changed since (exit 5).
        """
        if not self.run.data.exclude:
            return None
        path = Path(self.rundir.machine["exclude"])
        found = exclusions.read(path)
        if (found.digest if found else None) != self.rundir.document["dataset"]["exclusions"]:
            hint = "plan again: without other images it is another run"
            message = f"{path} is not the list that the run was planned with"
            raise VitscaleError(message, hint=hint, exit_code=MISSING, failure=Failure.BAD_DATA)
        return found

    def _images(self, shards: Shards, used: int) -> Images:
        """Pixels of a data set of which `used` samples are looked at."""
        return Images(
            shards,
            max_bad=self.run.data.max_bad,
            used=used,
            workers=self.rundir.machine.get("workers"),
            on_bad=self._note_bad,
            apart=torch.cuda.is_available(),
        )

    def share_bad(self, images: Images) -> None:
        """Tells the other devices of the bad samples that were met here; together they may be too many.

        Raises:
            VitscaleError: they are (exit 5).
        """
        if group.world_size() > 1 and group.any_of(bool(images.bad - images.told)):
            images.told = group.union(set(images.bad))
            images.bad |= images.told
            images.check(f"{images.shards.location}: samples that cannot be used were met on several devices")

    def _note_bad(self, shard: str, key: str, reason: str) -> None:
        if (shard, key) in self.logged:
            return
        self.rundir.log("bad_sample", {"shard": shard, "key": key, "reason": reason})
        print(f"{shard}: sample {key!r} is left out: {reason}", flush=True)

    def keys(self, step: int) -> list[str]:
        return [str(key) for key in self.shards.keys[self.positions(step)[0]]]

    def score_validation(self, network: Network, stop: Stop) -> Score | MaskedScore:
        return self._score(network, stop, self.images, self.labels, self.split.validation)

    def score_test(self, network: Network, stop: Stop) -> Score | MaskedScore | None:
        if self.test is None:
            return None
        labels = self.split.labels(self.test.labels)
        # Those without a label are among them: they are noted and do not count.
        index = np.flatnonzero((labels >= 0) | (self.test.labels < 0))
        return self._score(network, stop, self._images(self.test, len(index)), labels, index)

    def _score(
        self,
        network: Network,
        stop: Stop,
        images: Images,
        labels: Int64[np.ndarray, all],
        index: Int64[np.ndarray, n],
    ) -> Score | MaskedScore:
        how, recipe = self.how, self.run.recipe
        score: Score | MaskedScore
        if self.masked is not None:
            score = self.masked.evaluate(
                network, images, index, how=how, recipe=recipe, stop=stop, at_once=self.at_once
            )
        else:
            score = evaluate(network, images, labels, index, how=how, recipe=recipe, stop=stop, at_once=self.at_once)
        self.share_bad(images)
        return score


def _open(folder: str, described: dict[str, Any]) -> Shards:
    shards = open_shards(folder)
    if shards.fingerprint != described["fingerprint"]:
        raise VitscaleError(
            f"the data in {folder} are not those that the run was planned with (fingerprint {shards.fingerprint[:12]}, "
            f"planned {described['fingerprint'][:12]})",
            hint="plan again: other data make another run",
            exit_code=MISSING,
            failure=Failure.BAD_DATA,
        )
    return shards
