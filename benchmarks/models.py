"""A training step of our ViTs beside Hugging Face's and beside the matrix products of the same machine.

Both networks hold the same weights (their logits are compared first) and take the same batch, loss and optimizer.
In each round every one of them has its turn, so that what else the machine does falls on all alike: read the ratios.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from statistics import median

os.environ["HF_HUB_OFFLINE"] = "1"  # the peer is built from a folder of our own

import cpuinfo
import torch
import transformers
from tables import FEWEST_ROUNDS, at_least, interval, table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import ViTForImageClassification

from vitscale import models
from vitscale.models import convert
from vitscale.models.counts import Head

SIZES = {"small": {"width": 64, "depth": 4, "mlp": 256, "heads": 2}}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WARM_UP = 3  # AdamW's state is made in the first step
# Sides of the square matrices. On a CPU core these are past the point where larger ones gain; a GPU needs more.
SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model, with a batch and a number of rounds that suit two cores of a CPU."""

    name: str
    model: str
    resolution: int
    num_classes: int
    batch_size: int
    rounds: int


CASES = (
    Case(name="small", model="ViT-small/4", resolution=28, num_classes=10, batch_size=64, rounds=100),
    Case(name="Ti", model="ViT-Ti/16", resolution=224, num_classes=1000, batch_size=8, rounds=24),
    Case(name="B", model="ViT-B/16", resolution=224, num_classes=1000, batch_size=2, rounds=10),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a step runs, in which precision (weights are fp32 in both) and by which clock it is timed."""

    device: str
    precision: str
    clock: str

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device, PRECISIONS[self.precision], enabled=self.precision != "fp32")

    def seconds(self, work: Callable[[], object]) -> float:
        """How long the work takes, its kernels included."""
        clock = CLOCKS[self.clock]
        self.wait()
        start = clock()
        work()
        self.wait()
        return clock() - start

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Seconds of each round: the steps, and the matrix product of each side."""

    ours: list[float]
    peer: list[float]
    products: dict[int, list[float]]

    def peak(self) -> float:
        """FLOP/s of the fastest product."""
        return max(2 * side**3 / min(seconds) for side, seconds in self.products.items())

    def ratio(self) -> tuple[float, float, float]:
        """Median over the rounds of ours / peer, and its 95 % bootstrap interval: below 1, ours is faster."""
        return interval([ours / peer for ours, peer in zip(self.ours, self.peer, strict=True)])


def build(case: Case, place: Place) -> tuple[nn.Module, nn.Module]:
    """Ours, and the peer with its weights."""
    arch = architecture(case)
    net = models.build(arch, num_classes=case.num_classes, resolution=case.resolution)
    nn.init.normal_(net.head.weight, std=0.02)  # it starts at 0, and then all logits agree
    with tempfile.TemporaryDirectory() as folder:
        convert.to_hf(net.state_dict(), arch, folder)
        peer = ViTForImageClassification.from_pretrained(folder, attn_implementation="sdpa")
    return net.to(place.device).train(), peer.to(place.device).train()


def architecture(case: Case) -> models.Arch:
    arch = models.parse(case.model, sizes=SIZES)
    assert arch is not None
    return arch


def flops(case: Case) -> int:
    """Of one training step: 3 x 2 x MACs an image."""
    macs = architecture(case).macs(case.resolution, Head(num_classes=case.num_classes)).total
    return 3 * 2 * macs * case.batch_size


@torch.no_grad()
def check_equal(net: nn.Module, peer: nn.Module, images: Tensor) -> None:
    """Stops where the two are not the same function."""
    ours, theirs = net(images), peer(images).logits
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.std())):
        raise SystemExit(f"error: logits differ from the peer's by up to {float((ours - theirs).abs().max()):.2g}")


def training_step(
    net: nn.Module, logits: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, place: Place
) -> Callable[[], None]:
    # So small a rate that the work is the same in the last round as in the first.
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with place.autocast():
            loss = nn.functional.cross_entropy(logits(images), labels)
        loss.backward()
        optimizer.step()

    return step


def steps(case: Case, place: Place) -> tuple[Callable[[], None], Callable[[], None]]:
    """A warm training step of ours and one of the peer's."""
    torch.manual_seed(0)
    net, peer = build(case, place)
    images = torch.rand(case.batch_size, 3, case.resolution, case.resolution, device=place.device) * 2 - 1
    labels = torch.randint(case.num_classes, (case.batch_size,), device=place.device)
    check_equal(net, peer, images)
    ours = training_step(net, net, images, labels, place)
    theirs = training_step(peer, lambda x: peer(pixel_values=x).logits, images, labels, place)
    for _ in range(WARM_UP):
        ours()
        theirs()
    return ours, theirs


def products(place: Place) -> dict[int, Callable[[], object]]:
    """A warm product of two square matrices of each side, with a place for its result."""
    found = {}
    for side in SIDES[place.device]:
        left, right, out = (torch.rand(side, side, device=place.device).to(PRECISIONS[place.precision]) for _ in "lro")

        def product(left: Tensor = left, right: Tensor = right, out: Tensor = out) -> Tensor:
            return torch.mm(left, right, out=out)

        product()
        found[side] = product
    return found


def measure(case: Case, place: Place, rounds: int) -> Rounds:
    """Ours, peer, products; who of the two is first changes from round to round."""
    ours, theirs = steps(case, place)
    squares = products(place)
    found = Rounds(ours=[], peer=[], products={side: [] for side in squares})
    for index in range(rounds):
        turns = [(found.ours, ours), (found.peer, theirs)]
        for seconds, step in turns if index % 2 == 0 else turns[::-1]:
            seconds.append(place.seconds(step))
        for side, product in squares.items():
            found.products[side].append(place.seconds(product))
    return found


COLUMNS = ("model", "px", "batch", "rounds", "ours", "peer", "ours / peer", "95 %", "images/s", "share of peak")


def row(case: Case, found: Rounds) -> list[str]:
    ratio, low, high = found.ratio()
    seconds = median(found.ours)
    return [
        case.model,
        str(case.resolution),
        str(case.batch_size),
        str(len(found.ours)),
        f"{1e3 * seconds:,.1f} ms",
        f"{1e3 * median(found.peer):,.1f} ms",
        f"{ratio:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{case.batch_size / seconds:,.1f}",
        f"{flops(case) / seconds / found.peak():.0%} of {found.peak() / 1e9:,.0f} GFLOP/s",
    ]


# The kernels behind each kind of work, by parts of their names: of torch's operators on a CPU, of CUDA's on a GPU. The
# first that fits counts: LayerNorm and GELU before the copies, as their names hold no "copy" but attention's "mm".
KINDS = {
    "attention": ("scaled_dot_product", "flash", "fmha"),
    "GELU": ("gelu", "GeluCUDA"),
    "LayerNorm": ("layer_norm", "LayerNorm", "GammaBeta"),
    "optimizer": ("adam", "Adam"),
    "matrix products, with biases": ("mm", "convolution", "gemm", "cutlass", "conv"),
    "copies, sums and fills": ("copy", "cat", "Cat", "aten::add", "aten::sum", "fill", "elementwise", "reduce"),
}


def shares(step: Callable[[], None], place: Place, repeats: int) -> dict[str, float]:
    """Milliseconds of one step by kind of work, "everything else" last."""
    gpu = place.device == "cuda"
    activities = [ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]
    with profile(activities=activities) as recorded:
        for _ in range(repeats):
            step()
        place.wait()
    found = dict.fromkeys([*KINDS, "everything else"], 0.0)
    for event in recorded.key_averages():
        microseconds = event.self_device_time_total if gpu else event.self_cpu_time_total
        found[kind_of(event.key)] += microseconds / 1e3 / repeats
    return found


def kind_of(kernel: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(p in kernel for p in parts)), "everything else")


def profiles(case: Case, place: Place, rounds: int) -> Iterator[list[str]]:
    """A line for each kind of work, of ours and of the peer's."""
    ours, theirs = (shares(step, place, rounds) for step in steps(case, place))
    for kind in ours:
        yield [
            case.model,
            kind,
            *(f"{ms[kind]:.1f} ms" for ms in (ours, theirs)),
            *(f"{ms[kind] / sum(ms.values()):.0%}" for ms in (ours, theirs)),
        ]


PROFILE_COLUMNS = ("model", "work", "ours", "peer", "share of ours", "share of the peer's")


def machine(place: Place) -> str:
    """What a number was measured on and with."""
    threads = torch.get_num_threads()
    name = (
        torch.cuda.get_device_name()
        if place.device == "cuda"
        else f"{cpuinfo.get_cpu_info().get('brand_raw', 'CPU')} "
        f"({torch.backends.cpu.get_cpu_capability()}), {threads} thread{'s' if threads > 1 else ''}"
    )
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{name}, {place.precision}, {place.clock} clock; {versions}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=at_least(1), help="of the CPU; torch's own choice where not given")
    parser.add_argument("--rounds", type=at_least(FEWEST_ROUNDS), help="of every model; each has its own default")
    parser.add_argument("--batch-size", type=at_least(1), help="of every model; each has its own default")
    parser.add_argument("--only", choices=[case.name for case in CASES], help="one model")
    parser.add_argument("--device", choices=list(SIDES), default="cpu")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32", help="bf16: autocast, weights in fp32")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: time on the processor alone, for one thread beside other work",
    )
    parser.add_argument("--profile", action="store_true", help="where the time of a step goes, instead of ratios")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    return parser.parse_args()


def quiet_peer() -> None:
    """Only what the user can act on goes to the screen."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def main() -> None:
    options = arguments()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: torch sees no GPU here\nhint: leave --device at cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    # The threads of a pool count as busy while they wait, and a GPU's work is not on the processor at all.
    if options.clock == "cpu" and (options.device != "cpu" or torch.get_num_threads() > 1):
        raise SystemExit("error: --clock cpu is for one thread on a CPU\nhint: add --threads 1, or take the wall clock")
    quiet_peer()
    place = Place(device=options.device, precision=options.precision, clock=options.clock)
    print(machine(place), flush=True)
    rows: list[list[str]] = []
    for case in CASES:
        if options.only not in (None, case.name):
            continue
        case = replace(case, batch_size=options.batch_size or case.batch_size, rounds=options.rounds or case.rounds)
        rows += (
            profiles(case, place, case.rounds) if options.profile else [row(case, measure(case, place, case.rounds))]
        )
    print(table(PROFILE_COLUMNS if options.profile else COLUMNS, rows, markdown=options.markdown))


if __name__ == "__main__":
    main()
