"""Prints what a step of ViT-B at a ZeRO stage holds at most in this process, and what is counted; bytes."""

import os
import sys

import torch

from vitscale import models
from vitscale.config import Recipe
from vitscale.study.cost import model_state_bytes
from vitscale.train import group
from vitscale.train.device import memory_held, memory_peak, reset_memory_peak
from vitscale.train.engine import Engine
from vitscale.train.objective import Batch


def main(stage: int) -> None:
    torch.set_num_threads(1)
    with group.process_group():
        devices = group.world_size()
        before = memory_held()
        net = _net("ViT-B/16")
        counted = model_state_bytes(sum(p.numel() for p in net.parameters()), stage=stage, devices=devices)
        engine = Engine(net, Recipe(batch_size=devices, steps=3), zero_stage=stage)
        engine.step(_batch(), 1e-3)
        reset_memory_peak()
        engine.step(_batch(), 1e-3)
        if group.is_first():
            print(memory_peak() - before, counted, flush=True)
        group.wait_for_all()
    sys.stdout.flush()
    os._exit(0)


def _net(name: str) -> torch.nn.Module:
    return models.build(models.parse(name), num_classes=10, resolution=32)


def _batch() -> Batch:
    return Batch(
        images=torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        labels=torch.zeros(1, dtype=torch.int64),
        weights=torch.ones(1),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
