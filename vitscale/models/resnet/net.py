"""The ResNet of BiT (arXiv 1912.11370): pre-activation v2, weight-standardised convolutions, GroupNorm.

Kernels start He-normal (arXiv 1502.01852), as the paper of pre-activation ResNets (1603.05027) has it; their scale is
standardised away. big_vision's `bit_paper` takes flax's default, LeCun-normal.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitscale.models.counts import Head
from vitscale.models.recompute import through
from vitscale.models.resnet.arch import Arch
from vitscale.models.standardize import Standardization, standardize
from vitscale.models.stochastic_depth import DropBranch


class StdConv2d(nn.Conv2d):
    """A weight-standardised convolution without bias, padded on all sides alike."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, how: Standardization) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.how = how

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs out_h out_w"]:
        return F.conv2d(x, standardize(self.weight, self.how), None, self.stride, self.padding)


class Bottleneck(nn.Module):
    """Norm and ReLU before each convolution; the shortcut's projection sees the pre-activated input."""

    def __init__(self, arch: Arch, inputs: int, inside: int, stride: int) -> None:
        super().__init__()
        outside, how = 4 * inside, arch.weight_standardization
        self.norm1 = norm(arch, inputs)
        self.conv1 = StdConv2d(inputs, inside, 1, 1, how)
        self.norm2 = norm(arch, inside)
        self.conv2 = StdConv2d(inside, inside, 3, stride, how)
        self.norm3 = norm(arch, inside)
        self.conv3 = StdConv2d(inside, outside, 1, 1, how)
        self.shortcut = StdConv2d(inputs, outside, 1, stride, how) if inputs != outside else None
        self.drop_branch = DropBranch()

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs out_h out_w"]:
        active = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        y = self.conv1(active)
        y = self.conv2(F.relu(self.norm2(y)))
        return self.drop_branch(self.conv3(F.relu(self.norm3(y)))) + shortcut


def norm(arch: Arch, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(arch.groups, channels, eps=arch.group_norm_eps)


class Net(nn.Module):
    """Images to logits; the representation is the average over positions of the last feature map."""

    def __init__(
        self, arch: Arch, *, resolution: int, head: Head, dropout: float = 0.0, head_bias: float = 0.0
    ) -> None:
        super().__init__()
        del resolution, dropout  # fully convolutional; BiT has no dropout
        small = arch.stem == "small"
        self.recompute = False
        kernel, stride = (3, 1) if small else (7, 2)
        self.root = StdConv2d(3, arch.width, kernel, stride, arch.weight_standardization)
        self.pool = None if small else nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, 2))
        blocks, inputs = [], arch.width
        for stage, count in enumerate(arch.blocks):
            inside = arch.width * 2**stage
            for block in range(count):
                blocks.append(Bottleneck(arch, inputs, inside, 2 if stage > 0 and block == 0 else 1))
                inputs = 4 * inside
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(arch, inputs)
        self.pre_logits = nn.Linear(inputs, head.pre_logits) if head.pre_logits else None
        self.head = nn.Linear(head.pre_logits or inputs, head.num_classes)
        for module in self.modules():
            if isinstance(module, StdConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, head_bias)

    @property
    def residual_blocks(self) -> list[nn.Module]:
        """From the first to the last."""
        return list(self.blocks)

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        x = self.root(images)
        if self.pool is not None:
            x = self.pool(x)
        x = through(self.blocks, x, recompute=self.recompute)
        x = F.relu(self.norm(x)).mean(dim=(2, 3))
        return x if self.pre_logits is None else torch.tanh(self.pre_logits(x))

    def forward(
        self, images: Float[Tensor, "batch channels height width"], *, features_only: bool = False
    ) -> Float[Tensor, "batch outputs"]:
        features = self.features(images)
        return features if features_only else self.head(features)
