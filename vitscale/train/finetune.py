"""Transfer of a checkpoint to a downstream task: fine-tuning all weights, or few-shot on its features."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from vitscale import models
from vitscale.config import Recipe, Task, Transfer
from vitscale.data import downstream
from vitscale.data.downstream import Downstream
from vitscale.data.order import global_batch
from vitscale.data.preprocess import Preprocess, preprocess
from vitscale.errors import MISSING, RUN_FAILED, VitscaleError
from vitscale.models.counts import Head
from vitscale.models.vit.positions import Resize, resize_axis, resize_pos_embedding
from vitscale.results import spent
from vitscale.study.cost import KEPT, forward_flops, training_flops
from vitscale.train import checkpoint, group
from vitscale.train.capacity import Work, engine_settings
from vitscale.train.checkpoint import Progress
from vitscale.train.device import random_states, restore_random_states
from vitscale.train.engine import Engine
from vitscale.train.evaluate import CHUNK, AnyImages, evaluate, features, images_at_once, readable
from vitscale.train.fewshot import few_shot
from vitscale.train.keeping import Keep, Writer
from vitscale.train.loop import Loop
from vitscale.train.objective import Batch, Classification
from vitscale.train.outcome import measured
from vitscale.train.pretrain import new_net, trained_net
from vitscale.train.published import head_of
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.trainings import Scored, Trainings

BLOCK = 256  # samples of a downstream task that its shuffle moves together


def transfer(rundir: RunDir, stop: Stop) -> dict[str, Any]:
    """One transfer, or one baseline; returns its result."""
    settings = rundir.run.transfer
    assert settings is not None, "run.json of a transfer has one"
    task, data = rundir.task, downstream.load(rundir.task)
    before, began = spent.of_trainings(spent.attempts(rundir.events())), time.monotonic()

    def seconds() -> float:
        return before.device_seconds + time.monotonic() - began

    if settings.protocol == "fewshot":
        rows = _few_shot_rows(rundir, settings, task, data, stop)
    else:
        rows = _fine_tune_rows(rundir, settings, task, data, stop, seconds)
    for row in rows:
        row.update(task=task.name, task_version=task.version, protocol=settings.protocol, device_seconds=seconds())
    return {"status": "done", "checkpoint": None, "score": None, "rows": rows}


def _few_shot_rows(
    rundir: RunDir, settings: Transfer, task: Task, data: Downstream, stop: Stop
) -> list[dict[str, Any]]:
    flops = 0
    resolution = settings.resolution or rundir.run.data.resolution
    how = preprocess(task, resolution)
    if settings.init == "pixels":
        train, test = raw_pixels(data.train, how), raw_pixels(data.test, how)
    else:
        net = _at_resolution(_start(rundir, settings), rundir, resolution, settings.pos_resize)
        net = net.to(group.device()).eval()
        macs = rundir.arch.macs(resolution, Head(num_classes=task.num_classes)).total
        told: dict[str, Any] = {"how": how, "stop": stop, "at_once": images_at_once(macs)}
        train, test = (
            features(net.features, images, np.arange(len(images), dtype=np.int64), **told)  # type: ignore[arg-type]
            for images in (data.train, data.test)
        )
        flops = forward_flops(macs, len(train) + len(test))
    return [
        measured(
            {"flops_segment": 0.0, "flops_eval": float(flops)},
            metric=task.metric,
            value=accuracy,
            n_test=len(test),
            shots=shots,
            draw=draw,
        )
        for shots, draw, accuracy in few_shot(train, test, data, task, settings.shots, stop)
    ]


def raw_pixels(images: AnyImages, how: Preprocess) -> Float64[np.ndarray, "n features"]:
    """What a network would see, in [-1, 1], as features: at most 32 px a side; grey images have one channel."""
    how = replace(how, resolution=min(how.resolution, 32))
    pixels = readable(images, np.arange(len(images), dtype=np.int64), how)
    if (pixels == pixels[:, :1]).all():
        pixels = pixels[:, :1]
    return pixels.reshape(len(pixels), -1) / 127.5 - 1.0


def _start(rundir: RunDir, settings: Transfer) -> nn.Module:
    return trained_net(rundir.parent()) if settings.init == "pretrained" else new_net(rundir)


def _at_resolution(net: nn.Module, rundir: RunDir, resolution: int, method: Resize) -> nn.Module:
    """The same network for another resolution: only its position embeddings change."""
    if resolution == rundir.run.data.resolution:
        return net
    head = head_of(net.state_dict())
    other = models.build(rundir.arch, num_classes=head.num_classes, resolution=resolution, pre_logits=head.pre_logits)
    other.load_state_dict(resized(net.state_dict(), other, method))
    return other


def resized(weights: dict[str, Tensor], target: nn.Module, method: Resize) -> dict[str, Tensor]:
    """Weights whose position embeddings are interpolated to the target's grid."""
    shapes = {name: tensor.shape for name, tensor in target.state_dict().items()}
    class_token = any(name.endswith("class_token") for name in weights)
    adapted = dict(weights)
    for name, tensor in weights.items():
        if name not in shapes or tensor.shape == shapes[name] or "pos_embedding" not in name:
            continue
        if name.endswith((".rows", ".columns")):
            adapted[name] = resize_axis(tensor, shapes[name][0], method=method)
        else:
            side = math.isqrt(shapes[name][1] - class_token)
            adapted[name] = resize_pos_embedding(tensor, (side, side), class_token=class_token, method=method)
    return adapted


def fine_tuning_net(
    start: nn.Module, rundir: RunDir, task: Task, resolution: int, method: Resize = "bilinear"
) -> nn.Module:
    """The trunk of `start` under one zero-initialised linear layer; the pre-logits layer is left behind."""
    net = models.build(rundir.arch, num_classes=task.num_classes, resolution=resolution)
    own = net.state_dict()
    taken = {
        name: tensor
        for name, tensor in resized(start.state_dict(), net, method).items()
        if not name.removeprefix("vit.").startswith(("head.", "pre_logits."))
    }
    missing = sorted(set(own) - set(taken) - {n for n in own if n.removeprefix("vit.").startswith("head.")})
    differing = [name for name, tensor in taken.items() if name not in own or own[name].shape != tensor.shape]
    if missing or differing:
        raise VitscaleError(
            f"the checkpoint of {rundir.document['parent']} is of another architecture ({(missing + differing)[0]})",
            hint="transfer it as the model that it was trained as",
            exit_code=MISSING,
        )
    net.load_state_dict({**own, **taken})
    return net


def _fine_tune_rows(
    rundir: RunDir, settings: Transfer, task: Task, data: Downstream, stop: Stop, seconds: Callable[[], float]
) -> list[dict[str, Any]]:
    """The paper's protocol: several rates are compared on the dev split; the best is trained on all and tested once.

    It goes on with the training that an earlier attempt has left. What the rows say it took is what all trainings and
    attempts together came to; `seconds()`: device-seconds of these until now.
    """
    resolution = settings.resolution or rundir.run.data.resolution
    start = _start(rundir, settings)
    macs = rundir.arch.macs(resolution, Head(num_classes=task.num_classes)).total
    tuner = _Tuner(rundir, start, settings, task, data, resolution, macs, stop, seconds)
    train, dev = data.dev_split()
    everything = np.arange(len(data.train_labels), dtype=np.int64)
    chosen, grid = settings.lr[0], dict[float, Scored]()
    if len(settings.lr) > 1:
        grid = {lr: tuner.try_rate(lr, train, dev) for lr in settings.lr}
        chosen = max(grid, key=lambda lr: grid[lr].value)
        rundir.log("chose", {"lr": chosen, "grid": {str(lr): tried.accuracy for lr, tried in grid.items()}})
    test = np.arange(len(data.test_labels), dtype=np.int64)
    repetitions = range(settings.seeds)
    tests = [tuner.repeat(chosen, each, everything, test) for each in repetitions]
    took = spent.of_trainings(spent.attempts(rundir.events()))

    def cost(steps: int) -> float:
        return float(training_flops(macs, steps * settings.batch_size))

    common = {
        "flops_segment": cost(sum(each.steps for each in (*grid.values(), *tests))),
        "flops_tuning": cost(sum(each.steps for each in grid.values())),
        "flops_eval": took.flops_eval,
        "flops_lost": cost(took.lost),
        "lr": chosen,
        "lr_at_edge": chosen in (min(grid), max(grid)) if grid else None,
    }
    return [
        measured({**common, "draw": each}, metric=task.metric, value=score.value, n_test=score.images)
        for each, score in zip(repetitions, tests, strict=True)
    ]


class _Tuner:
    """Fine-tunes from one start, again and again, and goes on where an earlier attempt has left it."""

    def __init__(
        self,
        rundir: RunDir,
        start: nn.Module,
        settings: Transfer,
        task: Task,
        data: Downstream,
        resolution: int,
        macs: int,
        stop: Stop,
        seconds: Callable[[], float],
    ) -> None:
        self.rundir, self.start, self.settings, self.task = rundir, start, settings, task
        self.data, self.resolution, self.macs, self.stop = data, resolution, macs, stop
        self.seconds = seconds
        self.how = preprocess(task, resolution)
        self.trainings = Trainings(rundir, settings.steps)
        self.step = 0
        """Of the training at work."""

    def try_rate(self, lr: float, train: Int64[np.ndarray, n], dev: Int64[np.ndarray, m]) -> Scored:
        """Its score on the dev split."""

        def tried() -> Scored:
            try:
                return self.tune(lr, 0, train, dev, self.data.train, self.data.train_labels)
            except VitscaleError as error:
                if error.exit_code != RUN_FAILED:
                    raise
                self.rundir.log("diverged", {"lr": lr, "step": self.step, "device_seconds": self.seconds()})
                return Scored(steps=self.step, accuracy=None, images=0)

        return self.trainings.next(tried)

    def repeat(self, lr: float, repetition: int, train: Int64[np.ndarray, n], test: Int64[np.ndarray, m]) -> Scored:
        """Its score on the test images."""
        images, labels = self.data.test, self.data.test_labels
        return self.trainings.next(lambda: self.tune(lr, repetition, train, test, images, labels))

    def tune(
        self,
        lr: float,
        repetition: int,
        train: Int64[np.ndarray, n],
        measured_on: Int64[np.ndarray, m],
        images: AnyImages,
        labels: Int64[np.ndarray, all],
    ) -> Scored:
        """Trains on the images `train` of the task's training set and scores on `measured_on` of `images`."""
        settings = self.settings
        recipe = Recipe(
            batch_size=settings.batch_size,
            steps=settings.steps,
            lr=lr,
            schedule="cosine",
            warmup_steps=settings.warmup_steps,
            ema=settings.ema,
            precision=self.rundir.run.recipe.precision,
        )
        engine = self._begun(recipe, repetition)
        self._train(engine, train, repetition)
        with engine.for_evaluation() as network:
            told: dict[str, Any] = {"how": self.how, "recipe": recipe, "stop": self.stop}
            score = evaluate(network, images, labels, measured_on, **told, at_once=min(CHUNK, engine.micro_batch))
        engine.close()
        flops = float(forward_flops(self.macs, len(measured_on)))
        took = {"flops_eval": flops, "device_seconds": self.seconds()}
        self.rundir.log("scored", {"lr": lr, "accuracy": score.accuracy, **took})
        return Scored(steps=settings.steps, accuracy=score.accuracy, images=score.images)

    def _begun(self, recipe: Recipe, repetition: int) -> Engine:
        """As this training's last checkpoint left it; or at its start."""
        torch.manual_seed(repetition)
        net = fine_tuning_net(self.start, self.rundir, self.task, self.resolution, self.settings.pos_resize)
        start = self.trainings.start()
        self.step = 0
        if start is not None:
            self.step = start.progress.step - self.trainings.before
            checkpoint.load_weights(net, start.weights, start.folder)
        number = self.trainings.before // self.settings.steps + 1
        self.rundir.log("training", {"number": number, "lr": recipe.lr, "repetition": repetition, "step": self.step})
        engine = Engine(net, recipe, optimizer="sgd", **self._engine_settings(net, recipe))
        if start is not None:
            engine.load_state(start.optimizer, start.averages, self.step)
            restore_random_states(start.optimizer)
        return engine

    def _train(self, engine: Engine, train: Int64[np.ndarray, n], repetition: int) -> None:
        """From the step at which the engine is to the last one."""
        settings, machine, before = self.settings, self.rundir.machine, self.trainings.before

        def positions(step: int) -> tuple[Int64[np.ndarray, b], Int64[np.ndarray, b]]:
            index, epoch = global_batch(
                step, batch_size=settings.batch_size, n=len(train), seed=repetition, block=BLOCK
            )
            return train[index], epoch

        def batch_of(step: int) -> Batch:
            index, epoch = positions(step)
            pixels, weights = self.data.train.train_batch(index, epoch, self.how, seed=repetition)
            return Batch(
                images=torch.from_numpy(pixels),
                labels=torch.from_numpy(self.data.train_labels[index]),
                weights=torch.from_numpy(weights),
            )

        keep = Keep(last=machine.get("keep_last", KEPT), damaged=self.trainings.damaged)
        writer = Writer(self.rundir.folder, keep, self.rundir.check_held)

        def save(progress: Progress) -> None:
            if progress.step == before:  # which is made anew as quickly, and has the number of another one's end
                return
            writer.wait()  # first: there is room for one copy
            tensors = {"weights": engine.weights(), "averages": engine.averaged_weights()}
            writer.submit(progress, **tensors, optimizer={**engine.state(), **random_states()})

        loop = Loop(
            engine=engine,
            steps=settings.steps,
            batch_of=batch_of,
            keys_of=lambda step: [str(i) for i in positions(step)[0]],
            log=lambda event, facts: self.rundir.log(event, {"training": before // settings.steps + 1, **facts}),
            stop=self.stop,
            after_step=self._count_step,
            save=save,
            save_every=machine.get("save_every", 60.0),
            written=writer.wait,
            before=before,
            rate="transfer.lr",
        )
        with writer:
            loop.run(Progress(step=self.step, device_seconds=self.seconds()))

    def _count_step(self) -> None:
        self.step += 1

    def _engine_settings(self, net: nn.Module, recipe: Recipe) -> dict[str, Any]:
        head, side = Head(num_classes=self.task.num_classes), self.resolution
        work = Work(
            net=net,
            recipe=recipe,
            objective=Classification(recipe),
            blank=lambda images: Batch(
                images=torch.zeros(images, 3, side, side, dtype=torch.uint8),
                labels=torch.zeros(images, dtype=torch.int64),
                weights=torch.ones(images),
            ),
            activations=lambda recompute: self.rundir.arch.activations(side, head, recompute=recompute),
            moments=1,
        )
        return engine_settings(self.rundir, work, self.stop)
