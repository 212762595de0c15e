"""The hybrids of arXiv 2010.11929: a post-activation ResNet whose feature map is the ViT's image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitscale.models.counts import Head
from vitscale.models.hybrid.arch import Arch
from vitscale.models.vit.net import Net as ViT
from vitscale.models.vit.net import lecun_normal


class StdConv2d(nn.Conv2d):
    """A weight-standardised convolution with TensorFlow's "SAME" padding: (w - mean) / (std + 1e-5), as published."""

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs out_h out_w"]:
        std, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(
            same_pad(x, self.kernel_size[0], self.stride[0]), (self.weight - mean) / (std + 1e-5), None, self.stride
        )


def same_pad(
    x: Float[Tensor, "batch channels height width"], kernel: int, stride: int
) -> Float[Tensor, "batch channels padded_h padded_w"]:
    """Pads with 0 so that the output is ceil(size / stride); where the sum is odd, the end gets one more."""
    total = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:]]
    if not any(total):
        return x
    (top, left) = (total[0] // 2, total[1] // 2)
    return F.pad(x, (left, total[1] - left, top, total[0] - top))


class Bottleneck(nn.Module):
    """Convolution, norm, ReLU; the last norm's scale starts at 0, so that the block starts as its shortcut."""

    def __init__(self, inputs: int, inside: int, stride: int, groups: int) -> None:
        super().__init__()
        outside = 4 * inside
        self.conv1 = StdConv2d(inputs, inside, 1, bias=False)
        self.norm1 = nn.GroupNorm(groups, inside, eps=1e-6)
        self.conv2 = StdConv2d(inside, inside, 3, stride, bias=False)
        self.norm2 = nn.GroupNorm(groups, inside, eps=1e-6)
        self.conv3 = StdConv2d(inside, outside, 1, bias=False)
        self.norm3 = nn.GroupNorm(groups, outside, eps=1e-6)
        nn.init.zeros_(self.norm3.weight)
        projected = inputs != outside
        self.shortcut = StdConv2d(inputs, outside, 1, stride, bias=False) if projected else None
        self.shortcut_norm = nn.GroupNorm(groups, outside, eps=1e-6) if projected else None

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs out_h out_w"]:
        shortcut = x
        if self.shortcut is not None and self.shortcut_norm is not None:
            shortcut = self.shortcut_norm(self.shortcut(x))
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + shortcut)


class Net(nn.Module):
    """Images to logits."""

    def __init__(
        self, arch: Arch, *, resolution: int, head: Head, dropout: float = 0.0, head_bias: float = 0.0
    ) -> None:
        super().__init__()
        self.small = arch.stem == "small"
        self.root = StdConv2d(3, arch.backbone_width, 3 if self.small else 7, 1 if self.small else 2, bias=False)
        self.root_norm = nn.GroupNorm(arch.groups, arch.backbone_width, eps=1e-6)
        stages, inputs = [], arch.backbone_width
        for stage, count in enumerate(arch.blocks):
            inside = arch.backbone_width * 2**stage
            for block in range(count):
                stages.append(Bottleneck(inputs, inside, 2 if stage > 0 and block == 0 else 1, arch.groups))
                inputs = 4 * inside
        self.stages = nn.ModuleList(stages)
        for module in self.modules():
            if isinstance(module, StdConv2d):
                lecun_normal(module)
        self.vit = ViT(
            arch.vit, resolution=resolution // arch.backbone_ratio, head=head, dropout=dropout, head_bias=head_bias
        )

    def feature_map(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out_channels out_h out_w"]:
        x = F.relu(self.root_norm(self.root(images)))
        if not self.small:
            x = F.max_pool2d(same_pad(x, 3, 2), 3, 2)  # after a ReLU, padding with 0 equals padding with -inf
        for block in self.stages:
            x = block(x)
        return x

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        return self.vit.features(self.feature_map(images))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.vit(self.feature_map(images))
