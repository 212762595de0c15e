"""The Vision Transformer of arXiv 2010.11929: pre-norm, learned 1-D position embeddings, class token."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitscale.models.counts import Head
from vitscale.models.vit.arch import Arch


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return self.dropout(self.down(self.dropout(F.gelu(self.up(x)))))


class Block(nn.Module):
    def __init__(self, arch: Arch, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(arch.width, eps=1e-6)
        self.attention = Attention(arch.width, arch.heads)
        self.norm2 = nn.LayerNorm(arch.width, eps=1e-6)
        self.mlp = Mlp(arch.width, arch.mlp, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.mlp(self.norm2(x))


class Net(nn.Module):
    """Images, or the feature maps of a hybrid's backbone, to logits."""

    def __init__(
        self, arch: Arch, *, resolution: int, head: Head, dropout: float = 0.0, head_bias: float = 0.0
    ) -> None:
        super().__init__()
        width = arch.width
        self.grid = resolution // arch.patch
        self.patches = nn.Conv2d(arch.channels, width, arch.patch, arch.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embedding = nn.Parameter(torch.empty(1, arch.tokens(resolution), width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(arch, dropout) for _ in range(arch.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pre_logits = nn.Linear(width, width) if head.pre_logits else None
        self.head = nn.Linear(width, head.num_classes)
        initialise(self, head_bias)

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        token = self.class_token.expand(patches.shape[0], -1, -1)
        x = self.dropout(torch.cat([token, patches], dim=1) + self.pos_embedding)
        for block in self.blocks:
            x = block(x)
        token = self.norm(x[:, 0])
        return token if self.pre_logits is None else torch.tanh(self.pre_logits(token))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.head(self.features(images))


@torch.no_grad()
def initialise(net: Net, head_bias: float) -> None:
    """As in the JAX code of arXiv 2010.11929: Xavier-uniform on each of q, k and v alone, MLP biases N(0, 1e-6),
    position embeddings N(0, 0.02), the class token and the head 0, other dense layers LeCun-normal.
    """
    lecun_normal(net.patches)
    nn.init.normal_(net.pos_embedding, std=0.02)
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


def resize_pos_embedding(
    embedding: Float[Tensor, "1 tokens width"], grid: tuple[int, int]
) -> Float[Tensor, "1 new_tokens width"]:
    """Position embeddings of a square grid for another grid (rows, columns); the class token's entry is untouched.

    Bilinear with aligned corners: scipy.ndimage.zoom of order 1, as in the paper's code.
    """
    token, positions = embedding[:, :1], embedding[:, 1:]
    old = math.isqrt(positions.shape[1])
    if (old, old) == grid:
        return embedding
    image = positions.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=grid, mode="bilinear", align_corners=True)
    return torch.cat([token, image.flatten(2).transpose(1, 2)], dim=1)
