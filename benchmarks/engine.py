"""A training step through the engine beside the same step written by hand, alone and in two processes.

Both have the same weights, batch, loss, clipping and AdamW; the peer of several processes is DistributedDataParallel.
In each round both have their turn, so that what else the machine does falls on both: read the ratios.
`--large` is for a GPU: ViT-L/16 and ViT-H/14 in bf16, eager and compiled, beside timm's models in that loop (eager)
where timm can be imported, else beside ours; with the share of the GPU's peak (MFU). Ours gives the same bits each time
there; the peer runs as torch comes, which does not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tables import FEWEST_ROUNDS, at_least, interval, table
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from vitscale import models
from vitscale.config import Recipe
from vitscale.models.counts import Head
from vitscale.study.cost import training_flops
from vitscale.train import group
from vitscale.train.device import device_name, peak_flops
from vitscale.train.engine import Engine
from vitscale.train.objective import Batch, to_device
from vitscale.train.optim import make_optimizer

SIZES = {"small": {"width": 64, "depth": 4, "mlp": 256, "heads": 2}}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WARM_UP = 3  # AdamW's state is made in the first step
LR = 1e-4
COLUMNS = ("model", "px", "batch", "processes", "ZeRO", "rounds", "ours", "peer", "ours / peer", "95 %")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model, with a batch for each process and a number of rounds that suit two cores of a CPU."""

    model: str
    resolution: int
    num_classes: int
    batch_size: int
    rounds: int

    def net(self) -> nn.Module:
        torch.manual_seed(0)
        with group.device():  # where a large one is drawn in no time
            net = models.create(self.model, num_classes=self.num_classes, resolution=self.resolution, sizes=SIZES)
            nn.init.normal_(net.head.weight, std=0.02)  # it starts at 0, and then all losses agree
        return net

    def batch(self) -> Batch:
        """This process's part of the global batch; its own, as no two processes have the same."""
        generator = torch.Generator().manual_seed(group.rank())
        shape = (self.batch_size, 3, self.resolution, self.resolution)
        return Batch(
            images=torch.randint(256, shape, dtype=torch.uint8, generator=generator),
            labels=torch.randint(self.num_classes, (self.batch_size,), generator=generator),
            weights=torch.ones(self.batch_size),
        )

    def flops_per_image(self) -> int:
        arch = models.parse(self.model, sizes=SIZES)
        assert arch is not None
        return training_flops(arch.macs(self.resolution, Head(num_classes=self.num_classes)).total, 1)

    def recipe(self, precision: str) -> Recipe:
        return Recipe(batch_size=self.batch_size * group.world_size(), precision=precision, lr=LR)


LARGE = (
    Case(model="ViT-L/16", resolution=224, num_classes=1000, batch_size=256, rounds=20),
    Case(model="ViT-H/14", resolution=224, num_classes=1000, batch_size=128, rounds=20),
)
TIMM = {"ViT-L/16": "vit_large_patch16_224", "ViT-H/14": "vit_huge_patch14_224"}
LARGE_COLUMNS = ("model", "px", "batch", "compiled", "ours, images/s", "MFU", "peer", "images/s", "ours / peer", "95 %")

CASES = (
    Case(model="ViT-Ti/16", resolution=224, num_classes=1000, batch_size=8, rounds=24),
    Case(model="ViT-small/4", resolution=28, num_classes=10, batch_size=64, rounds=100),
)


class ByHand:
    """The loop that everybody writes."""

    def __init__(self, net: nn.Module, recipe: Recipe) -> None:
        self.device, self.recipe = group.device(), recipe
        net = net.to(self.device).train()
        self.optimizer = make_optimizer(net, recipe, "adamw")
        self.net = DistributedDataParallel(net) if group.world_size() > 1 else net

    def step(self, batch: Batch) -> float:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            logits = self.net(to_device(batch.images, self.device))
        loss = nn.functional.cross_entropy(logits.float(), batch.labels.to(self.device))
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return mean(loss.detach())


def measure_large(case: Case, compiled: bool, rounds: int) -> list[str]:
    """Images/s of a step, ours and the peer's in turn."""
    recipe, batch = case.recipe("bf16"), case.batch().pinned()
    engine = Engine(case.net(), recipe, compiled=compiled)
    name, net = peer_net(case)
    peer = ByHand(net, recipe)
    ours, theirs = [], []
    for turn in range(WARM_UP + rounds):
        turns = [lambda: engine.step(batch, LR).loss, lambda: as_torch_comes(lambda: peer.step(batch))]
        found = {i: seconds(turns[i], time.perf_counter)[0] for i in ((0, 1) if turn % 2 else (1, 0))}
        if turn >= WARM_UP:
            ours.append(found[0])
            theirs.append(found[1])
    engine.close()
    middle, low, high = interval([b / a for a, b in zip(ours, theirs, strict=True)])
    rates = [case.batch_size / interval(found)[0] for found in (ours, theirs)]
    peak = peak_flops("bf16")
    mfu = f"{rates[0] * case.flops_per_image() / peak:.1%}" if peak else "-"
    where = [case.model, f"{case.resolution}", f"{case.batch_size}", "yes" if compiled else "no"]
    return [*where, f"{rates[0]:,.1f}", mfu, name, f"{rates[1]:,.1f}", f"{middle:.3f}", f"{low:.3f} to {high:.3f}"]


def as_torch_comes(work: Callable[[], float]) -> float:
    """The work with kernels that need not give the same bits each time."""
    torch.use_deterministic_algorithms(False)
    try:
        return work()
    finally:
        torch.use_deterministic_algorithms(True)


def peer_net(case: Case) -> tuple[str, nn.Module]:
    """timm's network of this name, where timm can be imported, else ours."""
    try:
        import timm  # no dependency of ours: it needs torchvision
    except (ImportError, RuntimeError):
        return "ours by hand", case.net()
    with group.device():
        return "timm", timm.create_model(TIMM[case.model], num_classes=case.num_classes)


def mean(loss: Tensor) -> float:
    """Over the processes, as every training logs it."""
    if group.world_size() > 1:
        distributed.all_reduce(loss)
    return float(loss) / group.world_size()


def seconds(work: Callable[[], float], clock: Callable[[], float]) -> tuple[float, float]:
    """(how long it takes, its loss); the processes begin together."""
    group.wait_for_all()
    start = clock()
    loss = work()  # which reads a number from the device: its kernels are included
    return clock() - start, loss


def measure(case: Case, stage: int, precision: str, clock: Callable[[], float], rounds: int) -> list[str]:
    recipe, batch = case.recipe(precision), case.batch()
    engine, peer = Engine(case.net(), recipe, zero_stage=stage), ByHand(case.net(), recipe)
    ours, theirs = [], []
    for turn in range(WARM_UP + rounds):
        turns = [lambda: engine.step(batch, LR).loss, lambda: peer.step(batch)]
        found = {i: seconds(turns[i], clock) for i in ((0, 1) if turn % 2 else (1, 0))}
        (mine, my_loss), (other, its_loss) = found[0], found[1]
        if turn < WARM_UP:
            assert abs(my_loss - its_loss) < 1e-2 * abs(its_loss), "they do not train the same model"
            continue
        ours.append(mine)
        theirs.append(other)
    engine.close()
    middle, low, high = interval([a / b for a, b in zip(ours, theirs, strict=True)])
    times = (f"{1000 * interval(found)[0]:.1f} ms" for found in (ours, theirs))
    where = (case.model, f"{case.resolution}", f"{case.batch_size}", f"{group.world_size()}", f"{stage}", f"{rounds}")
    return [*where, *times, f"{middle:.3f}", f"{low:.3f} to {high:.3f}"]


def large(rounds: int | None, markdown: bool) -> int:
    """Prints the table of the large models."""
    if not torch.cuda.is_available():
        print("no GPU: ViT-L/16 and ViT-H/14 in bf16 are not measured")
        return 0
    rows = []
    for case in LARGE:
        for compiled in (False, True):
            rows.append(measure_large(case, compiled, rounds or case.rounds))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
            torch.cuda.empty_cache()
            torch._dynamo.reset()
    print(f"{device_name()}; bf16; wall time; torch {torch.__version__}")
    print(table(LARGE_COLUMNS, rows, markdown=markdown))
    return 0


def launch(processes: int, arguments: list[str]) -> int:
    """This script once more, in so many processes."""
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([sys.executable, *run, __file__, *arguments], check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=at_least(1), default=1, help="that train together (default: 1)")
    parser.add_argument("--stages", type=int, choices=(0, 1, 2, 3), nargs="+", default=[0, 1])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: the process's own time, on shared machines"
    )
    parser.add_argument("--rounds", type=at_least(FEWEST_ROUNDS), help="alternations (default: each case's own)")
    parser.add_argument("--threads", type=at_least(1), help="of each process (default: the cores, shared out)")
    parser.add_argument("--large", action="store_true", help="ViT-L/16 and H/14 in bf16 on a GPU")
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    if not group.is_one_of_several() and given.processes != 1:
        return launch(given.processes, sys.argv[1:])
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(given.threads or max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1))
    with group.process_group():
        if given.large:
            return large(given.rounds, given.markdown)
        rows = [
            measure(case, stage, given.precision, CLOCKS[given.clock], given.rounds or case.rounds)
            for case in CASES
            for stage in given.stages
        ]
        if group.is_first():
            print(f"{device_name()}; {given.precision}; {given.clock} time")
            print(table(COLUMNS, rows, markdown=given.markdown))
        group.wait_for_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
