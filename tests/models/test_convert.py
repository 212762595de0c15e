"""Layouts and round trips of the published formats, and what is said of files that do not fit."""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitscale import models
from vitscale.errors import MISSING, USAGE, VitscaleError
from vitscale.models import convert

SIZES = {
    "nano": {"width": 48, "depth": 2, "mlp": 80, "heads": 3},
    "wide": {"width": 48, "depth": 2, "mlp": 96, "heads": 3},
    "R14": {"blocks": [1, 1, 2], "channels": 12, "groups": 4},
}
# name, stem, with a pre-logits layer
CASES = [
    ("ViT-nano/4", "standard", False),
    ("ViT-nano/4", "standard", True),
    ("R+ViT-nano/8", "small", True),
    ("R14+ViT-nano/8", "small", False),
    ("R14+ViT-nano/16", "standard", False),
    ("R14", "small", False),
    ("R14x2", "standard", False),
]


def arch_of(name: str, stem: str = "standard") -> models.Arch:
    arch = models.parse(name, stem=stem, sizes=SIZES)
    assert arch is not None
    return arch


def state_of(arch: models.Arch, *, seed: int = 0, pre_logits: bool = False, classes: int = 5) -> dict[str, Tensor]:
    """Random weights for every parameter, so that no two are equal."""
    width = arch.feature_width if pre_logits else None
    net = models.build(arch, num_classes=classes, resolution=2 * arch.ratio, pre_logits=width)
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(t.shape, generator=generator) for key, t in net.state_dict().items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor), key


def npz_of(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(("name", "stem", "pre_logits"), CASES)
def test_npz_and_back_gives_the_same_bits(name: str, stem: str, pre_logits: bool, tmp_path: Path) -> None:
    arch = arch_of(name, stem)
    state = state_of(arch, pre_logits=pre_logits)
    convert.write_npz(tmp_path / "a.npz", convert.to_npz(state, arch))
    assert_same(convert.from_npz(tmp_path / "a.npz", arch), state)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("name", "stem", "pre_logits"), CASES)
def test_timm_and_back_gives_the_same_bits(name: str, stem: str, pre_logits: bool, suffix: str, tmp_path: Path) -> None:
    arch = arch_of(name, stem)
    state = state_of(arch, pre_logits=pre_logits)
    file = tmp_path / f"a{suffix}"
    weights = convert.to_timm(state, arch)
    torch.save({"state_dict": weights}, file) if suffix == ".pth" else save_file(weights, file)
    assert_same(convert.from_timm(convert.read_state(file), arch), state)


@pytest.mark.parametrize(("name", "stem", "pre_logits"), CASES)
def test_a_converted_state_is_a_copy_that_the_network_loads(name: str, stem: str, pre_logits: bool) -> None:
    arch = arch_of(name, stem)
    state = state_of(arch, pre_logits=pre_logits)
    weights = convert.to_timm(state, arch)
    back = convert.from_timm(weights, arch)
    for tensor in weights.values():
        tensor.zero_()
    assert_same(back, state_of(arch, pre_logits=pre_logits))
    assert_same(state, back)
    width = arch.feature_width if pre_logits else None
    models.build(arch, num_classes=5, resolution=2 * arch.ratio, pre_logits=width).load_state_dict(back)


def test_converting_draws_no_random_numbers() -> None:
    arch = arch_of("R14+ViT-nano/8", "small")
    state = state_of(arch)
    before = torch.random.get_rng_state()
    convert.from_timm(convert.to_timm(state, arch), arch)
    assert torch.equal(torch.random.get_rng_state(), before)


PUBLISHED = {
    "ViT-Ti/16": {
        "cls": (1, 1, 192),
        "embedding/kernel": (16, 16, 3, 192),
        "embedding/bias": (192,),
        "Transformer/posembed_input/pos_embedding": (1, 5, 192),
        "Transformer/encoderblock_0/LayerNorm_0/scale": (192,),
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel": (192, 3, 64),
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/bias": (3, 64),
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/out/kernel": (3, 64, 192),
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/out/bias": (192,),
        "Transformer/encoderblock_11/LayerNorm_2/bias": (192,),
        "Transformer/encoderblock_11/MlpBlock_3/Dense_0/kernel": (192, 768),
        "Transformer/encoderblock_11/MlpBlock_3/Dense_1/kernel": (768, 192),
        "Transformer/encoder_norm/scale": (192,),
        "pre_logits/kernel": (192, 192),
        "pre_logits/bias": (192,),
        "head/kernel": (192, 5),
        "head/bias": (5,),
    },
    "R26+ViT-S/32": {
        "conv_root/kernel": (7, 7, 3, 64),
        "gn_root/scale": (1, 1, 1, 64),
        "gn_root/bias": (1, 1, 1, 64),
        "block1/unit1/conv1/kernel": (1, 1, 64, 64),
        "block1/unit1/conv_proj/kernel": (1, 1, 64, 256),
        "block1/unit1/gn_proj/scale": (1, 1, 1, 256),
        "block4/unit2/conv2/kernel": (3, 3, 512, 512),
        "block4/unit2/gn3/bias": (1, 1, 1, 2048),
        "embedding/kernel": (1, 1, 2048, 384),
    },
    "R26x1": {
        "resnet/root_block/standardized_conv2d/kernel": (7, 7, 3, 64),
        "resnet/block1/unit01/a/group_norm/gamma": (64,),
        "resnet/block1/unit01/a/standardized_conv2d/kernel": (1, 1, 64, 64),
        "resnet/block1/unit01/a/proj/standardized_conv2d/kernel": (1, 1, 64, 256),
        "resnet/block2/unit02/b/standardized_conv2d/kernel": (3, 3, 128, 128),
        "resnet/block4/unit02/c/group_norm/beta": (512,),
        "resnet/group_norm/gamma": (2048,),
        "resnet/head/conv2d/kernel": (1, 1, 2048, 5),
        "resnet/head/conv2d/bias": (5,),
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_keys_and_shapes_are_those_of_the_published_files(name: str) -> None:
    arch = arch_of(name)
    arrays = convert.to_npz(state_of(arch, pre_logits=name.startswith("ViT")), name)
    assert {key: arrays[key].shape if key in arrays else None for key in PUBLISHED[name]} == PUBLISHED[name]


def test_a_stem_alone_is_timms_whole_backbone() -> None:
    arch = arch_of("R+ViT-nano/32")
    weights = convert.to_timm(state_of(arch), arch)
    backbone = {key: tuple(tensor.shape) for key, tensor in weights.items() if key.startswith("patch_embed.")}
    assert backbone == {
        "patch_embed.backbone.conv.weight": (64, 3, 7, 7),
        "patch_embed.backbone.norm.weight": (64,),
        "patch_embed.backbone.norm.bias": (64,),
        "patch_embed.proj.weight": (48, 64, 8, 8),
        "patch_embed.proj.bias": (48,),
    }


def linen(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names since flax's linen; GroupNorm lost its leading axes then."""
    names = {
        "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
        "LayerNorm_2": "LayerNorm_1",
        "MlpBlock_3": "MlpBlock_0",
    }
    out = {}
    for key, value in arrays.items():
        for old, new in names.items():
            key = key.replace(f"/{old}/", f"/{new}/")
        out[key] = value.reshape(-1) if re.search(r"gn(\d|_\w+)/", key) else value
    return out


@pytest.mark.parametrize(
    "position", ["Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding", "pos_embedding"]
)
@pytest.mark.parametrize("name", ["ViT-nano/4", "R14+ViT-nano/16"])
def test_linen_names_are_read(name: str, position: str, tmp_path: Path) -> None:
    arch = arch_of(name)
    state = state_of(arch)
    arrays = linen(convert.to_npz(state, arch))
    arrays[position] = arrays.pop("Transformer/posembed_input/pos_embedding")
    assert_same(convert.from_npz(npz_of(tmp_path / "a.npz", arrays), arch), state)


@pytest.mark.parametrize(
    ("prefix", "training"), [("params/", "opt/0/mu/embedding/kernel"), ("opt/target/", "opt/state/step")]
)
def test_weights_are_taken_out_of_a_training_state(prefix: str, training: str, tmp_path: Path) -> None:
    arch = arch_of("ViT-nano/4")
    state = state_of(arch)
    arrays = {prefix + key: value for key, value in linen(convert.to_npz(state, arch)).items()}
    arrays[training] = np.ones(3)
    assert_same(convert.from_npz(npz_of(tmp_path / "a.npz", arrays), arch), state)
    arrays["ema/embedding/kernel"] = np.ones(3)
    with pytest.raises(VitscaleError, match=r"ema/embedding/kernel \(3,\) has no place"):
        convert.from_npz(npz_of(tmp_path / "b.npz", arrays), arch)


def test_scanned_blocks_and_positions_of_patches_alone_are_read(tmp_path: Path) -> None:
    arch = arch_of("ViT-nano/4")
    state = state_of(arch)
    arrays = linen(convert.to_npz(state, arch))
    arrays["pos_embedding"] = arrays.pop("Transformer/posembed_input/pos_embedding")[:, 1:]
    for key in [key for key in arrays if "encoderblock_0/" in key]:
        blocks = [arrays.pop(key.replace("_0/", f"_{index}/", 1)) for index in range(2)]
        arrays[f"params/{key.replace('encoderblock_0/', 'encoderblock/')}"] = np.stack(blocks)
    arrays = {key if key.startswith("params/") else f"params/{key}": value for key, value in arrays.items()}
    state["pos_embedding"][:, 0] = 0  # the class token is added after the positions
    assert_same(convert.from_npz(npz_of(tmp_path / "a.npz", arrays), arch), state)


def test_bit_as_big_vision_saves_it_is_read(tmp_path: Path) -> None:
    arch = arch_of("R14")
    state = state_of(arch)
    arrays = {}
    for key, value in convert.to_npz(state, arch).items():
        key = key.removeprefix("resnet/").replace("a/proj/standardized_conv2d", "conv_proj")
        key = key.replace("root_block/standardized_conv2d", "root_block/conv_root").replace("head/conv2d", "head")
        key = re.sub(r"^group_norm", "norm-pre-head", key)
        for index, letter in enumerate("abc", 1):
            key = key.replace(f"/{letter}/standardized_conv2d", f"/conv{index}").replace(
                f"/{letter}/group_norm", f"/gn{index}"
            )
        norm = key.endswith(("gamma", "beta"))
        key = key.replace("gamma", "scale").replace("beta", "bias")
        arrays[key] = value[None, None, None] if norm else value[0, 0] if key == "head/kernel" else value
    assert_same(convert.from_npz(npz_of(tmp_path / "a.npz", arrays), arch), state)


def test_bit_files_with_numbered_convolutions_are_read(tmp_path: Path) -> None:
    arch = arch_of("R14")
    state = state_of(arch)
    arrays = {
        key.replace("/standardized_conv2d/", f"/standardized_conv2d_{index}/"): value
        for index, (key, value) in enumerate(convert.to_npz(state, arch).items())
    }
    assert_same(convert.from_npz(npz_of(tmp_path / "a.npz", arrays), arch), state)


def test_bfloat16_is_read_as_jax_writes_it_and_written_as_float32(tmp_path: Path) -> None:
    arch = arch_of("ViT-nano/4")
    state = {key: tensor.bfloat16() for key, tensor in state_of(arch).items()}
    arrays = convert.to_npz(state, arch)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    nameless = {key: (array.view(np.uint32) >> 16).astype(np.uint16).view("V2") for key, array in arrays.items()}
    assert_same(convert.from_npz(npz_of(tmp_path / "a.npz", nameless), arch), state)


def test_a_network_without_class_token_keeps_its_positions(tmp_path: Path) -> None:
    """As with average pooling in the JAX code."""
    arch = models.with_options(arch_of("ViT-nano/4"), {"pool": "gap"})
    state = state_of(arch)
    assert state["pos_embedding"].shape == (1, 4, 48)
    file = npz_of(tmp_path / "a.npz", convert.to_npz(state, arch))
    assert_same(convert.from_npz(file, arch), state)
    assert_same(convert.from_timm(convert.to_timm(state, arch), arch), state)
    with pytest.raises(VitscaleError, match="cls is absent"):
        convert.from_npz(file, arch_of("ViT-nano/4"))


def test_a_network_without_positions_has_none_there() -> None:
    arch = models.with_options(arch_of("ViT-nano/4"), {"pos_embedding": "none"})
    state = state_of(arch)
    weights = convert.to_timm(state, arch)
    assert "pos_embed" not in weights
    assert_same(convert.from_timm(weights, arch), state)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pos_embedding": "2d"}, "has 2d position embeddings"),
        ({"pos_embedding": "relative"}, "has relative position embeddings"),
        ({"pool": "gap", "attention": "axial"}, "has axial attention"),
    ],
)
def test_what_was_never_published_has_no_place(options: dict[str, str], words: str, tmp_path: Path) -> None:
    arch = models.with_options(arch_of("ViT-nano/4"), options)
    state = state_of(arch)
    for export in (convert.to_npz, convert.to_timm, lambda s, a: convert.to_hf(s, a, tmp_path)):
        with pytest.raises(VitscaleError, match=words) as found:
            export(state, arch)
        refused(found.value, USAGE)


def test_positions_of_patches_alone_are_read_from_timm() -> None:
    arch = arch_of("ViT-nano/4")
    state = state_of(arch)
    weights = convert.to_timm(state, arch)
    weights["pos_embed"] = weights["pos_embed"][:, 1:]
    state["pos_embedding"][:, 0] = 0
    assert_same(convert.from_timm(weights, arch), state)


def refused(error: VitscaleError, exit_code: int = MISSING) -> list[str]:
    """The two lines of a message, of which nothing is missing."""
    message, hint = str(error).splitlines()
    assert message.startswith("error: ")
    assert hint.startswith("hint: ")
    assert error.exit_code == exit_code
    return [message.removeprefix("error: "), hint.removeprefix("hint: ")]


def test_a_file_of_another_size_is_refused_with_its_first_keys_and_shapes(tmp_path: Path) -> None:
    arch = arch_of("ViT-nano/4")
    file = npz_of(tmp_path / "a.npz", convert.to_npz(state_of(arch), arch))
    with pytest.raises(VitscaleError) as found:
        convert.from_npz(file, arch_of("ViT-wide/4"))
    message, _ = refused(found.value)
    block = "Transformer/encoderblock_0/MlpBlock_3"
    assert message == (
        f"{file} does not fit the vit of width 48 and depth 2: {block}/Dense_0/kernel is (48, 80), not (48, 96); "
        f"{block}/Dense_0/bias is (80,), not (96,); {block}/Dense_1/kernel is (80, 48), not (96, 48); and 3 more"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head/kernel": None, "head/bias": None}, "head/kernel is absent; head/bias is absent"),
        ({"head/bias": np.ones(6)}, "head/kernel is (48, 5), not (48, 6)"),
        ({"pre_logits/kernel": np.ones((48, 48))}, "pre_logits/bias is absent"),
        ({"MAPHead_0/probe": np.ones((1, 1, 48))}, "MAPHead_0/probe (1, 1, 48) has no place"),
        ({"cls": np.ones(48)}, "cls is (48,), not (1, 1, 48)"),
        ({"Transformer/posembed_input/pos_embedding": np.ones((1, 6, 48))}, "is (1, 6, 48), not (1, 5, 48)"),
        ({"Transformer/encoderblock_1/LayerNorm_0/scale": None}, "encoderblock_1/LayerNorm_0/scale is absent"),
        ({"embedding/kernel": np.ones((3, 48, 4, 4))}, "embedding/kernel is (3, 48, 4, 4), not (4, 4, 3, 48)"),
        ({"step": np.array(3)}, "step () has no place"),
    ],
)
def test_every_misfit_names_the_key(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    arch = arch_of("ViT-nano/4")
    arrays = {**convert.to_npz(state_of(arch), arch), **change}
    file = npz_of(tmp_path / "a.npz", {key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(VitscaleError) as found:
        convert.from_npz(file, arch)
    assert words in refused(found.value)[0]


def test_a_state_that_is_not_of_the_named_model_is_refused() -> None:
    state = state_of(arch_of("ViT-nano/4"))
    for function in (convert.to_npz, convert.to_timm, convert.from_timm):
        with pytest.raises(VitscaleError, match="does not fit ViT-Ti/16: "):
            function(state, "ViT-Ti/16")
    with pytest.raises(VitscaleError, match="has a pre-logits layer"):
        convert.to_timm(state_of(arch_of("R14"), pre_logits=True), arch_of("R14"))


def test_an_unknown_model_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(VitscaleError) as found:
        convert.to_npz({}, "ViT-B16")
    assert refused(found.value, USAGE) == ["unknown model 'ViT-B16'", "did you mean 'ViT-B/16'?"]


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_an_npz_with_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    arch = arch_of("ViT-nano/4")
    arrays = {**convert.to_npz(state_of(arch), arch), "head/bias": np.array([Bomb(tmp_path / "ran")], dtype=object)}
    np.savez(tmp_path / "a.npz", allow_pickle=True, **arrays)
    with pytest.raises(VitscaleError) as found:
        convert.from_npz(tmp_path / "a.npz", arch)
    message, hint = refused(found.value)
    assert message.startswith(f"{tmp_path / 'a.npz'} cannot be read: ")
    assert "unpickled" in hint
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.npz"])
def test_a_bare_pickle_is_refused_and_not_run(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    read = convert.read_state if name == "a.pth" else lambda file: convert.from_npz(file, "ViT-B/16")
    with pytest.raises(VitscaleError) as found:
        read(tmp_path / name)
    refused(found.value)
    assert not (tmp_path / "ran").exists()


def test_a_torch_file_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": Bomb(tmp_path / "ran")}, tmp_path / "a.pth")
    with pytest.raises(VitscaleError) as found:
        convert.read_state(tmp_path / "a.pth")
    refused(found.value)
    assert not (tmp_path / "ran").exists()


def single_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    return buffer.getvalue()


def words_npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, cls=np.array(["words"]))
    return buffer.getvalue()


@pytest.mark.parametrize("data", [None, b"", b"PK\x03\x04 cut short", b"text", single_array(), words_npz()])
def test_a_file_that_is_no_npz_is_refused(data: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(VitscaleError) as found:
        convert.from_npz(file, "ViT-B/16")
    assert refused(found.value)[0].startswith(f"{file} cannot be read: ")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
@pytest.mark.parametrize("data", [None, b"", b"PK\x03\x04 cut short", b"text"])
def test_a_file_without_a_state_dict_is_refused(data: bytes | None, name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(VitscaleError) as found:
        convert.read_state(file)
    assert refused(found.value)[0].startswith(f"{file} cannot be read: ")


def test_a_torch_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(VitscaleError) as found:
        convert.read_state(tmp_path / "a.pth")
    assert refused(found.value)[0] == f"{tmp_path / 'a.pth'} holds no state dict"


def test_a_disk_that_refuses_is_said_in_two_lines(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VitscaleError) as found:
        convert.write_npz(tmp_path / "file" / "a.npz", {"cls": np.ones(3)})
    refused(found.value)
