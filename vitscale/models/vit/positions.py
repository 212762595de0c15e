"""Where a patch lies, as the network is told: position embeddings, and how they are carried to another grid."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Resize = Literal["bilinear", "bicubic"]


class RowsAndColumns(nn.Module):
    """Learned 2-D position embeddings (arXiv 2010.11929, D.4): half of the width says the column, half the row.

    The class token has none: it is learned itself.
    """

    def __init__(self, rows: int, columns: int, width: int, *, class_token: bool) -> None:
        super().__init__()
        self.class_token = class_token
        self.columns = nn.Parameter(torch.empty(columns, width // 2))
        self.rows = nn.Parameter(torch.empty(rows, width // 2))

    def forward(self) -> Float[Tensor, "1 tokens width"]:
        rows, columns = len(self.rows), len(self.columns)
        across = self.columns[None].expand(rows, -1, -1)
        down = self.rows[:, None].expand(-1, columns, -1)
        grid = torch.cat([across, down], dim=2).reshape(1, rows * columns, -1)
        return F.pad(grid, (0, 0, 1, 0)) if self.class_token else grid


def resize_pos_embedding(
    embedding: Float[Tensor, "1 tokens width"],
    grid: tuple[int, int],
    *,
    old: tuple[int, int] | None = None,
    class_token: bool = True,
    method: Resize = "bilinear",
) -> Float[Tensor, "1 new_tokens width"]:
    """Position embeddings of the grid `old` (rows, columns; by default square) for another; the class token's entry,
    which stands first where there is one, is untouched.

    `bilinear` has aligned corners: scipy.ndimage.zoom of order 1, as in the code of arXiv 2010.11929.
    `bicubic` is antialiased, as timm and big_vision's successors do it.
    """
    first = int(class_token)
    token, positions = embedding[:, :first], embedding[:, first:]
    side = math.isqrt(positions.shape[1])
    rows, columns = old or (side, side)
    if rows * columns != positions.shape[1]:
        raise ValueError(f"{positions.shape[1]} position embeddings are no grid of {rows} x {columns}")
    image = positions.reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    return torch.cat([token, _zoom(image, grid, method).flatten(2).transpose(1, 2)], dim=1)


def resize_axis(
    embedding: Float[Tensor, "old width"], size: int, *, method: Resize = "bilinear"
) -> Float[Tensor, "new width"]:
    """One axis of `RowsAndColumns` for another number of rows or columns."""
    return _zoom(embedding.T[None, :, None], (1, size), method)[0, :, 0].T


def _zoom(
    image: Float[Tensor, "1 width rows columns"], grid: tuple[int, int], method: Resize
) -> Float[Tensor, "1 width new_rows new_columns"]:
    if tuple(image.shape[2:]) == grid:
        return image
    if method not in ("bilinear", "bicubic"):
        raise ValueError(f"method is {method!r}, not 'bilinear' or 'bicubic'")
    aligned = method == "bilinear"
    wide = image.to(torch.promote_types(image.dtype, torch.float32))  # bicubic knows no bfloat16
    zoomed = F.interpolate(wide, size=grid, mode=method, align_corners=aligned, antialias=not aligned)
    return zoomed.to(image.dtype)
