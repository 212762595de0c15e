"""Which part of which parameter this process holds in fp32, at each ZeRO stage; whole tensors by name out of the parts.

What DeepSpeed keeps is flat: stages 1 and 2 concatenate the parameters of a group and cut the result in one piece for
each process, stage 3 cuts every parameter and concatenates the pieces. The optimizer's state and the averaged weights
lie in the same way as the fp32 weights, so one description serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor, distributed, nn

from vitscale.train import group

BUCKET = 2**24
"""Elements that are gathered at a time: 64 MiB."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements `start` to `start + length` of a flattened parameter lie at `offset` of the flat tensor."""

    name: str
    start: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Partition:
    """A tensor that the optimizer steps in this process, and what lies in it. At stage 0 it is a whole parameter."""

    values: Tensor
    pieces: tuple[Piece, ...]


def partitions(net: nn.Module, optimizer: Any, stage: int) -> list[Partition]:
    """The fp32 weights that this process steps; `optimizer` is DeepSpeed's, around the recipe's."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    if stage == 0:
        return [Partition(p, (Piece(name, 0, 0, p.numel()),)) for name, p in net.named_parameters()]
    if stage == 3:
        flats, groups = optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups
        return [Partition(flat, _cut_each(names, group)) for flat, group in zip(flats, groups, strict=True)]
    flats, groups = optimizer.single_partition_of_fp32_groups, optimizer.round_robin_bit16_groups
    return [Partition(flat, _cut_once(names, group, flat.numel())) for flat, group in zip(flats, groups, strict=True)]


def _cut_once(names: Mapping[int, str], parameters: Sequence[nn.Parameter], size: int) -> tuple[Piece, ...]:
    """Stages 1 and 2: this process has `size` elements of the concatenation, whose end is padded."""
    begin, pieces, position = group.rank() * size, [], 0
    for parameter in parameters:
        first, last = max(position, begin), min(position + parameter.numel(), begin + size)
        if first < last:
            pieces.append(Piece(names[id(parameter)], first - position, first - begin, last - first))
        position += parameter.numel()
    return tuple(pieces)


def _cut_each(names: Mapping[int, str], parameters: Sequence[Any]) -> tuple[Piece, ...]:
    """Stage 3: of each parameter a part of one size for every process, the last of them padded."""
    pieces, offset = [], 0
    for parameter in parameters:
        size = parameter.partition_numel()
        start = group.rank() * size
        length = min(size, parameter.ds_numel - start)
        if length > 0:
            pieces.append(Piece(names[id(parameter)], start, offset, length))
        offset += size
    return tuple(pieces)


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """Whole shapes of the parameters, which stage 3 has emptied."""
    return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in net.named_parameters()}


def fill(part: Partition, flat: Tensor, whole: Callable[[str], Tensor]) -> None:
    """Writes this process's pieces of whole tensors to `flat`, which is laid out as the partition."""
    target = flat.detach().view(-1)
    for piece in part.pieces:
        source = whole(piece.name).reshape(-1)[piece.start : piece.start + piece.length]
        target[piece.offset : piece.offset + piece.length].copy_(source)


def gathered(
    parts: Sequence[tuple[Partition, Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    everywhere: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) of all parameters, some at a time, from the pieces that the processes hold.

    Every process calls it; the first one gets what it yields, the others only `everywhere`. Each tensor is a view of a
    buffer that the next ones do not overwrite.
    """
    held: dict[str, list[tuple[Piece, Tensor]]] = {name: [] for name in shapes}
    for part, flat in parts:
        for piece in part.pieces:
            held[piece.name].append((piece, flat))
    device = group.device()
    for names in _buckets(shapes):
        ends = list(accumulate(prod(shapes[name]) for name in names))
        offsets = dict(zip(names, [0, *ends], strict=False))
        buffer = torch.zeros(ends[-1], device=device)
        for name in names:
            for piece, flat in held[name]:
                at = offsets[name] + piece.start
                buffer[at : at + piece.length] = flat.detach().reshape(-1)[piece.offset : piece.offset + piece.length]
        _sum(buffer, everywhere)
        if everywhere or group.is_first():
            for name in names:
                yield name, buffer[offsets[name] : offsets[name] + prod(shapes[name])].view(shapes[name])


def _sum(buffer: Tensor, everywhere: bool) -> None:
    """Each element is not 0 in one process only: the sum is exact."""
    if group.world_size() == 1:
        return
    if everywhere:
        distributed.all_reduce(buffer)
    else:
        distributed.reduce(buffer, 0)


def _buckets(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if names and size + prod(shape) > BUCKET:
            yield names
            names, size = [], 0
        names.append(name)
        size += prod(shape)
    if names:
        yield names
