"""The hybrids of arXiv 2010.11929: a post-activation ResNet whose feature map is the ViT's image."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitscale.models.counts import Head
from vitscale.models.hybrid.arch import Arch
from vitscale.models.recompute import through
from vitscale.models.standardize import Standardization, standardize
from vitscale.models.stochastic_depth import DropBranch
from vitscale.models.vit.net import Net as ViT
from vitscale.models.vit.net import lecun_normal


class StdConv2d(nn.Conv2d):
    """A weight-standardised convolution without bias, with TensorFlow's "SAME" padding."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, how: Standardization) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)
        self.how = how

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs out_h out_w"]:
        kernel = standardize(self.weight, self.how)
        rows, columns = (same_padding(size, self.kernel_size[0], self.stride[0]) for size in x.shape[-2:])
        if rows[0] == rows[1] and columns[0] == columns[1]:  # needs no padded copy
            return F.conv2d(x, kernel, None, self.stride, (rows[0], columns[0]))
        return F.conv2d(same_pad(x, self.kernel_size[0], self.stride[0]), kernel, None, self.stride)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after, so that the output is ceil(size / stride); the end gets the odd one, as in TensorFlow."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def same_pad(
    x: Float[Tensor, "batch channels height width"], kernel: int, stride: int
) -> Float[Tensor, "batch channels padded_h padded_w"]:
    """The padding of `same_padding` along both sides."""
    rows, columns = (same_padding(size, kernel, stride) for size in x.shape[-2:])
    return F.pad(x, (*columns, *rows))


class Bottleneck(nn.Module):
    """Convolution, norm, ReLU; the last norm's scale starts at 0, so that the block starts as its shortcut."""

    def __init__(self, arch: Arch, inputs: int, inside: int, stride: int) -> None:
        super().__init__()
        outside, how = 4 * inside, arch.weight_standardization
        self.conv1 = StdConv2d(inputs, inside, 1, 1, how)
        self.norm1 = norm(arch, inside)
        self.conv2 = StdConv2d(inside, inside, 3, stride, how)
        self.norm2 = norm(arch, inside)
        self.conv3 = StdConv2d(inside, outside, 1, 1, how)
        self.norm3 = norm(arch, outside)
        nn.init.zeros_(self.norm3.weight)
        projected = inputs != outside
        self.shortcut = StdConv2d(inputs, outside, 1, stride, how) if projected else None
        self.shortcut_norm = norm(arch, outside) if projected else None
        self.drop_branch = DropBranch()

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs out_h out_w"]:
        shortcut = x
        if self.shortcut is not None and self.shortcut_norm is not None:
            shortcut = self.shortcut_norm(self.shortcut(x))
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.drop_branch(self.norm3(self.conv3(y))) + shortcut)


def norm(arch: Arch, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(arch.groups, channels, eps=arch.group_norm_eps)


class Net(nn.Module):
    """Images to logits."""

    def __init__(
        self, arch: Arch, *, resolution: int, head: Head, dropout: float = 0.0, head_bias: float = 0.0
    ) -> None:
        super().__init__()
        self.small = arch.stem == "small"
        self._recompute = False
        kernel, stride = (3, 1) if self.small else (7, 2)
        self.root = StdConv2d(3, arch.backbone_width, kernel, stride, arch.weight_standardization)
        self.root_norm = norm(arch, arch.backbone_width)
        stages, inputs = [], arch.backbone_width
        for stage, count in enumerate(arch.blocks):
            inside = arch.backbone_width * 2**stage
            for block in range(count):
                stages.append(Bottleneck(arch, inputs, inside, 2 if stage > 0 and block == 0 else 1))
                inputs = 4 * inside
        self.stages = nn.ModuleList(stages)
        for module in self.modules():
            if isinstance(module, StdConv2d):
                lecun_normal(module)
        self.vit = ViT(
            arch.vit, resolution=resolution // arch.backbone_ratio, head=head, dropout=dropout, head_bias=head_bias
        )

    @property
    def recompute(self) -> bool:
        """Whether each block keeps only its input for the backward pass."""
        return self._recompute

    @recompute.setter
    def recompute(self, value: bool) -> None:
        self._recompute = self.vit.recompute = value

    @property
    def residual_blocks(self) -> list[nn.Module]:
        """The backbone's, then the transformer's."""
        return [*self.stages, *self.vit.residual_blocks]

    def feature_map(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out_channels out_h out_w"]:
        x = F.relu(self.root_norm(self.root(images)))
        if not self.small:
            x = F.max_pool2d(same_pad(x, 3, 2), 3, 2)  # after a ReLU, padding with 0 equals padding with -inf
        return through(self.stages, x, recompute=self.recompute)

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        return self.vit.features(self.feature_map(images))

    def forward(
        self, images: Float[Tensor, "batch channels height width"], *, features_only: bool = False
    ) -> Float[Tensor, "batch outputs"]:
        return self.vit(self.feature_map(images), features_only=features_only)
