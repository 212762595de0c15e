"""Networks that others wrote give the same logits from the same weights, in float64 and at two resolutions.

Their random weights are brought into a published layout here, by rules of this file alone, and read from there.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # a test never asks the network

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    BitConfig,
    BitForImageClassification,
    BitModel,
    ViTConfig,
    ViTForImageClassification,
)

from vitscale import models
from vitscale.errors import USAGE, VitscaleError
from vitscale.models import convert

SIZES = {
    "nano": {"width": 48, "depth": 2, "mlp": 80, "heads": 3},
    "R11": {"blocks": [1, 2], "channels": 8, "groups": 4},
}
VIT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 80, "num_labels": 5}
BIT = {"embedding_size": 8, "hidden_sizes": [32, 64], "depths": [1, 2], "num_groups": 4, "num_labels": 5}
Arrays = dict[str, np.ndarray]


@torch.no_grad()
def randomise(net: nn.Module) -> nn.Module:
    """Every parameter is drawn anew, norms and heads too, which start as ones and zeros; then float64 and no dropout.

    Kernels are so small that the epsilon of their standardisation matters.
    """
    net.double().eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim == 4 and "projection" not in name:
            parameter.copy_(1e-3 * noise)
        else:
            parameter.copy_(0.2 * noise + (parameter.ndim == 1 and "norm" in name and name.endswith("weight")))
    return net


def vit_of(resolution: int, **options: Any) -> nn.Module:
    config = ViTConfig(**VIT, image_size=resolution, layer_norm_eps=1e-6, **options)
    return randomise(ViTForImageClassification(config))


def images_of(resolution: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, 3, resolution, resolution, generator=generator, dtype=torch.float64) * 2 - 1


def ours(arch: models.Arch, resolution: int, state: dict[str, Tensor]) -> nn.Module:
    net = models.build(arch, num_classes=5, resolution=resolution).double().eval()
    net.load_state_dict(state)
    return net


def arch_of(name: str) -> models.Arch:
    arch = models.parse(name, sizes=SIZES)
    assert arch is not None
    return arch


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1  # weights that hardly matter would agree whatever was done to them
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def vit_arrays(net: nn.Module) -> Arrays:
    """A Hugging Face ViT in the layout of the JAX code: kernels are [in, out], heads have an axis."""
    width, heads = net.config.hidden_size, net.config.num_attention_heads
    out: Arrays = {}

    def put(key: str, layer: nn.Module) -> None:
        weight = layer.weight.detach().numpy()
        if isinstance(layer, nn.LayerNorm):
            out[f"{key}/scale"] = weight
        else:
            out[f"{key}/kernel"] = np.transpose(weight, (2, 3, 1, 0)) if weight.ndim == 4 else weight.T
        out[f"{key}/bias"] = layer.bias.detach().numpy()

    embeddings = net.vit.embeddings
    out["cls"] = embeddings.cls_token.detach().numpy()
    out["Transformer/posembed_input/pos_embedding"] = embeddings.position_embeddings.detach().numpy()
    put("embedding", embeddings.patch_embeddings.projection)
    for index, layer in enumerate(net.vit.layers):
        block = f"Transformer/encoderblock_{index}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        put(f"{block}/LayerNorm_0", layer.layernorm_before)
        for name in ("query", "key", "value"):
            part = getattr(layer.attention, f"{name[0]}_proj")
            kernel = part.weight.detach().numpy().reshape(heads, width // heads, width)
            out[f"{attention}/{name}/kernel"] = np.transpose(kernel, (2, 0, 1))
            out[f"{attention}/{name}/bias"] = part.bias.detach().numpy().reshape(heads, width // heads)
        put(f"{attention}/out", layer.attention.o_proj)
        out[f"{attention}/out/kernel"] = out[f"{attention}/out/kernel"].reshape(heads, width // heads, width)
        put(f"{block}/LayerNorm_2", layer.layernorm_after)
        put(f"{block}/MlpBlock_3/Dense_0", layer.mlp.fc1)
        put(f"{block}/MlpBlock_3/Dense_1", layer.mlp.fc2)
    put("Transformer/encoder_norm", net.vit.layernorm)
    put("head", net.classifier)
    return out


def hwio(conv: nn.Module) -> np.ndarray:
    return np.transpose(conv.weight.detach().numpy(), (2, 3, 1, 0))


def bit_arrays(net: nn.Module) -> Arrays:
    """A pre-activation BiT of Hugging Face's in the layout of arXiv 1912.11370."""

    def norm(key: str, layer: nn.Module) -> Arrays:
        return {f"{key}/gamma": layer.weight.detach().numpy(), f"{key}/beta": layer.bias.detach().numpy()}

    out = {"resnet/root_block/standardized_conv2d/kernel": hwio(net.bit.embedder.convolution)}
    for stage, layers in enumerate(net.bit.encoder.stages, 1):
        for unit, layer in enumerate(layers.layers, 1):
            key = f"resnet/block{stage}/unit{unit:02d}"
            for index, letter in enumerate("abc", 1):
                out[f"{key}/{letter}/standardized_conv2d/kernel"] = hwio(getattr(layer, f"conv{index}"))
                out |= norm(f"{key}/{letter}/group_norm", getattr(layer, f"norm{index}"))
            if layer.downsample is not None:
                out[f"{key}/a/proj/standardized_conv2d/kernel"] = hwio(layer.downsample.conv)
    head = net.classifier[1]
    kernel = head.weight.detach().numpy().T[None, None]
    out |= {"resnet/head/conv2d/kernel": kernel, "resnet/head/conv2d/bias": head.bias.detach().numpy()}
    return out | norm("resnet/group_norm", net.bit.norm)


def backbone_arrays(net: nn.Module) -> Arrays:
    """A post-activation BiT of Hugging Face's as the backbone in a hybrid's file."""

    def norm(key: str, layer: nn.Module) -> Arrays:
        shape = (1, 1, 1, -1)
        return {
            f"{key}/scale": layer.weight.detach().numpy().reshape(shape),
            f"{key}/bias": layer.bias.detach().numpy().reshape(shape),
        }

    out = {"conv_root/kernel": hwio(net.embedder.convolution), **norm("gn_root", net.embedder.norm)}
    for stage, layers in enumerate(net.encoder.stages, 1):
        for unit, layer in enumerate(layers.layers, 1):
            key = f"block{stage}/unit{unit}"
            for index in (1, 2, 3):
                out[f"{key}/conv{index}/kernel"] = hwio(getattr(layer, f"conv{index}"))
                out |= norm(f"{key}/gn{index}", getattr(layer, f"norm{index}"))
            if layer.downsample is not None:
                out[f"{key}/conv_proj/kernel"] = hwio(layer.downsample.conv)
                out |= norm(f"{key}/gn_proj", layer.downsample.norm)
    return out


def vit_timm(net: nn.Module) -> dict[str, Tensor]:
    """A Hugging Face ViT under timm's names: q, k and v are one layer."""
    names = {
        "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "vit.layernorm": "norm",
        "vit.layers": "blocks",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.o_proj": "attn.proj",
        "classifier": "head",
    }
    state = net.state_dict()
    out = renamed({key: value for key, value in state.items() if not re.search(r"\.[qkv]_proj\.", key)}, names)
    for index in range(net.config.num_hidden_layers):
        for part in ("weight", "bias"):
            parts = [state[f"vit.layers.{index}.attention.{name}_proj.{part}"] for name in "qkv"]
            out[f"blocks.{index}.attn.qkv.{part}"] = torch.cat(parts)
    return out


def bit_timm(net: nn.Module) -> dict[str, Tensor]:
    """A BiT of Hugging Face's under timm's names, whose head is a convolution."""
    names = {
        "bit.": "",
        "embedder.convolution": "stem.conv",
        "encoder.": "",
        "layers": "blocks",
        "classifier.1": "head.fc",
    }
    out = renamed(net.state_dict(), names)
    return out | {"head.fc.weight": out["head.fc.weight"][:, :, None, None]}


def backbone_timm(net: nn.Module) -> dict[str, Tensor]:
    names = {"embedder.convolution": "stem.conv", "embedder.norm": "stem.norm", "encoder.": "", "layers": "blocks"}
    return {f"patch_embed.backbone.{key}": value for key, value in renamed(net.state_dict(), names).items()}


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    out = {}
    for key, value in state.items():
        for theirs, name in names.items():
            key = key.replace(theirs, name)
        out[key] = value
    return out


def read(tmp_path: Path, arrays: Arrays, arch: models.Arch) -> dict[str, Tensor]:
    np.savez(tmp_path / "theirs.npz", **arrays)
    return convert.from_npz(tmp_path / "theirs.npz", arch)


@pytest.mark.parametrize("resolution", [16, 28])
def test_vit_equals_transformers(resolution: int, tmp_path: Path) -> None:
    theirs, arch, images = vit_of(resolution, patch_size=4), arch_of("ViT-nano/4"), images_of(resolution)
    state = read(tmp_path, vit_arrays(theirs), arch)
    assert_close(ours(arch, resolution, state)(images), theirs(images).logits)
    check_timm(vit_timm(theirs), state, arch)
    check_npz(vit_arrays(theirs), state, arch)


@pytest.mark.parametrize("resolution", [33, 64])
def test_resnet_equals_transformers(resolution: int, tmp_path: Path) -> None:
    theirs, images = randomise(BitForImageClassification(BitConfig(**BIT))), images_of(resolution)
    arch = models.with_options(arch_of("R11"), {"weight_standardization": "timm"})
    state = read(tmp_path, bit_arrays(theirs), arch)
    assert_close(ours(arch, resolution, state)(images), theirs(images).logits)
    check_timm(bit_timm(theirs), state, arch)
    check_npz(bit_arrays(theirs), state, arch)


@pytest.mark.parametrize("resolution", [32, 64])
def test_hybrid_equals_transformers(resolution: int, tmp_path: Path) -> None:
    config = BitConfig(**BIT, layer_type="bottleneck", global_padding="SAME", embedding_dynamic_padding=True)
    backbone, images = randomise(BitModel(config)), images_of(resolution)
    options = {"weight_standardization": "timm", "group_norm_eps": 1e-5}
    arch = models.with_options(arch_of("R11+ViT-nano/16"), options)
    vit = vit_of(resolution // 8, patch_size=2, num_channels=64)
    arrays = backbone_arrays(backbone) | vit_arrays(vit)
    state = read(tmp_path, arrays, arch)
    net = ours(arch, resolution, state)
    features = backbone(images).last_hidden_state
    assert_close(net.feature_map(images), features)
    assert_close(net(images), vit(features).logits)
    check_timm(backbone_timm(backbone) | vit_timm(vit), state, arch)
    check_npz(arrays, state, arch)


def check_timm(weights: dict[str, Tensor], state: dict[str, Tensor], arch: models.Arch) -> None:
    """The same weights under timm's names give the same state, and come out again."""
    from_timm, to_timm = convert.from_timm(weights, arch), convert.to_timm(state, arch)
    assert from_timm.keys() == state.keys()
    assert to_timm.keys() == weights.keys()
    assert all(torch.equal(from_timm[key], tensor) for key, tensor in state.items())
    assert all(torch.equal(to_timm[key], tensor) for key, tensor in weights.items())


def check_npz(arrays: Arrays, state: dict[str, Tensor], arch: models.Arch) -> None:
    written = convert.to_npz(state, arch)
    assert written.keys() == arrays.keys()
    assert all(np.array_equal(written[key], array) for key, array in arrays.items())


@pytest.mark.parametrize("resolution", [16, 28])
def test_from_pretrained_gives_the_same_logits(resolution: int, tmp_path: Path) -> None:
    arch, images = arch_of("ViT-nano/4"), images_of(resolution)
    net = randomise(models.build(arch, num_classes=5, resolution=resolution))
    convert.to_hf(net.state_dict(), arch, tmp_path / "hf")
    theirs, info = ViTForImageClassification.from_pretrained(
        tmp_path / "hf", dtype=torch.float64, output_loading_info=True
    )
    assert not any(info.values()), info
    assert_close(theirs.eval()(images).logits, net(images))
    assert sorted(p.name for p in (tmp_path / "hf").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


def test_the_approximate_gelu_is_said_to_transformers(tmp_path: Path) -> None:
    arch, images = models.with_options(arch_of("ViT-nano/4"), {"gelu": "tanh"}), images_of(16)
    net = randomise(models.build(arch, num_classes=5, resolution=16))
    convert.to_hf(net.state_dict(), arch, tmp_path)
    theirs = ViTForImageClassification.from_pretrained(tmp_path, dtype=torch.float64).eval()
    logits = theirs(images).logits
    assert_close(logits, net(images))
    exact = models.build(arch_of("ViT-nano/4"), num_classes=5, resolution=16).double()
    exact.load_state_dict(net.state_dict())
    assert (exact(images) - logits).abs().max() > 1e-5


def test_the_image_processor_gives_pixels_as_ours_are(tmp_path: Path) -> None:
    arch = arch_of("ViT-nano/4")
    convert.to_hf(models.build(arch, num_classes=5, resolution=28).state_dict(), arch, tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    found = AutoImageProcessor.from_pretrained(tmp_path)(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    resized = np.asarray(Image.fromarray(pixels).resize((28, 28), Image.Resampling.BILINEAR))
    expected = torch.from_numpy(resized.transpose(2, 0, 1)[None] / 127.5 - 1).float()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("R11", {}, "is a resnet"),
        ("R11+ViT-nano/16", {}, "is a hybrid"),
        ("ViT-nano/4", {"pre_logits": 48}, "has a pre-logits layer"),
    ],
)
def test_what_transformers_cannot_express_is_refused(
    name: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    arch = arch_of(name)
    state = models.build(arch, num_classes=5, resolution=32, **options).state_dict()
    with pytest.raises(VitscaleError, match=words) as found:
        convert.to_hf(state, arch, tmp_path / "hf")
    assert found.value.exit_code == USAGE
    assert len(str(found.value).splitlines()) == 2
    assert not (tmp_path / "hf").exists()


def test_a_network_without_class_token_is_refused(tmp_path: Path) -> None:
    arch = models.with_options(arch_of("ViT-nano/4"), {"pool": "gap"})
    state = models.build(arch, num_classes=5, resolution=32).state_dict()
    with pytest.raises(VitscaleError, match="has no class token"):
        convert.to_hf(state, arch, tmp_path / "hf")


def test_the_configuration_is_that_of_the_network(tmp_path: Path) -> None:
    arch = arch_of("ViT-nano/4")
    convert.to_hf(models.build(arch, num_classes=2, resolution=28).state_dict(), arch, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["image_size"], config["patch_size"], config["hidden_act"]) == (28, 4, "gelu")
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
