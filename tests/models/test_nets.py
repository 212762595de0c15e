"""What the networks compute, against independent formulations."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from vitscale import models
from vitscale.models.hybrid.net import same_pad
from vitscale.models.vit.net import Net as ViT
from vitscale.models.vit.positions import resize_pos_embedding

SIZES = {
    "nano": {"width": 64, "depth": 2, "mlp": 128, "heads": 4},
    "R5": {"blocks": [1], "channels": 8, "groups": 4},
    "R14": {"blocks": [1, 1, 2], "channels": 12, "groups": 4},
}
NAMES = ["ViT-nano/4", "R5+ViT-nano/4", "R14"]


def net_of(name: str, seed: int = 0, **options: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    return models.create(name, num_classes=5, resolution=28, stem="small", sizes=SIZES, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_new_head_gives_zeros_and_its_bias(name: str) -> None:
    images = torch.randn(2, 3, 28, 28)
    assert torch.equal(net_of(name)(images), torch.zeros(2, 5))
    assert torch.equal(net_of(name, head_bias=-10.0)(images), torch.full((2, 5), -10.0))


@pytest.mark.parametrize("name", NAMES)
def test_initialisation_follows_the_seed(name: str) -> None:
    one, same, other = net_of(name).state_dict(), net_of(name).state_dict(), net_of(name, seed=1).state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_vit_equals_a_formula_written_out_in_numpy() -> None:
    net = net_of("ViT-nano/4", pre_logits=64).double().eval()
    assert isinstance(net, ViT)
    image = torch.randn(1, 3, 28, 28, dtype=torch.float64)
    w = {name: tensor.detach().numpy() for name, tensor in net.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    pixels = image.numpy()[0].reshape(3, 7, 4, 7, 4).transpose(1, 3, 0, 2, 4).reshape(49, 48)
    x = pixels @ w["patches.weight"].reshape(64, 48).T + w["patches.bias"]
    x = np.concatenate([w["class_token"][0], x]) + w["pos_embedding"][0]
    for block in range(2):
        name = f"blocks.{block}"
        query, key, value = np.split(dense(norm(x, f"{name}.norm1"), f"{name}.attention.qkv"), 3, axis=1)
        heads = []
        for head in range(4):
            part = slice(16 * head, 16 * head + 16)
            scores = query[:, part] @ key[:, part].T / math.sqrt(16)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(weights / weights.sum(1, keepdims=True) @ value[:, part])
        x = x + dense(np.concatenate(heads, axis=1), f"{name}.attention.out")
        hidden = dense(norm(x, f"{name}.norm2"), f"{name}.mlp.up")
        gelu = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        x = x + dense(gelu, f"{name}.mlp.down")
    expected = np.tanh(dense(norm(x[0], "norm"), "pre_logits"))
    np.testing.assert_allclose(net.features(image)[0].detach().numpy(), expected, atol=1e-10)


def test_position_embeddings_are_resized_as_scipy_zooms() -> None:
    embedding = torch.randn(1, 1 + 49, 6)
    resized = resize_pos_embedding(embedding, (10, 12))
    grid = embedding[0, 1:].reshape(7, 7, 6).numpy()
    expected = scipy.ndimage.zoom(grid, (10 / 7, 12 / 7, 1), order=1)
    np.testing.assert_allclose(resized[0, 1:].reshape(10, 12, 6).numpy(), expected, atol=1e-5)
    assert torch.equal(resized[:, :1], embedding[:, :1])
    assert torch.equal(resize_pos_embedding(embedding, (7, 7)), embedding)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "out"), [(28, 3, 1, 28), (29, 3, 2, 15), (224, 7, 2, 112), (5, 1, 2, 3)]
)
def test_same_padding_keeps_the_size_but_for_the_stride(size: int, kernel: int, stride: int, out: int) -> None:
    x = torch.randn(1, 2, size, size)
    y = torch.nn.functional.conv2d(same_pad(x, kernel, stride), torch.randn(3, 2, kernel, kernel), stride=stride)
    assert y.shape[-2:] == (out, out)


@pytest.mark.parametrize("name", ["R5+ViT-nano/4", "R14"])
def test_kernels_are_standardised(name: str) -> None:
    """Scaling and shifting each kernel changes nothing."""
    net = net_of(name).double().eval()
    image = torch.randn(2, 3, 28, 28, dtype=torch.float64)
    before = net.features(image)  # type: ignore[operator]
    with torch.no_grad():
        for module in net.modules():
            if type(module).__name__ == "StdConv2d":
                module.weight.mul_(7.0).add_(3.0)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(net.features(image), before, atol=1e-3, rtol=1e-3)  # type: ignore[operator]
