"""The Vision Transformer of arXiv 2010.11929: pre-norm, learned 1-D position embeddings, class token.

The paper's variants of attention and of positions stand in files of their own: `axial`, `relative`, `positions`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitscale.models.counts import Head
from vitscale.models.recompute import through
from vitscale.models.stochastic_depth import DropBranch
from vitscale.models.vit.arch import Arch
from vitscale.models.vit.positions import RowsAndColumns


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return self.join(F.scaled_dot_product_attention(*self.split(x)))

    def split(self, x: Float[Tensor, "batch tokens width"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [batch, heads, tokens, width / heads] each."""
        # Cut before the heads are moved: so their gradients meet in the layout of `qkv` itself, and one copy is saved.
        parts = self.qkv(x).chunk(3, dim=2)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        return query, key, value

    def join(self, mixed: Float[Tensor, "batch heads tokens part"]) -> Float[Tensor, "batch tokens width"]:
        """The heads side by side, mixed by the output projection."""
        return self.out(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, arch: Arch, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(arch.width, arch.mlp)
        self.gelu = nn.GELU(approximate="tanh" if arch.gelu == "tanh" else "none")
        self.down = nn.Linear(arch.mlp, arch.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return self.dropout(self.down(self.dropout(self.gelu(self.up(x)))))


class Block(nn.Module):
    def __init__(self, arch: Arch, dropout: float, attention: Attention | None = None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(arch.width, eps=1e-6)
        self.attention = attention or Attention(arch.width, arch.heads)
        self.norm2 = nn.LayerNorm(arch.width, eps=1e-6)
        self.mlp = Mlp(arch, dropout)
        self.dropout = nn.Dropout(dropout)
        self.drop_branch = DropBranch()

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.drop_branch(self.dropout(self.attention(self.norm1(x))))
        return x + self.drop_branch(self.mlp(self.norm2(x)))


class Net(nn.Module):
    """Images, or the feature maps of a hybrid's backbone, to logits."""

    def __init__(
        self, arch: Arch, *, resolution: int, head: Head, dropout: float = 0.0, head_bias: float = 0.0
    ) -> None:
        super().__init__()
        width = arch.width
        self.grid = (resolution // arch.patch, resolution // arch.patch)
        self.recompute = False
        self.patches = nn.Conv2d(arch.channels, width, arch.patch, arch.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if arch.pool == "token" else None
        self.pos_embedding = self._positions(arch, resolution)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(self._block(arch, dropout, resolution) for _ in range(arch.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pre_logits = nn.Linear(width, head.pre_logits) if head.pre_logits else None
        self.head = nn.Linear(head.pre_logits or width, head.num_classes)
        initialise(self, head_bias)

    @property
    def residual_blocks(self) -> list[nn.Module]:
        """From the first to the last."""
        return list(self.blocks)

    def _positions(self, arch: Arch, resolution: int) -> nn.Parameter | RowsAndColumns | None:
        if arch.pos_embedding == "1d":
            return nn.Parameter(torch.empty(1, arch.tokens(resolution), arch.width))
        if arch.pos_embedding == "2d":
            return RowsAndColumns(*self.grid, arch.width, class_token=arch.pool == "token")
        return None

    def _block(self, arch: Arch, dropout: float, resolution: int) -> nn.Module:
        # Imported here, since they are made of the classes above.
        from vitscale.models.vit.axial import AxialBlock
        from vitscale.models.vit.relative import RelativeAttention

        if arch.attention == "axial":
            return AxialBlock(arch, dropout, columns=self.grid[1])
        relative = arch.pos_embedding == "relative"
        return Block(
            arch, dropout, RelativeAttention(arch.width, arch.heads, arch.tokens(resolution)) if relative else None
        )

    def embedded(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches size"]:
        return self.patches(images).flatten(2).transpose(1, 2)

    def encoded(self, x: Float[Tensor, "batch patches width"]) -> Float[Tensor, "batch tokens width"]:
        """Patch embeddings after the blocks, behind the class token where there is one; before the last norm."""
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        if self.pos_embedding is not None:
            x = x + (self.pos_embedding() if isinstance(self.pos_embedding, RowsAndColumns) else self.pos_embedding)
        return through(self.blocks, self.dropout(x), recompute=self.recompute)

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        x = self.encoded(self.embedded(images))
        pooled = self.norm(x).mean(dim=1) if self.class_token is None else self.norm(x[:, 0])
        return pooled if self.pre_logits is None else torch.tanh(self.pre_logits(pooled))

    def forward(
        self, images: Float[Tensor, "batch channels height width"], *, features_only: bool = False
    ) -> Float[Tensor, "batch outputs"]:
        features = self.features(images)
        return features if features_only else self.head(features)


@torch.no_grad()
def initialise(net: Net, head_bias: float) -> None:
    """As in the JAX code of arXiv 2010.11929: Xavier-uniform on each of q, k and v alone, MLP biases N(0, 1e-6),
    position embeddings N(0, 0.02), the class token and the head 0, other dense layers LeCun-normal.
    """
    lecun_normal(net.patches)
    for name, parameter in net.named_parameters():
        if "pos_embedding" in name:
            nn.init.normal_(parameter, std=0.02)
    for module in net.blocks.modules():
        if isinstance(module, Attention):
            for part in module.qkv.weight.chunk(3):
                nn.init.xavier_uniform_(part)
            nn.init.xavier_uniform_(module.out.weight)
            nn.init.zeros_(module.qkv.bias)
            nn.init.zeros_(module.out.bias)
        elif isinstance(module, Mlp):
            for layer in (module.up, module.down):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=1e-6)
    if net.pre_logits is not None:
        lecun_normal(net.pre_logits)
    nn.init.zeros_(net.head.weight)
    nn.init.constant_(net.head.bias, head_bias)


@torch.no_grad()
def lecun_normal(layer: nn.Conv2d | nn.Linear) -> None:
    """Truncated at two standard deviations, with variance 1 / fan-in after the cut; bias 0. Flax's default."""
    fan_in = layer.weight[0].numel()
    std = math.sqrt(1 / fan_in) / 0.87962566103423978  # sd of a unit normal cut at +-2
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
