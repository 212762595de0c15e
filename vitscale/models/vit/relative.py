"""Relative positions (arXiv 2010.11929, D.4; 1803.02155): how far apart two tokens are, learned in every block."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitscale.models.vit.net import Attention


class RelativeAttention(Attention):
    """Each query also scores an embedding of its distance to each key; the two scores add up before the softmax.

    Distances are counted along the sequence, the class token at its beginning; heads share the embeddings.
    """

    distance: Int64[Tensor, "tokens tokens"]
    """From each query (row) to each key, from 0."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__(width, heads)
        self.pos_embedding = nn.Parameter(torch.empty(2 * tokens - 1, width // heads))
        place = torch.arange(tokens)
        self.register_buffer("distance", place[None] - place[:, None] + tokens - 1, persistent=False)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        query, key, value = self.split(x)
        # Copied here: whether torch would do it, and so what the backward pass keeps, depends on batch and heads.
        query, value = query.contiguous(), value.contiguous()
        scores = query @ self.pos_embedding.T / math.sqrt(query.shape[-1])
        bias = scores.gather(3, self.distance.expand(*scores.shape[:2], -1, -1))
        return self.join(F.scaled_dot_product_attention(query, key, value, attn_mask=bias))
