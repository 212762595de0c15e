"""DeepSpeed's step beside a loop written out in torch."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from vitscale import models
from vitscale.config import Recipe
from vitscale.errors import VitscaleError
from vitscale.train.engine import Engine
from vitscale.train.objective import Batch, per_image_loss, to_device
from vitscale.train.optim import make_optimizer

SIZES = {
    "nano": {"width": 32, "depth": 1, "mlp": 64, "heads": 2},
    "R5": {"blocks": [1], "channels": 8, "groups": 4},
}
NAMES = ["ViT-nano/7", "R5+ViT-nano/7", "R5"]
RECIPE = Recipe(batch_size=8, steps=5, weight_decay=0.3, grad_clip=0.5, label_smoothing=0.1)


def net_of(name: str) -> nn.Module:
    torch.manual_seed(3)
    return models.create(name, num_classes=4, resolution=28, stem="small", sizes=SIZES)


def batches(count: int, bad: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.ones(8)
    weights[:bad] = 0
    return [
        Batch(
            images=torch.randint(256, (8, 3, 28, 28), dtype=torch.uint8, generator=generator),
            labels=torch.randint(4, (8,), generator=generator),
            weights=weights,
        )
        for _ in range(count)
    ]


def plain_loop(net: nn.Module, data: list[Batch], lr: float) -> list[float]:
    """AdamW, clipping, decay on matrices only, written without anything of the engine."""
    decayed = [
        p for n, p in net.named_parameters() if p.ndim > 1 and "pos_embedding" not in n and "class_token" not in n
    ]
    kept = [p for p in net.parameters() if not any(p is d for d in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    losses = []
    for batch in data:
        good = batch.weights > 0
        images = batch.images.float().div(127.5).sub(1.0)
        each = nn.functional.cross_entropy(net(images), batch.labels, reduction="none", label_smoothing=0.1)
        loss = (each * batch.weights).sum() / good.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [0, 3])
def test_five_steps_equal_a_plain_torch_loop(name: str, bad: int) -> None:
    ours, plain, data = net_of(name), net_of(name), batches(5, bad)
    engine = Engine(ours, RECIPE)
    losses = [engine.step(batch, 1e-2).loss for batch in data]
    engine.close()
    assert losses == pytest.approx(plain_loop(plain, data, 1e-2), rel=1e-6)
    for (key, a), b in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        # Softmax does not see the keys' bias: its gradient is rounding noise, which Adam makes as large as any.
        part = slice(None, 32) if key.endswith("qkv.bias") else slice(None)
        torch.testing.assert_close(a[part], b[part], rtol=1e-5, atol=1e-6, msg=key)


def mixed_loop(net: nn.Module, batch: Batch, share: float, bad: int) -> float:
    """The loss of a blended batch, image by image."""
    images, total = to_device(batch.images, torch.device("cpu")), torch.zeros(())
    count = len(batch.labels)
    for i in range(count):
        j = (i + 1) % count
        if batch.weights[i] == 0:
            continue
        kept = share if batch.weights[j] > 0 else 1.0
        logits = net((kept * images[i] + (1 - kept) * images[j])[None])
        for weight, label in ((kept, batch.labels[i]), (1 - kept, batch.labels[j])):
            total = total + weight * per_image_loss(logits, label[None], RECIPE)[0]
    return float(total / (count - bad))


@pytest.mark.parametrize("micro_batch", [8, 2])
@pytest.mark.parametrize("bad", [0, 2])
def test_mixup_blends_each_image_with_the_next_of_the_batch_unless_that_is_bad(bad: int, micro_batch: int) -> None:
    batch = replace(batches(1, bad)[0], share=0.7)
    net = net_of("ViT-nano/7")
    nn.init.normal_(net.head.weight, std=0.2)
    with torch.no_grad():
        expected = mixed_loop(net.train(), batch, 0.7, bad)
    engine = Engine(net, RECIPE, micro_batch=micro_batch)
    followed = {
        name: torch.cat([getattr(batch, name), getattr(batch, name)[:1]]) for name in ("images", "labels", "weights")
    }
    loss = engine.step(replace(batch, **followed), 1e-3).loss
    engine.close()
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("micro_batch", [2, 4])
def test_micro_batches_change_nothing_but_rounding(micro_batch: int) -> None:
    whole, parts, data = net_of("ViT-nano/7"), net_of("ViT-nano/7"), batches(3, bad=1)
    one, several = Engine(whole, RECIPE), Engine(parts, RECIPE, micro_batch=micro_batch)
    for batch in data:
        at_once, in_parts = one.step(batch, 1e-3), several.step(batch, 1e-3)
        assert in_parts.loss == pytest.approx(at_once.loss, rel=1e-5)
        assert in_parts.grad_norm == pytest.approx(at_once.grad_norm, rel=1e-4)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)
    one.close()
    several.close()


@pytest.mark.parametrize("name", NAMES)
def test_activation_checkpointing_changes_nothing(name: str) -> None:
    """Not a bit, with dropout too: its draws are repeated."""
    trained = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        net = models.create(name, num_classes=4, resolution=28, stem="small", sizes=SIZES, dropout=0.2)
        engine = Engine(net, RECIPE, activation_checkpointing=checkpointing)
        losses = [engine.step(batch, 0.01).loss for batch in batches(3)]
        engine.close()
        trained.append((losses, [p.detach().clone() for p in net.parameters()]))
    (plain, before), (checkpointed, after) = trained
    assert plain == checkpointed
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_micro_batch_must_divide_the_global_batch() -> None:
    with pytest.raises(VitscaleError, match="3 does not divide the global batch 8") as caught:
        Engine(net_of("R5"), RECIPE, micro_batch=3)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", NAMES)
def test_decay_is_on_matrices_and_kernels_only(name: str) -> None:
    net = net_of(name)
    decayed = {id(p) for p in make_optimizer(net, RECIPE, "adamw").param_groups[0]["params"]}
    free = [n for n, p in net.named_parameters() if id(p) not in decayed]
    assert all(n.endswith(("bias", "pos_embedding", "class_token")) or "norm" in n for n in free)
    assert not any("norm" in n or n.endswith("bias") for n, p in net.named_parameters() if id(p) in decayed)


AVERAGED = replace(RECIPE, ema=0.9)


def started(name: str, stage: int, recipe: Recipe = AVERAGED, *, offload: bool = False) -> Engine:
    return Engine(net_of(name), recipe, zero_stage=stage, offload=offload)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_every_zero_stage_equals_stage_0_to_rounding(name: str, stage: int, offload: bool) -> None:
    one, other = started(name, 0), started(name, stage, offload=offload)
    for batch in batches(5, bad=1):
        plain, cut = one.step(batch, 1e-3), other.step(batch, 1e-3)
        assert cut.loss == pytest.approx(plain.loss, rel=1e-5)
        assert cut.grad_norm == pytest.approx(plain.grad_norm, rel=1e-4)
    for theirs, ours in (
        (other.weights(), one.weights()),
        (other.averaged_weights(), one.averaged_weights()),
        (other.state(), one.state()),
    ):
        assert theirs.keys() == ours.keys()
        # The bias of attention's keys has no gradient but rounding, which Adam makes as large as any.
        for key in (key for key in ours if "qkv.bias" not in key):
            torch.testing.assert_close(theirs[key], ours[key], rtol=1e-3, atol=1e-5, msg=key)
    one.close()
    other.close()


def test_one_at_stage_3_moves_no_bit_of_those_after_it() -> None:
    """DeepSpeed leaves a linear layer of its own in torch, where features are computed without an engine, too."""
    trained, linear = [], nn.functional.linear
    for stage in (0, 3, 0):
        torch.manual_seed(3)
        wide = {**SIZES, "wide": {"width": 192, "depth": 2, "mlp": 768, "heads": 2}}
        net = models.create("ViT-wide/7", num_classes=4, resolution=28, stem="small", sizes=wide)
        engine = Engine(net, RECIPE, zero_stage=stage)
        for batch in batches(3):
            engine.step(batch, 1e-2)
        trained.append(engine.weights())
        engine.close()
        assert nn.functional.linear is linear
    first, _, last = trained
    assert all(torch.equal(first[key], last[key]) for key in first)


def copied(name: str, source: Engine, stage: int, updates: int) -> Engine:
    net = net_of(name)
    net.load_state_dict(source.weights())
    target = Engine(net, source.recipe, zero_stage=stage, offload=source.offload)
    target.load_state(source.state(), source.averaged_weights(), updates)
    return target


@pytest.mark.parametrize(("stage", "offload"), [(0, False), *itertools.product((1, 2, 3), (False, True))])
@pytest.mark.parametrize("name", NAMES)
def test_state_by_name_continues_to_the_bit(name: str, stage: int, offload: bool) -> None:
    data = batches(6)
    undisturbed, before = (started(name, stage, offload=offload) for _ in range(2))
    expected = [undisturbed.step(batch, 1e-2) for batch in data]
    losses = [before.step(batch, 1e-2) for batch in data[:3]]
    after = copied(name, before, stage, updates=3)
    losses += [after.step(batch, 1e-2) for batch in data[3:]]
    assert losses == expected
    for ours, theirs in (
        (after.weights(), undisturbed.weights()),
        (after.averaged_weights(), undisturbed.averaged_weights()),
        (after.state(), undisturbed.state()),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    for one in (undisturbed, before, after):
        one.close()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_sgd_continues_to_the_bit_at_every_stage(stage: int) -> None:
    data = batches(4)
    undisturbed, before = (Engine(net_of("R5"), RECIPE, optimizer="sgd", zero_stage=stage) for _ in range(2))
    for batch in data:
        undisturbed.step(batch, 1e-2)
    for batch in data[:2]:
        before.step(batch, 1e-2)
    net = net_of("R5")
    net.load_state_dict(before.weights())
    after = Engine(net, RECIPE, optimizer="sgd", zero_stage=stage)
    after.load_state(before.state(), {}, updates=2)
    for batch in data[2:]:
        after.step(batch, 1e-2)
    ours, theirs = after.weights(), undisturbed.weights()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for one in (undisturbed, before, after):
        one.close()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_average_is_that_of_a_plain_loop_and_what_is_evaluated(stage: int) -> None:
    """And training goes on with the weights themselves."""
    data = batches(4)
    plain, engine = started("ViT-nano/7", 0, RECIPE), started("ViT-nano/7", stage)
    average = plain.weights()
    for batch in data[:3]:
        plain.step(batch, 1e-2)
        engine.step(batch, 1e-2)
        average = {key: average[key] + (1 - 0.9) * (tensor - average[key]) for key, tensor in plain.weights().items()}
    found = engine.averaged_weights()
    # The bias of attention's keys has no gradient but rounding, which Adam makes as large as any.
    for key in (key for key in average if "qkv.bias" not in key):
        torch.testing.assert_close(found[key], average[key], rtol=1e-4, atol=1e-6)
    reference = net_of("ViT-nano/7")
    reference.load_state_dict(found)
    images = to_device(data[0].images, torch.device("cpu"))
    with torch.no_grad(), engine.for_evaluation() as network:
        torch.testing.assert_close(network(images), reference.eval()(images), rtol=1e-5, atol=1e-6)
    assert engine.step(data[3], 1e-2).loss == pytest.approx(plain.step(data[3], 1e-2).loss, rel=1e-5)
    plain.close()
    engine.close()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_that_is_not_finite_changes_nothing(stage: int) -> None:
    engine, data = started("ViT-nano/7", stage), batches(3)
    engine.step(data[0], 1e-3)
    before = engine.weights(), engine.averaged_weights(), engine.state()
    broken = replace(data[1], weights=torch.full((8,), float("inf")))
    assert not engine.step(broken, 1e-3).finite
    after = engine.weights(), engine.averaged_weights(), engine.state()
    for ours, theirs in zip(after, before, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert engine.step(data[2], 1e-3).finite
    assert not torch.equal(engine.weights()["head.weight"], before[0]["head.weight"])
    engine.close()


HALF = replace(AVERAGED, precision="bf16")


def run_of(recipe: Recipe, stage: int, count: int = 4) -> tuple[list[float], Engine]:
    engine = started("ViT-nano/7", stage, recipe)
    return [engine.step(batch, 1e-3).loss for batch in batches(count)], engine


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_is_of_matrix_products_alone_at_every_stage(stage: int) -> None:
    """Losses are those of a plain loop under autocast; weights, averages and moments stay in fp32."""
    net = net_of("ViT-nano/7")
    optimizer = make_optimizer(net, HALF, "adamw")
    expected = []
    for parameters in optimizer.param_groups:
        parameters["lr"] = 1e-3
    for batch in batches(4):
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(to_device(batch.images, torch.device("cpu")))
        loss = per_image_loss(logits.float(), batch.labels, HALF).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), HALF.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    losses, engine = run_of(HALF, stage)
    exact, other = run_of(AVERAGED, stage)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses != pytest.approx(exact, rel=1e-6), "in fp32 they are others"
    held = [*engine.weights().values(), *engine.averaged_weights().values(), *engine.state().values()]
    assert {tensor.dtype for tensor in held} == {torch.float32}
    engine.close()
    other.close()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_continues_to_the_bit_at_every_stage(stage: int) -> None:
    data = batches(4)
    undisturbed, before = (started("ViT-nano/7", stage, HALF) for _ in range(2))
    expected = [undisturbed.step(batch, 1e-3) for batch in data]
    losses = [before.step(batch, 1e-3) for batch in data[:2]]
    after = copied("ViT-nano/7", before, stage, updates=2)
    losses += [after.step(batch, 1e-3) for batch in data[2:]]
    assert losses == expected
    assert all(torch.equal(tensor, undisturbed.weights()[name]) for name, tensor in after.weights().items())
    for one in (undisturbed, before, after):
        one.close()
