"""What the networks compute, against independent formulations."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor

from vitscale import models
from vitscale.models.hybrid.net import same_pad
from vitscale.models.standardize import Standardization, standardize
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


def test_average_pooling_reads_all_tokens_and_no_class_token() -> None:
    net = net_of("ViT-nano/4", pool="gap")
    assert net.class_token is None
    image = torch.randn(1, 3, 28, 28)
    tokens = net.patches(image).flatten(2).transpose(1, 2) + net.pos_embedding
    for block in net.blocks:
        tokens = block(tokens)
    expected = F.layer_norm(tokens, (64,), net.norm.weight, net.norm.bias, eps=1e-6).mean(1)
    torch.testing.assert_close(net.features(image), expected)


def test_tanh_gelu_is_its_formula() -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    mlp = net_of("ViT-nano/4", gelu="tanh").blocks[0].mlp
    expected = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(mlp.gelu(x), expected)
    assert not torch.allclose(mlp.gelu(x), net_of("ViT-nano/4").blocks[0].mlp.gelu(x), atol=1e-5)


def test_2d_position_embeddings_say_row_and_column() -> None:
    net = net_of("ViT-nano/4", pos_embedding="2d")
    grid = net.pos_embedding()[0]
    assert torch.equal(grid[0], torch.zeros(64))  # the class token
    for row, column in ((0, 0), (2, 5), (6, 1)):
        place = torch.cat([net.pos_embedding.columns[column], net.pos_embedding.rows[row]])
        assert torch.equal(grid[1 + 7 * row + column], place)


def test_without_position_embeddings_patches_may_change_places() -> None:
    image = torch.randn(1, 3, 28, 28, dtype=torch.float64)
    mirrored = image.unflatten(3, (7, 4)).flip(3).flatten(3)  # patches change places, their pixels stay
    for kind, same in (("none", True), ("1d", False), ("2d", False), ("relative", False)):
        net = net_of("ViT-nano/4", pos_embedding=kind).double()
        assert torch.allclose(net.features(image), net.features(mirrored)) == same


def test_relative_attention_is_its_formula() -> None:
    """arXiv 1803.02155, eq. 4: (q . k + q . r) / sqrt(d), with r of the distance from query to key."""
    attention = net_of("ViT-nano/4", pos_embedding="relative").blocks[0].attention.double()
    x = torch.randn(1, 50, 64, dtype=torch.float64)
    query, key, value = attention.split(x)
    mixed = torch.zeros_like(query)
    for q in range(50):
        scores = [
            (query[0, :, q] * (key[0, :, k] + attention.pos_embedding[49 + k - q])).sum(-1) / math.sqrt(16)
            for k in range(50)
        ]
        weights = torch.stack(scores, dim=-1).softmax(-1)
        mixed[0, :, q] = torch.einsum("hk,hkd->hd", weights, value[0])
    torch.testing.assert_close(attention(x), attention.join(mixed))


def test_axial_attention_sees_rows_then_columns() -> None:
    block = net_of("ViT-nano/4", pool="gap", attention="axial").blocks[0].double()
    x = torch.randn(1, 49, 64, dtype=torch.float64)
    other = x.clone()
    other[0, 7 * 2 + 3] += 1  # row 2, column 3
    changed = (block.along_rows(x.view(7, 7, 64)) != block.along_rows(other.view(7, 7, 64))).any(-1)
    assert changed.nonzero()[:, 0].unique().tolist() == [2]
    assert (block(x) != block(other)).any(-1).all()  # along columns it then reaches every row
    rows = [block.along_rows(row[None])[0] for row in x[0].view(7, 7, 64)]
    columns = [block.along_columns(column[None])[0] for column in torch.stack(rows).transpose(0, 1)]
    torch.testing.assert_close(block(x)[0], torch.stack(columns, dim=1).reshape(49, 64))


@pytest.mark.parametrize(
    ("how", "divisor"),
    [
        ("jax", lambda w: w.std(correction=0) + 1e-5),
        ("timm", lambda w: (w.var(correction=0) + 1e-8).sqrt()),
        ("bit", lambda w: (w.var(correction=0) + 1e-10).sqrt()),
    ],
)
def test_kernels_are_standardised_as_published(how: Standardization, divisor: Callable[[Tensor], Tensor]) -> None:
    weight = 1e-3 * torch.randn(5, 3, 3, 3, dtype=torch.float64)  # so small that eps matters
    expected = torch.stack([(w - w.mean()) / divisor(w) for w in weight])
    torch.testing.assert_close(standardize(weight, how), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "axial"}, "no place for a class token"),
        ({"attention": "axial", "pool": "gap", "pos_embedding": "relative"}, "axial attention takes"),
        ({"pool": "mean"}, "pool is 'mean', not one of 'token', 'gap'"),
        ({"weight_standardization": "bit"}, "has no option 'weight_standardization'"),
        ({"heads": 5}, "5 heads do not divide width 64"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        net_of("ViT-nano/4", **options)


def test_position_embeddings_of_grids_that_are_not_square() -> None:
    embedding = torch.randn(1, 1 + 4 * 6, 5)
    resized = resize_pos_embedding(embedding, (6, 3), old=(4, 6))
    expected = scipy.ndimage.zoom(embedding[0, 1:].reshape(4, 6, 5).numpy(), (6 / 4, 3 / 6, 1), order=1)
    np.testing.assert_allclose(resized[0, 1:].reshape(6, 3, 5).numpy(), expected, atol=1e-5)
    assert torch.equal(resized[:, :1], embedding[:, :1])
    with pytest.raises(ValueError, match="no grid of 4 x 4"):
        resize_pos_embedding(embedding, (6, 3))


def test_bicubic_resizing_keeps_a_plane_a_plane_inside() -> None:
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    plane = torch.stack([rows, columns], dim=-1).reshape(1, 144, 2)
    resized = resize_pos_embedding(plane, (24, 24), class_token=False, method="bicubic").reshape(24, 24, 2)
    centres = (torch.arange(24.0) + 0.5) / 2 - 0.5
    inside = slice(6, 18)
    torch.testing.assert_close(resized[inside, inside, 0], centres[inside, None].expand(12, 12), atol=1e-4, rtol=0)
    torch.testing.assert_close(resized[inside, inside, 1], centres[None, inside].expand(12, 12), atol=1e-4, rtol=0)


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
