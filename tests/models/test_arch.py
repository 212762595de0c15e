"""Every architecture's numbers against the literature and against the network that is built."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitscale import models
from vitscale.models.counts import Head, conv_macs
from vitscale.models.hybrid.net import same_pad
from vitscale.models.resnet.arch import BLOCKS
from vitscale.models.vit.arch import SIZES as VIT_SIZES

# Totals at 224 px with 1,000 classes, a class token and no pre-logits layer.
PUBLISHED = {
    "ViT-Ti/16": 5_717_416,
    "ViT-S/16": 22_050_664,
    "ViT-S/32": 22_878_952,
    "ViT-B/16": 86_567_656,
    "ViT-B/32": 88_224_232,
    "ViT-L/16": 304_326_632,
    "ViT-L/32": 306_535_400,
    "ViT-H/14": 632_045_800,
    "R+ViT-Ti/16": 6_337_704,
    "R26+ViT-S/32": 36_431_912,
    "R26+ViT-B/32": 101_383_976,
    "R50+ViT-B/16": 98_659_112,
    "R50+ViT-L/32": 328_994_856,
    "R50x1": 25_549_352,
    "R50x2": 97_988_712,
    "R101x1": 44_541_480,
    "R152x1": 60_185_128,
    "R152x2": 236_335_208,
    "R200x3": 568_633_000,
}

SMALL = {
    "nano": {"width": 64, "depth": 4, "mlp": 256, "heads": 2},
    "R5": {"blocks": [1], "channels": 8, "groups": 4},
    "R14": {"blocks": [1, 1, 2], "channels": 12, "groups": 4},
}
WITHOUT_STAGES = ["R+ViT-Ti/32", "R+ViT-Ti/16"]
EVERY_SIZE = [
    *(f"ViT-{size}/{patch}" for size in VIT_SIZES for patch in (14, 16)),
    *(f"{backbone}+ViT-S/32" for backbone in BLOCKS),
    *(f"R26+ViT-{size}/32" for size in VIT_SIZES),
    *WITHOUT_STAGES,
    *("R50+ViT-B/16", "R50+ViT-L/16"),
    *(f"{backbone}x{width}" for backbone in BLOCKS for width in (1, 2, 3, 4)),
]
OPTIONS: list[tuple[str, str, int, dict[str, object]]] = [
    ("ViT-nano/4", "small", 28, {"pos_embedding": "none"}),
    ("ViT-nano/4", "small", 28, {"pos_embedding": "2d"}),
    ("ViT-nano/4", "small", 28, {"pos_embedding": "relative"}),
    ("ViT-nano/4", "small", 28, {"pos_embedding": "relative", "heads": 1}),
    ("ViT-nano/4", "small", 28, {"pool": "gap", "pos_embedding": "2d"}),
    ("ViT-nano/4", "small", 28, {"pool": "gap", "pos_embedding": "relative"}),
    ("ViT-nano/4", "small", 28, {"pool": "gap", "attention": "axial"}),
    ("ViT-nano/4", "small", 28, {"gelu": "tanh", "depth": 2, "mlp": 96, "width": 48, "heads": 3}),
    ("R5+ViT-nano/4", "small", 28, {"pool": "gap", "attention": "axial", "weight_standardization": "timm"}),
    ("R14+ViT-nano/16", "standard", 96, {"pos_embedding": "2d", "group_norm_eps": 1e-5}),
    ("R14", "small", 28, {"weight_standardization": "jax"}),
]
SHAPES: list[tuple[str, str, int, dict[str, object]]] = [
    *((name, "standard", 224, {}) for name in EVERY_SIZE),
    ("ViT-S/32", "standard", 384, {}),
    ("R50x1", "standard", 193, {}),
    ("R50x1", "standard", 194, {}),
    ("R26x0.5+ViT-nano/4", "small", 28, {}),
    ("R14x2", "small", 29, {}),
    *OPTIONS,
]


MASKED: list[tuple[str, int, dict[str, object]]] = [
    ("ViT-nano/4", 28, {}),
    *((name, resolution, options) for name, _, resolution, options in OPTIONS if name == "ViT-nano/4"),
    ("ViT-B/16", 224, {}),
]


@pytest.mark.parametrize(("name", "total"), PUBLISHED.items())
def test_parameters_equal_the_published_totals(name: str, total: int) -> None:
    arch = models.parse(name)
    assert arch is not None
    assert arch.params(224, Head(num_classes=1000)).total == total


@pytest.mark.parametrize(("name", "stem", "resolution", "options"), SHAPES)
def test_counts_equal_the_built_network(name: str, stem: str, resolution: int, options: dict[str, object]) -> None:
    arch = architecture(name, stem, options)
    assert arch.problems(resolution) == []
    small = resolution < 100
    for pre_logits in (None, 40) if small else (40,):
        head = Head(num_classes=17, pre_logits=pre_logits)
        with torch.device("meta"):
            net = models.build(arch, num_classes=17, resolution=resolution, pre_logits=pre_logits)
            images = torch.zeros(1, 3, resolution, resolution)
        # Other back-ends of attention are counted as 0.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            logits = net(images)
        assert logits.shape == (1, 17)
        if small:
            assert net.features(images).shape == (1, pre_logits or arch.feature_width)  # type: ignore[operator]
        assert sum(p.numel() for p in net.parameters()) == arch.params(resolution, head).total
        assert counter.get_total_flops() == 2 * arch.macs(resolution, head).total


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("name", "stem", "resolution", "options"), SHAPES)
def test_activations_equal_what_the_backward_pass_keeps(
    name: str, stem: str, resolution: int, options: dict[str, object], recompute: bool
) -> None:
    arch = architecture(name, stem, options)
    head = Head(num_classes=17, pre_logits=40)
    with torch.device("meta"):
        net = models.build(arch, num_classes=17, resolution=resolution, pre_logits=40)
    net.recompute = recompute
    with FakeTensorMode(allow_non_fake_inputs=True):  # CPU kernels as far as shapes go
        net.to_empty(device="cpu")
        for batch in (1, 5) if resolution < 100 else (2,):
            kept = bytes_kept(net, torch.empty(batch, 3, resolution, resolution))
            assert kept == arch.activations(resolution, head, recompute=recompute).bytes(batch)
            with torch.autocast("cpu", torch.bfloat16):
                kept = bytes_kept(net, torch.empty(batch, 3, resolution, resolution))
            assert kept == arch.activations(resolution, head, recompute=recompute).bytes(batch, "bf16")


def bytes_kept(net: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """Bytes behind all tensors that the forward pass saves, each memory once; parameters and buffers are not counted."""
    fixed = {t.untyped_storage()._cdata for t in [*net.parameters(), *net.buffers()]}
    storages = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in fixed:
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        net(*inputs)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("name", ["ViT-single/7", "R5"])
def test_what_is_computed_again_is_the_largest_block(name: str) -> None:
    """Alone in its network, it is all that is kept otherwise."""
    arch = models.parse(name, stem="small", sizes={**SMALL, "single": {**SMALL["nano"], "depth": 1}})
    assert arch is not None
    plain, recomputed = (arch.activations(28, Head(num_classes=17), recompute=again) for again in (False, True))
    assert recomputed.per_image + recomputed.again == plain.per_image
    assert (plain.again, plain.peak_bytes(3)) == (0, plain.bytes(3))
    assert recomputed.peak_bytes(3) == recomputed.bytes(3) + 12 * recomputed.again


@pytest.mark.parametrize(("name", "resolution", "options"), MASKED)
def test_counts_of_masked_patch_prediction_equal_the_built_network(
    name: str, resolution: int, options: dict[str, object]
) -> None:
    arch, head, net, inputs = masked(name, resolution, options)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        assert net(*inputs(1)).shape == (1, head.patches, 37)
    assert counter.get_total_flops() == 2 * arch.macs(resolution, head).total
    assert sum(p.numel() for p in net.parameters()) == arch.params(resolution, head).total


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("name", "resolution", "options"), MASKED)
def test_activations_of_masked_patch_prediction_equal_what_the_backward_pass_keeps(
    name: str, resolution: int, options: dict[str, object], recompute: bool
) -> None:
    arch, head, net, inputs = masked(name, resolution, options)
    net.recompute = recompute
    with FakeTensorMode(allow_non_fake_inputs=True):
        net.to_empty(device="cpu")
        for batch in (1, 3):
            kept = bytes_kept(net, *(torch.empty_like(t, device="cpu") for t in inputs(batch)))
            assert kept == arch.activations(resolution, head, recompute=recompute).bytes(batch)
            with torch.autocast("cpu", torch.bfloat16):
                kept = bytes_kept(net, *(torch.empty_like(t, device="cpu") for t in inputs(batch)))
            assert kept == arch.activations(resolution, head, recompute=recompute).bytes(batch, "bf16")


def masked(
    name: str, resolution: int, options: dict[str, object]
) -> tuple[models.Arch, Head, torch.nn.Module, Callable[[int], list[torch.Tensor]]]:
    """An architecture, a third of whose patches are predicted, its network and what that is given, on the meta device."""
    arch = architecture(name, "small", options)
    patches = (resolution // arch.ratio) ** 2
    head = Head(num_classes=37, patches=patches // 3)
    with torch.device("meta"):
        net = models.build(arch, num_classes=37, resolution=resolution, patches=head.patches)

    def inputs(batch: int) -> list[torch.Tensor]:
        images = torch.zeros(batch, 3, resolution, resolution, device="meta")
        return [images, *(torch.zeros(batch, n, dtype=torch.int64, device="meta") for n in (head.patches, patches))]

    return arch, head, net, inputs


def architecture(name: str, stem: str, options: dict[str, object]) -> models.Arch:
    arch = models.parse(name, stem=stem, sizes=SMALL)
    assert arch is not None
    return models.with_options(arch, options)


@pytest.mark.parametrize("name", ["ViT-Q/16", "ViT-L", "R51x1", "R50x0", "R26x0.01", "R50+ViT-Q/16", "resnet50", ""])
def test_unknown_names_are_not_parsed(name: str) -> None:
    assert models.parse(name) is None


def test_stages_beyond_the_ratio_move_their_blocks_into_the_last_one_kept() -> None:
    arch = models.parse("R50+ViT-B/16")
    assert arch is not None
    assert (arch.blocks, arch.patch, arch.ratio) == ((3, 4, 9), 1, 16)  # type: ignore[attr-defined]


def test_the_published_stem_only_hybrid_has_ratio_32() -> None:
    alias, true = models.parse("R+ViT-Ti/16"), models.parse("R+ViT-Ti/32")
    assert alias == true
    assert alias is not None
    assert (alias.ratio, alias.patch) == (32, 8)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "resolution", "words"),
    [
        ("ViT-Ti/16", 100, "patch 16 does not divide resolution 100"),
        ("R26+ViT-S/32", 100, "down-sampling of 32 does not divide resolution 100"),
        ("R26x0.25", 224, "32 groups of GroupNorm do not divide width 16"),
        ("R50x1", 28, "leaves one position"),
    ],
)
def test_impossible_shapes_are_named(name: str, resolution: int, words: str) -> None:
    arch = models.parse(name)
    assert arch is not None
    assert words in "; ".join(arch.problems(resolution))


@pytest.mark.parametrize("name", ["ViT-nano/4", "R5+ViT-nano/4", "R14"])
def test_numbers_survive_a_trip_through_json(name: str) -> None:
    import json

    arch = models.parse(name, stem="small", sizes=SMALL)
    assert arch is not None
    assert models.from_dict(json.loads(json.dumps(models.to_dict(arch)))) == arch


def test_asking_for_a_price_does_not_load_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from vitscale import models; from vitscale.models.counts import Head;"
        "models.parse('R50+ViT-B/16').macs(224, Head(num_classes=1000));"
        "heavy = {'torch', 'numpy', 'pandas', 'scipy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("side", [7, 8, 28, 31, 56])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 1), (7, 2)])
def test_valid_positions_are_the_taps_that_fall_on_the_image(side: int, kernel: int, stride: int) -> None:
    """Convolving ones with ones counts them, under BiT's symmetric padding and under TensorFlow's."""
    ones = torch.ones(1, 1, side, side)
    taps = torch.ones(1, 1, kernel, kernel)
    symmetric = F.conv2d(ones, taps, stride=stride, padding=kernel // 2)
    same = F.conv2d(same_pad(ones, kernel, stride), taps, stride=stride)
    macs, after = conv_macs(side, kernel, 3, 5, stride=stride, counting="valid")
    assert macs == 15 * symmetric.sum() == 15 * same.sum()
    assert (after, after) == symmetric.shape[2:] == same.shape[2:]
