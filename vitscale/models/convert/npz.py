"""The `.npz` files of the JAX code: one layout is written, and the ones that were published are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vitscale.models.convert.entries import (
    SAME,
    Entry,
    Model,
    State,
    Way,
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

DENSE = Way(lambda x: (x.T,), lambda x: x.T)  # [out, in] here, [in, out] there
KERNEL = Way(lambda x: (x.permute(2, 3, 1, 0),), lambda x: x.permute(3, 2, 0, 1))  # OIHW here, HWIO there
NORM = Way(lambda x: (x[None, None, None],), lambda x: x[0, 0, 0])
DENSE_KERNEL = Way(lambda x: (x.T[None, None],), lambda x: x[0, 0].T)

TOKEN = "cls"
POSITIONS = ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding", "pos_embedding")
# Where a whole training state was saved, the weights are below the key and the rest is in one of the folders.
TRAINING = {"params/": ("opt/", "chrono/"), "opt/target/": ("opt/state/", "extra/")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What differs between the files. The defaults are those of arXiv 2010.11929 and 2106.10270, which are written.

    flax numbered a block's modules through before its "linen" API (`MlpBlock_3`), and by kind since (`MlpBlock_0`).
    """

    linen: bool = False
    position: str = POSITIONS[0]
    flat_norms: bool = False


def write(state: State, model: Model) -> dict[str, Tensor]:
    model.check_head("the .npz layout", state)
    return to_theirs(state, entries(model, Layout()), model)


def read(arrays: Mapping[str, Tensor], model: Model, origin: str) -> dict[str, Tensor]:
    weights = _renumbered(_unstacked(_bare(arrays)))
    layout = Layout(
        linen=any("/MlpBlock_0/" in key or "/conv_root/" in key for key in weights),
        position=next((key for key in POSITIONS if key in weights), POSITIONS[0]),
        flat_norms="gn_root/scale" in weights and weights["gn_root/scale"].ndim == 1,
    )
    weights = with_class_position(weights, TOKEN, layout.position)
    return to_ours(weights, entries(model, layout), model, origin)


def entries(model: Model, layout: Layout) -> list[Entry]:
    model.check_positions("the .npz layout")
    match model.arch:
        case ViT() as arch:
            return _transformer(arch, layout, "")
        case Hybrid() as arch:
            return [*_backbone(arch, NORM if not layout.flat_norms else SAME), *_transformer(arch.vit, layout, "vit.")]
        case ResNet() as arch:
            return _bit_linen(arch) if layout.linen else _bit(arch)
    raise model.without("the .npz layout", f"is a {model.arch.family}")


def _bare(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights alone where a whole training state was saved."""
    for prefix, rest in TRAINING.items():
        if any(key.startswith(prefix) for key in arrays):
            return {key.removeprefix(prefix): value for key, value in arrays.items() if not key.startswith(rest)}
    return dict(arrays)


def _unstacked(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """big_vision's scanned blocks, which have a leading axis of depth, one by one."""
    stack = "Transformer/encoderblock/"
    out: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key.startswith(stack) and value.ndim:
            rest = key.removeprefix(stack)
            out |= {f"Transformer/encoderblock_{i}/{rest}": block for i, block in enumerate(value)}
        else:
            out[key] = value
    return out


def _renumbered(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Some of BiT's files have TensorFlow's running number behind the name of a convolution."""
    return {re.sub(r"/standardized_conv2d_\d+/", "/standardized_conv2d/", key): t for key, t in weights.items()}


def _transformer(arch: ViT, layout: Layout, ours: str) -> list[Entry]:
    norm, attention, mlp = ("LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0")
    if not layout.linen:
        norm, attention, mlp = ("LayerNorm_2", "MultiHeadDotProductAttention_1", "MlpBlock_3")
    found = [
        *_layer(f"{ours}patches", "embedding", KERNEL),
        *token_and_positions(arch, ours, TOKEN, layout.position),
    ]
    for index in range(arch.depth):
        own, block = f"{ours}blocks.{index}", f"Transformer/encoderblock_{index}"
        found += _norm(f"{own}.norm1", f"{block}/LayerNorm_0")
        found += _attention(f"{own}.attention", f"{block}/{attention}", arch.heads)
        found += _norm(f"{own}.norm2", f"{block}/{norm}")
        found += _layer(f"{own}.mlp.up", f"{block}/{mlp}/Dense_0")
        found += _layer(f"{own}.mlp.down", f"{block}/{mlp}/Dense_1")
    return [
        *found,
        *_norm(f"{ours}norm", "Transformer/encoder_norm"),
        *_layer(f"{ours}pre_logits", "pre_logits", group="pre-logits"),
        *_layer(f"{ours}head", "head"),
    ]


def _attention(ours: str, theirs: str, heads: int) -> list[Entry]:
    """q, k and v apart, with an axis of heads: [width, heads, width / heads] each; out has it in front."""
    kernels = Way(
        lambda x: [part.T.unflatten(1, (heads, -1)) for part in x.chunk(3)],
        lambda *parts: torch.cat([part.flatten(1).T for part in parts]),
    )
    biases = Way(
        lambda x: [part.unflatten(0, (heads, -1)) for part in x.chunk(3)],
        lambda *parts: torch.cat([part.flatten() for part in parts]),
    )
    out = Way(lambda x: (x.T.unflatten(0, (heads, -1)),), lambda x: x.flatten(0, 1).T)
    return [
        Entry(f"{ours}.qkv.weight", tuple(f"{theirs}/{part}/kernel" for part in ("query", "key", "value")), kernels),
        Entry(f"{ours}.qkv.bias", tuple(f"{theirs}/{part}/bias" for part in ("query", "key", "value")), biases),
        *_layer(f"{ours}.out", f"{theirs}/out", out),
    ]


def _backbone(arch: Hybrid, norm: Way) -> list[Entry]:
    found = [Entry("root.weight", ("conv_root/kernel",), KERNEL), *_norm("root_norm", "gn_root", norm)]
    for index, stage, unit in units(arch.blocks):
        own, block = f"stages.{index}", f"block{stage + 1}/unit{unit + 1}"
        found += _bottleneck(own, block, norm, projection=unit == 0)
        if unit == 0:
            found += _norm(f"{own}.shortcut_norm", f"{block}/gn_proj", norm)
    return found


def _bit(arch: ResNet) -> list[Entry]:
    """The files of arXiv 1912.11370, which TensorFlow wrote."""
    convolution, norm = "standardized_conv2d/kernel", ("/group_norm/gamma", "/group_norm/beta")
    found = [Entry("root.weight", (f"resnet/root_block/{convolution}",), KERNEL)]
    for index, stage, unit in units(arch.blocks):
        own, block = f"blocks.{index}", f"resnet/block{stage + 1}/unit{unit + 1:02d}"
        for n, letter in enumerate("abc", 1):
            found.append(Entry(f"{own}.conv{n}.weight", (f"{block}/{letter}/{convolution}",), KERNEL))
            found += pair(f"{own}.norm{n}", f"{block}/{letter}", *norm)
        if unit == 0:
            found.append(Entry(f"{own}.shortcut.weight", (f"{block}/a/proj/{convolution}",), KERNEL))
    found += pair("norm", "resnet", *norm)
    return [*found, *pair("head", "resnet/head/conv2d", "/kernel", "/bias", ways=(DENSE_KERNEL, SAME))]


def _bit_linen(arch: ResNet) -> list[Entry]:
    """The same network as big_vision's `bit_paper` saves it."""
    found = [Entry("root.weight", ("root_block/conv_root/kernel",), KERNEL)]
    for index, stage, unit in units(arch.blocks):
        own, block = f"blocks.{index}", f"block{stage + 1}/unit{unit + 1:02d}"
        found += _bottleneck(own, block, NORM, projection=unit == 0)
    return [*found, *_norm("norm", "norm-pre-head", NORM), *_layer("head", "head")]


def _bottleneck(ours: str, theirs: str, norm: Way, *, projection: bool) -> list[Entry]:
    found = []
    for n in (1, 2, 3):
        found.append(Entry(f"{ours}.conv{n}.weight", (f"{theirs}/conv{n}/kernel",), KERNEL))
        found += _norm(f"{ours}.norm{n}", f"{theirs}/gn{n}", norm)
    if projection:
        found.append(Entry(f"{ours}.shortcut.weight", (f"{theirs}/conv_proj/kernel",), KERNEL))
    return found


def _layer(ours: str, theirs: str, way: Way = DENSE, group: str = "") -> list[Entry]:
    return pair(ours, theirs, "/kernel", "/bias", ways=(way, SAME), group=group)


def _norm(ours: str, theirs: str, way: Way = SAME) -> list[Entry]:
    return pair(ours, theirs, "/scale", "/bias", ways=(way, way))
