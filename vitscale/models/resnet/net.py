"""The ResNet of BiT (arXiv 1912.11370): pre-activation v2, weight-standardised convolutions, GroupNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitscale.models.counts import Head
from vitscale.models.resnet.arch import Arch


class StdConv2d(nn.Conv2d):
    """A convolution whose kernels have mean 0 and variance 1 each (arXiv 1903.10520), eps 1e-10 as in BiT."""

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs out_h out_w"]:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        kernel = (self.weight - mean) * torch.rsqrt(variance + 1e-10)
        return F.conv2d(x, kernel, self.bias, self.stride, self.padding)


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> StdConv2d:
    return StdConv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class Bottleneck(nn.Module):
    """Norm and ReLU before each convolution; the shortcut's projection sees the pre-activated input."""

    def __init__(self, inputs: int, inside: int, stride: int, groups: int) -> None:
        super().__init__()
        outside = 4 * inside
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = conv(inputs, inside, 1)
        self.norm2 = nn.GroupNorm(groups, inside)
        self.conv2 = conv(inside, inside, 3, stride)
        self.norm3 = nn.GroupNorm(groups, inside)
        self.conv3 = conv(inside, outside, 1)
        self.shortcut = conv(inputs, outside, 1, stride) if inputs != outside else None

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs out_h out_w"]:
        active = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        y = self.conv1(active)
        y = self.conv2(F.relu(self.norm2(y)))
        return self.conv3(F.relu(self.norm3(y))) + shortcut


class Net(nn.Module):
    """Images to logits; the representation is the average over positions of the last feature map."""

    def __init__(
        self, arch: Arch, *, resolution: int, head: Head, dropout: float = 0.0, head_bias: float = 0.0
    ) -> None:
        super().__init__()
        del resolution, dropout  # fully convolutional; BiT has no dropout
        small = arch.stem == "small"
        self.root = conv(3, arch.width, 3) if small else conv(3, arch.width, 7, 2)
        self.pool = None if small else nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, 2))
        blocks, inputs = [], arch.width
        for stage, count in enumerate(arch.blocks):
            inside = arch.width * 2**stage
            for block in range(count):
                blocks.append(Bottleneck(inputs, inside, 2 if stage > 0 and block == 0 else 1, arch.groups))
                inputs = 4 * inside
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.GroupNorm(arch.groups, inputs)
        self.pre_logits = nn.Linear(inputs, inputs) if head.pre_logits else None
        self.head = nn.Linear(inputs, head.num_classes)
        for module in self.modules():
            if isinstance(module, StdConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, head_bias)

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        x = self.root(images)
        if self.pool is not None:
            x = self.pool(x)
        for block in self.blocks:
            x = block(x)
        x = F.relu(self.norm(x)).mean(dim=(2, 3))
        return x if self.pre_logits is None else torch.tanh(self.pre_logits(x))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.head(self.features(images))
