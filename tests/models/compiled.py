"""What test_compile.py runs: `compiled.py trace`, `compiled.py train NAME`."""

import sys

import torch

from vitscale import models

SIZES = {
    "nano": {"width": 32, "depth": 2, "mlp": 64, "heads": 2},
    "R5": {"blocks": [1], "channels": 8, "groups": 4},
    "R14": {"blocks": [1, 1, 2], "channels": 12, "groups": 4},
}
TRACED: list[tuple[str, dict[str, str]]] = [
    ("ViT-nano/7", {}),
    ("R14+ViT-nano/4", {}),
    ("R14", {}),
    ("ViT-nano/7", {"pool": "gap", "attention": "axial"}),
    ("ViT-nano/7", {"pos_embedding": "relative", "gelu": "tanh"}),
    ("ViT-nano/7", {"pos_embedding": "2d"}),
]


def net_of(name: str, **options: str) -> torch.nn.Module:
    torch.manual_seed(3)
    net = models.create(name, num_classes=4, resolution=28, stem="small", sizes=SIZES, dropout=0.0, **options)
    with torch.no_grad():
        for parameter in net.parameters():  # a head of zeros would hide the rest
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def trace(name: str, options: dict[str, str], recompute: bool) -> None:
    torch._dynamo.reset()
    net = net_of(name, **options)
    net.recompute = recompute
    images = torch.randn(2, 3, 28, 28)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    compiled(images).square().sum().backward()
    found = {key: p.grad.clone() for key, p in net.named_parameters()}
    net.zero_grad()
    net(images).square().sum().backward()
    for key, parameter in net.named_parameters():
        torch.testing.assert_close(found[key], parameter.grad, msg=lambda m, key=key: f"{name} {options} {key}: {m}")


def train(name: str, **settings: bool) -> torch.Tensor:
    """Losses of three steps, and then the logits of a batch."""
    from vitscale.config import Recipe
    from vitscale.train.engine import Engine
    from vitscale.train.objective import Batch, to_device

    net = net_of(name)
    generator = torch.Generator().manual_seed(0)
    losses = []
    engine = Engine(net, Recipe(batch_size=8, steps=3), **settings)
    assert engine.engine.is_compiled == settings.get("compiled", False)
    for _ in range(3):
        images = torch.randint(256, (8, 3, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.randint(4, (8,), generator=generator)
        losses.append(engine.step(Batch(images=images, labels=labels, weights=torch.ones(8)), 1e-3).loss)
    engine.close()
    with torch.no_grad():
        logits = net.forward(to_device(images, torch.device("cpu")))
    return torch.cat([torch.tensor(losses), logits.flatten()])


if __name__ == "__main__":
    if sys.argv[1] == "trace":
        for name, options in TRACED:
            for recompute in (False, True):
                trace(name, options, recompute)
    else:
        from vitscale.train.group import process_group

        with process_group():
            expected = train(sys.argv[2])
            for checkpointing in (False, True):
                found = train(sys.argv[2], compiled=True, activation_checkpointing=checkpointing)
                # Not weight by weight: the bias of the keys moves no output, and Adam makes steps of its rounding.
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
