"""timm's state dicts: `vit_*_patch*`, the `vit_*_r*_s*` hybrids and `resnetv2_*_bit`."""

from __future__ import annotations

from torch import Tensor

from vitscale.models.convert.entries import (
    ONE_BY_ONE,
    SAME,
    Entry,
    Model,
    State,
    pair,
    to_ours,
    to_theirs,
    token_and_positions,
    units,
    with_class_position,
)
from vitscale.models.hybrid.arch import Arch as Hybrid
from vitscale.models.resnet.arch import Arch as ResNet
from vitscale.models.vit.arch import Arch as ViT

TOKEN = "cls_token"
POSITION = "pos_embed"


def write(state: State, model: Model) -> dict[str, Tensor]:
    model.check_head("timm", state)
    return to_theirs(state, entries(model), model)


def read(weights: State, model: Model, origin: str = "timm's state dict") -> dict[str, Tensor]:
    return to_ours(with_class_position(weights, TOKEN, POSITION), entries(model), model, origin)


def entries(model: Model) -> list[Entry]:
    model.check_positions("timm")
    match model.arch:
        case ViT() as arch:
            return _transformer(arch, "")
        case Hybrid() as arch:
            return [*_backbone(arch), *_transformer(arch.vit, "vit.")]
        case ResNet() as arch:
            return _bit(arch)
    raise model.without("timm", f"is a {model.arch.family}")


def _transformer(arch: ViT, ours: str) -> list[Entry]:
    found = [
        *pair(f"{ours}patches", "patch_embed.proj."),
        *token_and_positions(arch, ours, TOKEN, POSITION),
    ]
    for index in range(arch.depth):
        own, block = f"{ours}blocks.{index}", f"blocks.{index}"
        found += pair(f"{own}.norm1", f"{block}.norm1.")
        found += pair(f"{own}.attention.qkv", f"{block}.attn.qkv.")
        found += pair(f"{own}.attention.out", f"{block}.attn.proj.")
        found += pair(f"{own}.norm2", f"{block}.norm2.")
        found += pair(f"{own}.mlp.up", f"{block}.mlp.fc1.")
        found += pair(f"{own}.mlp.down", f"{block}.mlp.fc2.")
    return [
        *found,
        *pair(f"{ours}norm", "norm."),
        *pair(f"{ours}pre_logits", "pre_logits.fc.", group="pre-logits"),  # until timm 0.6
        *pair(f"{ours}head", "head."),
    ]


def _backbone(arch: Hybrid) -> list[Entry]:
    backbone = "patch_embed.backbone."
    stem = f"{backbone}stem." if arch.blocks else backbone  # a stem alone is the whole backbone
    found = [Entry("root.weight", (f"{stem}conv.weight",)), *pair("root_norm", f"{stem}norm.")]
    for index, stage, unit in units(arch.blocks):
        own, block = f"stages.{index}", f"{backbone}stages.{stage}.blocks.{unit}"
        found += _convolutions(own, block, projection=unit == 0)
        if unit == 0:
            found += pair(f"{own}.shortcut_norm", f"{block}.downsample.norm.")
    return found


def _bit(arch: ResNet) -> list[Entry]:
    found = [Entry("root.weight", ("stem.conv.weight",))]
    for index, stage, unit in units(arch.blocks):
        found += _convolutions(f"blocks.{index}", f"stages.{stage}.blocks.{unit}", projection=unit == 0)
    return [*found, *pair("norm", "norm."), *pair("head", "head.fc.", ways=(ONE_BY_ONE, SAME))]


def _convolutions(ours: str, theirs: str, *, projection: bool) -> list[Entry]:
    found = []
    for n in (1, 2, 3):
        found.append(Entry(f"{ours}.conv{n}.weight", (f"{theirs}.conv{n}.weight",)))
        found += pair(f"{ours}.norm{n}", f"{theirs}.norm{n}.")
    if projection:
        found.append(Entry(f"{ours}.shortcut.weight", (f"{theirs}.downsample.conv.weight",)))
    return found
