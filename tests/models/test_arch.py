"""Every architecture's numbers against the literature and against the network that is built."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from vitscale import models
from vitscale.models.counts import Head, conv_macs
from vitscale.models.hybrid.net import same_pad

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
BUILT = [
    ("ViT-Ti/16", "standard", 224, True),
    ("ViT-S/32", "standard", 384, False),
    ("R+ViT-Ti/32", "standard", 224, True),
    ("R26+ViT-S/32", "standard", 224, False),
    ("R50+ViT-B/16", "standard", 256, True),
    ("R26x1", "standard", 224, False),
    ("R50x1", "standard", 193, False),
    ("ViT-nano/4", "small", 28, True),
    ("R5+ViT-nano/4", "small", 28, True),
    ("R26x0.5+ViT-nano/4", "small", 28, False),
    ("R14", "small", 28, False),
    ("R14x2", "small", 29, False),
]


@pytest.mark.parametrize(("name", "total"), PUBLISHED.items())
def test_parameters_equal_the_published_totals(name: str, total: int) -> None:
    arch = models.parse(name)
    assert arch is not None
    assert arch.params(224, Head(num_classes=1000)).total == total


@pytest.mark.parametrize(("name", "stem", "resolution", "pre_logits"), BUILT)
def test_counts_equal_the_built_network(name: str, stem: str, resolution: int, pre_logits: bool) -> None:
    arch = models.parse(name, stem=stem, sizes=SMALL)
    assert arch is not None
    assert arch.problems(resolution) == []
    with torch.device("meta"):
        net = models.build(arch, num_classes=17, resolution=resolution, pre_logits=pre_logits)
        images = torch.zeros(1, 3, resolution, resolution)
    # Other back-ends of attention are counted as 0.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = net(images)
    head = Head(num_classes=17, pre_logits=pre_logits)
    assert logits.shape == (1, 17)
    assert net.features(images).shape == (1, arch.feature_width)  # type: ignore[operator]
    assert sum(p.numel() for p in net.parameters()) == arch.params(resolution, head).total
    assert counter.get_total_flops() == 2 * arch.macs(resolution, head).total


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
