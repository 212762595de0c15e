"""What only a GPU can show: runs there resume to the bit, stages agree, what is said to fit does.

CI has no GPU, so these are skipped there: `make test-gpu` runs them on a machine that has one.
"""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from stopping import StopAfter
from vitscale import models
from vitscale.config import Recipe
from vitscale.errors import DONE, INTERRUPTED
from vitscale.models.counts import Head
from vitscale.peaks import gpu_peak
from vitscale.train import checkpoint, group, keeping
from vitscale.train.capacity import Work, choose
from vitscale.train.device import is_out_of_memory
from vitscale.train.engine import Engine
from vitscale.train.objective import Batch, Classification
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.worker import work

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

SIZES = {
    "wide": {"width": 768, "depth": 3, "mlp": 3072, "heads": 12},
    "R14": {"blocks": [1, 1, 2], "channels": 32, "groups": 8},
}
CLASSES, RESOLUTION = 100, 224


def net_of(name: str = "ViT-wide/16", **options: str) -> torch.nn.Module:
    torch.manual_seed(3)
    net = models.create(name, num_classes=CLASSES, resolution=RESOLUTION, sizes=SIZES, **options)
    for name_, parameter in net.named_parameters():
        if name_.endswith("head.weight"):  # it starts at 0, and then all losses agree
            torch.nn.init.normal_(parameter, std=0.02)
    return net


def batch_of(seed: int, images: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.randint(256, (images, 3, RESOLUTION, RESOLUTION), dtype=torch.uint8, generator=generator),
        labels=torch.randint(CLASSES, (images,), generator=generator),
        weights=torch.ones(images),
    )


def trained(
    net: torch.nn.Module, precision: str, stage: int = 0, steps: int = 5
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights after some steps."""
    engine = Engine(net, Recipe(batch_size=64, steps=steps, precision=precision), zero_stage=stage)
    losses = [engine.step(batch_of(seed, 64), 1e-4).loss for seed in range(steps)]
    weights = engine.weights()
    engine.close()
    return losses, weights


@pytest.mark.parametrize(
    ("precision", "stage", "objective"),
    [
        *((precision, stage, "classification") for precision in ("fp32", "bf16") for stage in range(4)),
        ("bf16", 0, "masked-patch"),
    ],
)
def test_an_interrupted_run_resumes_to_the_bit(
    rundir: Callable[..., RunDir], precision: str, stage: int, objective: str
) -> None:
    settings = (f"recipe.precision={precision}", "recipe.ema=0.8", f"recipe.objective={objective}")
    undisturbed, resumed = (rundir(*settings, runs=name, zero_stage=stage) for name in "ab")
    assert work(undisturbed, Stop()) == DONE
    assert work(resumed, StopAfter(4)) == INTERRUPTED
    assert work(resumed, Stop()) == DONE
    for name in (checkpoint.MODEL, checkpoint.AVERAGES, checkpoint.OPTIMIZER):
        last = keeping.newest(resumed.folder), keeping.newest(undisturbed.folder)
        ours, theirs = (load_file(folder / name) for folder in last if folder is not None)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    last_step = [event for event in undisturbed.events() if event["event"] == "step"][-1]
    known = gpu_peak(torch.cuda.get_device_name(), precision)
    assert (last_step["mfu"] is None) == (known is None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ViT-wide/16", {}),
        ("R14+ViT-wide/16", {}),
        ("R14", {}),
        ("ViT-wide/16", {"attention": "axial", "pool": "gap"}),
        ("ViT-wide/16", {"pos_embedding": "relative"}),
    ],
)
def test_the_same_steps_give_the_same_bits(name: str, options: dict[str, str], precision: str) -> None:
    (some, one), (others, other) = (trained(net_of(name, **options), precision) for _ in range(2))
    assert some == others
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_trains_as_stage_0(precision: str, stage: int) -> None:
    plain, _ = trained(net_of(), precision)
    losses, _ = trained(net_of(), precision, stage)
    assert losses == pytest.approx(plain, rel=2e-3 if precision == "bf16" else 1e-5)


@pytest.mark.parametrize("name", ["ViT-wide/16", "R14+ViT-wide/16", "R14"])
def test_a_gpu_computes_fp32_as_a_processor_does(name: str) -> None:
    """TF32, which torch takes for convolutions, is off by a thousandth."""
    data = batch_of(0, 8)
    on_gpu, alone = net_of(name).cuda(), net_of(name)
    losses = []
    for net, device in ((on_gpu, torch.device("cuda")), (alone, torch.device("cpu"))):
        loss = Classification(Recipe(batch_size=8))(net, data, slice(0, 8), device).mean()
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for (parameter, ours), theirs in zip(on_gpu.named_parameters(), alone.parameters(), strict=True):
        if ".qkv.bias" in parameter or name != "ViT-wide/16":
            continue  # the keys' gradient is rounding alone; standardised kernels take most of theirs away again
        assert ours.grad is not None
        assert theirs.grad is not None
        assert (ours.grad.cpu() - theirs.grad).norm() < 1e-4 * theirs.grad.norm(), parameter


def test_what_is_chosen_fits() -> None:
    """The most that a step of the engine holds is at most what it was said to be allowed."""
    recipe, net = Recipe(batch_size=512, steps=2, precision="bf16"), net_of()
    arch = models.parse("ViT-wide/16", sizes=SIZES)
    assert arch is not None
    work_of_it = Work(
        net=net,
        recipe=recipe,
        objective=Classification(recipe),
        blank=lambda images: batch_of(0, images),
        activations=lambda recompute: arch.activations(RESOLUTION, Head(num_classes=CLASSES), recompute=recompute),
    )
    asked = {"micro_batch": None, "zero_stage": 0, "activation_checkpointing": None, "offload": False}
    limit = 6 * 2**30
    settings = choose(work_of_it, asked, limit, Stop())
    assert 8 <= settings.micro_batch < 512
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    engine = Engine(
        net,
        recipe,
        micro_batch=settings.micro_batch,
        activation_checkpointing=settings.activation_checkpointing,
    )
    for seed in range(2):
        engine.step(batch_of(seed, 512), 1e-4)
    held = torch.cuda.max_memory_allocated()
    engine.close()
    assert 0.4 * limit < held <= limit


def test_a_full_gpu_is_told_from_other_errors() -> None:
    free, _ = torch.cuda.mem_get_info(group.device())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2 * free, dtype=torch.uint8, device=group.device())
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
