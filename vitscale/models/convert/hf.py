"""Hugging Face's `ViTForImageClassification`: a folder that `from_pretrained` reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from vitscale.files import disk_errors, write_whole
from vitscale.models.convert.entries import THIRDS, Entry, Model, State, pair, to_theirs
from vitscale.models.vit.arch import Arch as ViT

ACTIVATIONS = {"exact": "gelu", "tanh": "gelu_pytorch_tanh"}


def write(state: State, model: Model, folder: Path) -> None:
    arch = _expressible(state, model)
    weights = to_theirs(state, entries(arch), model)
    files = {
        "model.safetensors": save(weights, metadata={"format": "pt"}),
        "preprocessor_config.json": _json(preprocessor(_resolution(arch, weights))),
        "config.json": _json(config(arch, weights)),  # last: with it the folder is whole
    }
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_whole(folder / name, data)


def entries(arch: ViT) -> list[Entry]:
    """The names of published checkpoints, which every version of transformers reads."""
    embeddings = "vit.embeddings."
    found = [
        *pair("patches", f"{embeddings}patch_embeddings.projection."),
        Entry("class_token", (f"{embeddings}cls_token",)),
        Entry("pos_embedding", (f"{embeddings}position_embeddings",)),
    ]
    for index in range(arch.depth):
        own, layer = f"blocks.{index}", f"vit.encoder.layer.{index}"
        found += pair(f"{own}.norm1", f"{layer}.layernorm_before.")
        for part in ("weight", "bias"):
            parts = tuple(f"{layer}.attention.attention.{name}.{part}" for name in ("query", "key", "value"))
            found.append(Entry(f"{own}.attention.qkv.{part}", parts, THIRDS))
        found += pair(f"{own}.attention.out", f"{layer}.attention.output.dense.")
        found += pair(f"{own}.norm2", f"{layer}.layernorm_after.")
        found += pair(f"{own}.mlp.up", f"{layer}.intermediate.dense.")
        found += pair(f"{own}.mlp.down", f"{layer}.output.dense.")
    return [*found, *pair("norm", "vit.layernorm."), *pair("head", "classifier.")]


def config(arch: ViT, weights: State) -> dict[str, Any]:
    labels = [f"LABEL_{index}" for index in range(len(weights["classifier.bias"]))]
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": arch.width,
        "num_hidden_layers": arch.depth,
        "num_attention_heads": arch.heads,
        "intermediate_size": arch.mlp,
        "hidden_act": ACTIVATIONS[arch.gelu],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-6,
        "image_size": _resolution(arch, weights),
        "patch_size": arch.patch,
        "num_channels": arch.channels,
        "qkv_bias": True,
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def preprocessor(resolution: int) -> dict[str, Any]:
    """Pixels 0 .. 255, resized to a square as ours are, in [-1, 1]."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": resolution, "width": resolution},
        "resample": 2,  # bilinear, in PIL's numbers
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _expressible(state: State, model: Model) -> ViT:
    """Raises VitscaleError for what has no place in that class (exit 2)."""
    layout = "Hugging Face's ViT"
    if not isinstance(model.arch, ViT):
        raise model.without(layout, f"is a {model.arch.family}")
    model.check_positions(layout)
    if any(key.startswith("pre_logits.") for key in state):
        raise model.without(layout, "has a pre-logits layer")
    if model.arch.pool == "gap":
        raise model.without(layout, "has no class token")
    if model.arch.pos_embedding == "none":
        raise model.without(layout, "has no position embeddings")
    return model.arch


def _resolution(arch: ViT, weights: State) -> int:
    positions: Tensor = weights["vit.embeddings.position_embeddings"]
    return math.isqrt(positions.shape[1] - 1) * arch.patch


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
