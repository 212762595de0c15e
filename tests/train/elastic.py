"""What `test_elastic.py` starts in several processes: `elastic.py save|load|bf16 FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from vitscale import models
from vitscale.config import Recipe
from vitscale.data.order import device_slots
from vitscale.train import checkpoint, group, keeping
from vitscale.train.checkpoint import Progress
from vitscale.train.engine import STAGES, Engine
from vitscale.train.keeping import Keep
from vitscale.train.objective import Batch

WORLDS = (1, 2, 3)
BEFORE, AFTER = 3, 3  # optimizer steps on the two sides of the checkpoint
RECIPE = Recipe(batch_size=12, steps=BEFORE + AFTER, ema=0.9, grad_clip=0.5, weight_decay=0.3)
LR = 1e-3
SIZES = {"odd": {"width": 30, "depth": 2, "mlp": 50, "heads": 2}}


def new_net() -> nn.Module:
    torch.manual_seed(3)
    net = models.create("ViT-odd/7", num_classes=5, resolution=28, sizes=SIZES)
    nn.init.normal_(net.head.weight, std=0.1)
    return net


def batch(step: int) -> Batch:
    """This process's part of a step's global batch, with one bad image in it."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(256, (12, 3, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.randint(5, (12,), generator=generator)
    weights = torch.ones(12)
    weights[step] = 0
    own = device_slots(12, device=group.rank(), devices=group.world_size())
    part = slice(own.start, own.stop)
    return Batch(images=images[part], labels=labels[part], weights=weights[part])


def train(engine: Engine, first: int, last: int) -> list[float]:
    return [engine.step(batch(step), LR).loss for step in range(first, last)]


def save(folder: Path, engine: Engine, step: int) -> None:
    weights, averages, optimizer = engine.weights(), engine.averaged_weights(), engine.state()
    if group.is_first():
        progress = Progress(step=step)
        folder.mkdir(parents=True, exist_ok=True)
        keeping.save(folder, progress, weights=weights, averages=averages, optimizer=optimizer, keep=Keep(last=9))


def save_all(folder: Path) -> None:
    """A checkpoint of each stage in the middle of the training, and one of what comes of it undisturbed."""
    for stage in STAGES:
        run = folder / f"{group.world_size()}-{stage}"
        engine = Engine(new_net(), RECIPE, zero_stage=stage)
        train(engine, 0, BEFORE)
        save(run, engine, BEFORE)
        losses = train(engine, BEFORE, BEFORE + AFTER)
        save(run, engine, BEFORE + AFTER)
        if group.is_first():
            (run / "losses.json").write_text(json.dumps(losses))
        engine.close()


def load_all(folder: Path) -> None:
    """Goes on from every checkpoint at every stage."""
    for run in (folder / f"{world}-{stage}" for world in WORLDS for stage in STAGES):
        found = checkpoint.load(checkpoint.folder_of(run, BEFORE))
        for stage in STAGES:
            net = new_net()
            checkpoint.load_weights(net, found.weights, found.folder)
            engine = Engine(net, RECIPE, zero_stage=stage, micro_batch=2)
            engine.load_state(found.optimizer, found.averages, BEFORE)
            losses = train(engine, BEFORE, BEFORE + AFTER)
            target = folder / "continued" / f"{run.name}-{group.world_size()}-{stage}"
            save(target, engine, BEFORE + AFTER)
            if group.is_first():
                (target / "losses.json").write_text(json.dumps(losses))
            engine.close()


def identified(name: str, values: torch.Tensor) -> torch.Tensor:
    """Without the bias of attention's keys, whose gradient is nothing but rounding: Adam makes it as large as any."""
    if "qkv.bias" not in name:
        return values
    queries, _, of_values = values.chunk(3)
    return torch.cat([queries, of_values])


def compare_bf16(folder: Path) -> None:
    """How far a step's gradients at each stage are from those at stage 0: the most of any parameter, relative."""
    moments = {}
    for stage in STAGES:
        recipe = replace(RECIPE, precision="bf16", ema=0.0, grad_clip=0.0)
        engine = Engine(new_net(), recipe, zero_stage=stage, micro_batch=2)
        engine.step(batch(0), LR)
        # After one step Adam's first moment is a tenth of the gradient.
        moments[stage] = {
            name: identified(name, part) for name, part in engine.state().items() if name.endswith("exp_avg")
        }
        engine.close()
    if group.is_first():
        most = {
            stage: max(float((part - moments[0][name]).norm() / moments[0][name].norm()) for name, part in of.items())
            for stage, of in moments.items()
        }
        (folder / f"bf16-{group.world_size()}.json").write_text(json.dumps(most))


if __name__ == "__main__":
    os.environ.setdefault("LOCAL_RANK", "0")
    torch.set_num_threads(1)
    with group.process_group():
        {"save": save_all, "load": load_all, "bf16": compare_bf16}[sys.argv[1]](Path(sys.argv[2]))
        group.wait_for_all()
    sys.stdout.flush()
    os._exit(0)
