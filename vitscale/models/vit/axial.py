"""Axial attention (arXiv 2010.11929, D.6): a block attends along rows, then along columns, with an MLP after each."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from vitscale.models.vit.arch import Arch
from vitscale.models.vit.net import Block


class AxialBlock(nn.Module):
    """Two ordinary blocks, the first over the tokens of one row at a time, the second over those of one column."""

    def __init__(self, arch: Arch, dropout: float, columns: int) -> None:
        super().__init__()
        self.columns = columns
        self.along_rows = Block(arch, dropout)
        self.along_columns = Block(arch, dropout)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        batch, tokens, width = x.shape
        rows = tokens // self.columns
        x = self.along_rows(x.reshape(batch * rows, self.columns, width))
        x = x.view(batch, rows, self.columns, width).transpose(1, 2)
        x = self.along_columns(x.reshape(batch * self.columns, rows, width))
        return x.view(batch, self.columns, rows, width).transpose(1, 2).reshape(batch, tokens, width)
