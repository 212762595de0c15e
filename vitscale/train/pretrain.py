"""Pre-training: a run folder in, checkpoints and upstream accuracies out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn

from vitscale import exclusions, models
from vitscale.config import PROBE_SHOTS, Run
from vitscale.data.images import Images
from vitscale.data.mixup import mixing_share
from vitscale.data.order import device_slots, global_batch
from vitscale.data.preprocess import preprocess
from vitscale.data.shards import Shards, open_shards
from vitscale.data.subsets import split
from vitscale.errors import MISSING, VitscaleError
from vitscale.exclusions import Exclusions
from vitscale.sampling import DROPOUT, stream_key
from vitscale.study.archs import default_head_bias
from vitscale.study.cost import forward_flops
from vitscale.study.datasets import Dataset
from vitscale.study.subsets import num_classes, subset_seed
from vitscale.train import checkpoint, group
from vitscale.train.capacity import Work, engine_settings
from vitscale.train.checkpoint import Keep, Progress, Writer
from vitscale.train.device import peak_flops, random_states, restore_random_states
from vitscale.train.engine import Engine
from vitscale.train.evaluate import Score, evaluate
from vitscale.train.loop import Loop
from vitscale.train.masked import MaskedPatches, MaskedScore
from vitscale.train.monitors import Monitors
from vitscale.train.objective import Batch, Classification, Network
from vitscale.train.probes import Probes
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop


def new_net(rundir: RunDir) -> nn.Module:
    """The network at its initialisation; a function of the architecture, the head and the seed alone."""
    torch.manual_seed(rundir.run.seed)
    recipe = rundir.run.recipe
    return models.build(
        rundir.arch,
        num_classes=rundir.head.num_classes,
        resolution=rundir.run.data.resolution,
        pre_logits=rundir.head.pre_logits,
        patches=rundir.head.patches,
        dropout=recipe.dropout,
        stochastic_depth=recipe.stochastic_depth,
        head_bias=_head_bias(rundir.run),
    )


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


def _head_bias(run: Run) -> float:
    return default_head_bias(run.recipe) if run.model.head_bias is None else run.model.head_bias


def trained_net(rundir: RunDir) -> nn.Module:
    """The network with the weights of the checkpoint that the finished run kept; of one that predicted patches, its
    trunk under a head of zeros."""
    result = rundir.result()
    if result is None or result["status"] != "done":
        raise VitscaleError(f"run {rundir.id} is not finished", hint="finish its pre-training first", exit_code=MISSING)
    try:
        kept = checkpoint.load(rundir.folder / "checkpoints" / result["checkpoint"])
    except VitscaleError as error:
        hint = f"delete {rundir.folder} and sweep with --retry-failed: it is then trained again"
        raise VitscaleError(error.problems[0].message, hint=hint, exit_code=MISSING) from None
    net = new_net(rundir)
    checkpoint.load_weights(net, kept.best_weights, kept.folder)
    return _classifier(net, rundir) if rundir.head.patches else net


def _classifier(masked: nn.Module, rundir: RunDir) -> nn.Module:
    """The trunk of a network that predicted patches under a head of zeros for the classes of its data set."""
    classes = num_classes(Dataset.from_facts(rundir.document["dataset"]), rundir.run.data)
    net = models.build(rundir.arch, num_classes=classes, resolution=rundir.run.data.resolution)
    own = net.state_dict()
    trunk = {name: t for name, t in masked.state_dict().items() if name in own and not name.startswith("head.")}
    net.load_state_dict({**own, **trunk})
    return net


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
        mixed, side = self.run.recipe.mixup > 0, self.how.resolution
        index = np.arange(images, dtype=np.int64)
        return Batch(
            images=torch.zeros(images + mixed, 3, side, side, dtype=torch.uint8),
            labels=torch.zeros(images + mixed, dtype=torch.int64),
            weights=torch.ones(images + mixed),
            share=0.5 if mixed else 1.0,
            corrupted=self.masked.draw(index * 0, index, seed=None) if self.masked else None,
        )

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
            raise VitscaleError(f"{path} is not the list that the run was planned with", hint=hint, exit_code=MISSING)
        return found

    def _images(self, shards: Shards, used: int) -> Images:
        """Pixels of a data set of which `used` samples are looked at."""
        workers = self.rundir.machine.get("workers")
        return Images(shards, max_bad=self.run.data.max_bad, used=used, workers=workers, on_bad=self._note_bad)

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
            score = self.masked.evaluate(network, images, index, how=how, recipe=recipe, stop=stop)
        else:
            score = evaluate(network, images, labels, index, how=how, recipe=recipe, stop=stop)
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
        )
    return shards


def pretrain(rundir: RunDir, stop: Stop) -> dict[str, Any]:
    """Trains the run from its last checkpoint to the end and measures it; returns its result."""
    run = rundir.run
    data = Upstream(rundir)
    probes = Probes(rundir)
    engine, progress = _begun(rundir, data, stop)
    flops_per_step = rundir.document["flops_per_example"] * run.recipe.batch_size
    macs = rundir.document["flops_per_example"] // 6
    keep = Keep(last=rundir.machine.get("keep_last", 2), every=rundir.machine.get("keep_every"))
    writer, monitors = Writer(rundir.folder, keep), Monitors(rundir, progress.step)

    def save(progress: Progress) -> None:
        tensors = {"weights": engine.weights(), "averages": engine.averaged_weights(), "optimizer": engine.state()}
        if rundir.writes:
            tensors["optimizer"] |= random_states()
            writer.submit(progress, **tensors)

    def written() -> None:
        writer.wait()
        group.wait_for_all()  # of all processes one writes, and all of them read what is kept

    def validate(step: int) -> tuple[float | None, float]:
        score, flops = None, probes.flops
        with engine.for_evaluation() as network:
            if run.data.val_examples:
                validations[step] = found = data.score_validation(network, stop)
                score, flops = found.value, flops + forward_flops(macs, found.images)
            accuracies = probes.accuracies(network, stop)
        if accuracies:
            monitors.log("probe", {"step": step, "shots": PROBE_SHOTS, "accuracy": accuracies})
        return score, float(flops)

    validations: dict[int, Score | MaskedScore] = {}
    every = run.recipe.validate_every
    loop = Loop(
        engine=engine,
        steps=rundir.document["steps"],
        batch_of=data.batch,
        keys_of=data.keys,
        log=monitors.log,
        stop=stop,
        after_step=lambda: data.share_bad(data.images),
        save=save,
        save_every=rundir.machine.get("save_every", 60.0),
        written=written,
        validate=validate if run.data.val_examples or run.recipe.probe else None,
        validate_every=None if every is None else max(every // run.recipe.batch_size, 1),
        score_name=data.masked.score_name if data.masked else "accuracy",
        keep_best=run.recipe.keep == "best",
        flops_per_step=flops_per_step,
        skip_nonfinite=rundir.machine.get("skip_nonfinite", 0),
    )
    with writer, monitors:
        progress = loop.run(_count_lost(rundir, progress, flops_per_step))
    engine.close()
    return _finished(rundir, data, progress, macs, validations, stop)


def _begun(rundir: RunDir, data: Upstream, stop: Stop) -> tuple[Engine, Progress]:
    """The engine as the run's last checkpoint left it, whatever devices wrote that; or at the start."""
    recipe, net = rundir.run.recipe, new_net(rundir)
    # All processes go on from the same one; that it is whole is looked at once.
    folder = group.agreed(checkpoint.newest(rundir.folder) if group.is_first() else None)
    start = None if folder is None else checkpoint.load(folder, verify=False)
    if start is not None:
        checkpoint.load_weights(net, start.weights, start.folder)
    objective = data.masked or Classification(recipe)
    work = Work(
        net=net,
        recipe=recipe,
        objective=objective,
        blank=data.blank,
        activations=lambda recompute: rundir.arch.activations(data.how.resolution, rundir.head, recompute=recompute),
    )
    engine = Engine(net, recipe, objective=objective, **engine_settings(rundir, work, stop))
    progress = Progress(step=0)
    if start is not None:
        progress = start.progress
        engine.load_state(start.optimizer, start.averages, progress.step - progress.skipped)
        restore_random_states(start.optimizer)
    if not group.is_first():  # whose draws the checkpoint holds; the others' must not be the same
        torch.manual_seed(stream_key(DROPOUT, rundir.run.seed, group.rank(), progress.step))
    return engine, progress


def _count_lost(rundir: RunDir, progress: Progress, flops_per_step: float) -> Progress:
    """Adds up what earlier attempts had computed after the checkpoints that the next ones started from."""
    lost = reached = 0
    for event in rundir.events():
        if event["event"] == "step":
            reached = event["step"]
        elif event["event"] == "lost":
            lost += event["steps"]
            reached = 0
    now = max(reached - progress.step, 0)
    if now:
        rundir.log("lost", {"steps": now})
    return replace(progress, flops_lost=(lost + now) * flops_per_step)


def _finished(
    rundir: RunDir,
    data: Upstream,
    progress: Progress,
    macs: int,
    validations: dict[int, Score | MaskedScore],
    stop: Stop,
) -> dict[str, Any]:
    """Measures the checkpoint that is kept, as it lies on the disk."""
    run = rundir.run
    kept = progress.best_step if run.recipe.keep == "best" and progress.best_step is not None else progress.step
    folder = checkpoint.folder_of(rundir.folder, kept)
    net = new_net(rundir)
    checkpoint.load_weights(net, checkpoint.load(folder).best_weights, folder)
    network = net.to(group.device()).eval()
    scores: dict[str, Score | MaskedScore] = {}
    flops_eval = progress.flops_eval
    if run.data.val_examples:
        validation = validations.get(kept)
        if validation is None:  # it was measured by an earlier attempt
            validation = data.score_validation(network, stop)
            flops_eval += forward_flops(macs, validation.images)
        scores["upstream_val"] = validation
    test = data.score_test(network, stop)
    if test is not None:
        scores["upstream_test"] = test
        flops_eval += forward_flops(macs, test.images)
    flops = float(rundir.document["flops_per_example"] * run.recipe.batch_size * progress.step)
    common = {
        "flops_segment": flops,
        "flops_eval": flops_eval,
        "flops_lost": progress.flops_lost,
        "device_seconds": progress.device_seconds,
        "mfu": _mfu(rundir, flops, progress.device_seconds),
        "protocol": "pretrain",
        "lr": run.recipe.lr,
    }
    rows = [{**common, "task": task, **row} for task, score in scores.items() for row in score.rows()]
    if not rows:
        rows.append({**common, "task": "upstream_train", "metric": "steps", "value": float(progress.step)})
    return {
        "status": "done",
        "checkpoint": folder.name,
        "score": scores["upstream_val"].value if "upstream_val" in scores else None,
        "rows": rows,
    }


def _mfu(rundir: RunDir, flops: float, device_seconds: float) -> float | None:
    """Over all attempts, waits, validations and saving included; None unless all had devices of one known kind."""
    devices = {event["device"] for event in rundir.events() if event["event"] == "start"}
    peak = peak_flops(rundir.run.recipe.precision)
    return None if len(devices) > 1 or not peak or not device_seconds else flops / (device_seconds * peak)
