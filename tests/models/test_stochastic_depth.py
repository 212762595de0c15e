"""Stochastic depth: which branches are left out, how often, and that their mean stays."""

import pytest
import torch

from vitscale import models
from vitscale.models.stochastic_depth import DropBranch

SIZES = {
    "nano": {"width": 32, "depth": 3, "mlp": 64, "heads": 2},
    "R8": {"blocks": [1, 1], "channels": 8, "groups": 4},
}
NAMES = ["ViT-nano/4", "R8+ViT-nano/4", "R8"]


def net_of(name: str, rate: float, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    net = models.create(name, num_classes=5, resolution=28, stem="small", sizes=SIZES, stochastic_depth=rate, **options)
    torch.nn.init.normal_(net.head.weight if hasattr(net, "head") else net.vit.head.weight)
    return net


@pytest.mark.parametrize("name", NAMES)
def test_rates_grow_linearly_with_depth(name: str) -> None:
    blocks = net_of(name, 0.4).residual_blocks
    for i, block in enumerate(blocks):
        rates = [module.rate for module in block.modules() if isinstance(module, DropBranch)]
        assert rates == pytest.approx([0.4 * i / (len(blocks) - 1)] * len(rates))
        assert rates


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_and_rate_0_leave_nothing_out(name: str) -> None:
    check_nothing_left_out(name)


def test_axial_attention_has_it_too() -> None:
    check_nothing_left_out("ViT-nano/4", attention="axial", pool="gap")


def check_nothing_left_out(name: str, **options: str) -> None:
    images = torch.randn(3, 3, 28, 28)
    plain, dropping = net_of(name, 0.0, **options), net_of(name, 0.9, **options)
    assert torch.equal(plain.train()(images), dropping.eval()(images))
    state = torch.get_rng_state()
    plain.train()(images)
    assert torch.equal(torch.get_rng_state(), state)  # it draws nothing
    assert not torch.equal(plain(images), dropping.train()(images))


def test_a_branch_is_left_out_for_whole_images_and_its_mean_stays() -> None:
    torch.manual_seed(0)
    drop = DropBranch()
    drop.rate = 0.25
    branch = torch.ones(20_000, 3, 2)
    out = drop(branch)
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (out == out[:, :1, :1]).all()
    assert float((out[:, 0, 0] == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)


def test_activation_checkpointing_repeats_the_draws() -> None:
    images = torch.randn(4, 3, 28, 28)
    gradients = []
    for recompute in (False, True):
        net = net_of("ViT-nano/4", 0.5).train()
        net.recompute = recompute
        torch.manual_seed(1)
        net(images).square().sum().backward()
        gradients.append([p.grad for p in net.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
