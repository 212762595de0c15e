"""How fast a run's steps are on this machine, and what they hold: measured without data; nothing of them is kept."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from vitscale import models
from vitscale.train import group
from vitscale.train.capacity import Work, engine_settings
from vitscale.train.device import memory_held, memory_peak, reset_memory_peak
from vitscale.train.engine import Engine
from vitscale.train.objective import Batch, Classification
from vitscale.train.pretrain import new_net
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.upstream import blank, masked_patches

WARM_UP = 2  # steps in which memory is taken and the optimizer's state is made
SECONDS = 5.0
FEWEST, MOST = 3, 100
TOY = {"width": 8, "depth": 1, "mlp": 8, "heads": 1}


def bench(rundir: RunDir, stop: Stop) -> dict[str, Any]:
    """Times some steps of the run at its global batch, all of its devices together.

    Raises:
        Interrupted: a signal came.
    """
    recipe, net, masked = rundir.run.recipe, new_net(rundir), masked_patches(rundir)
    work = Work(
        net=net,
        recipe=recipe,
        objective=masked or Classification(recipe),
        blank=lambda images: blank(rundir.run, masked, images),
        activations=lambda recompute: rundir.arch.activations(
            rundir.run.data.resolution, rundir.head, recompute=recompute
        ),
    )
    resting = _resting(work)
    settings = engine_settings(rundir, work, stop)
    reset_memory_peak()
    engine = Engine(net, recipe, objective=work.objective, **settings)
    batch = work.blank(work.part)

    def seconds() -> float:
        group.wait_for_all()
        stop.at("timing a step", slow=True, together=True)
        start = time.monotonic()
        engine.step(batch, recipe.lr, stop.asked)  # its loss is read, so its kernels are included
        return time.monotonic() - start

    for _ in range(WARM_UP):
        seconds()
    steps = int(group.least(min(max(SECONDS / seconds(), FEWEST), MOST)))
    times = [seconds() for _ in range(steps)]
    held = -group.least(resting - memory_peak())
    engine.close()
    return {
        "status": "done",
        "score": None,
        "rows": [],
        # The median: the machine may do something else for a moment.
        "images_per_second": recipe.batch_size / median(times),
        "steps": steps,
        "memory": int(held),
        "settings": settings,
        "threads": None if torch.cuda.is_available() else torch.get_num_threads(),
    }


def _resting(work: Work) -> int:
    """Bytes that this process holds beside the network before it trains: the interpreter, and what libraries load and
    keep as soon as anything is trained, so that something is."""
    toy = models.create("ViT-toy/8", num_classes=1, resolution=8, sizes={"toy": TOY})
    engine = Engine(toy, replace(work.recipe, batch_size=group.world_size()))
    labels = torch.zeros(1, dtype=torch.int64)
    engine.step(Batch(images=torch.zeros(1, 3, 8, 8, dtype=torch.uint8), labels=labels, weights=torch.ones(1)), 0.0)
    engine.close()
    replace(work).pass_bytes(1, recompute=False)
    return memory_held() - 4 * work.params
