"""Shards as a source of shards: to cut a set anew, or to take a part of it."""

from __future__ import annotations

import posixpath
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from vitscale.data.decode import BadImage, open_image
from vitscale.data.shards import Shards, open_shards
from vitscale.data.sources import Encoded, Options, Source, class_names, encode_image
from vitscale.data.subsets import Split


def part_of(shards: Shards, part: Split, location: str) -> Source:
    """The training images of a split, in the order of their shards: a part of a remote set is read in one pass."""
    labels = part.labels(shards.labels)
    index = part.train[labels[part.train] >= 0]
    classes = range(shards.num_classes) if part.classes is None else part.classes
    names = shards.classes or class_names(shards.num_classes, len(shards))
    return _source(shards, Path(location), index, labels[index], tuple(names[c] for c in classes), in_order=True)


def open_all(path: Path, options: Options) -> Source:  # noqa: ARG001
    """Every image of a folder of shards that has a label, to be shuffled."""
    shards = open_shards(path)
    index = np.flatnonzero(shards.labels >= 0)
    names = shards.classes or class_names(shards.num_classes, len(shards))
    return _source(shards, path, index, shards.labels[index], tuple(names), in_order=False)


def _source(
    shards: Shards,
    path: Path,
    index: Int64[np.ndarray, " i"],
    labels: Int64[np.ndarray, " i"],
    classes: tuple[str, ...],
    *,
    in_order: bool,
) -> Source:
    return Source(
        kind="shards",
        path=path,
        keys=_harmless(shards.keys[index].tolist()),
        labels=labels,
        classes=classes,
        read=partial(_read, shards, index),
        where=lambda i: f"{shards.shard(int(index[i]))}: sample {str(shards.keys[index[i]])!r}",
        in_order=in_order,
    )


def _harmless(keys: list[str]) -> list[str]:
    """Keys as names of a tar's members that stay inside the folder where somebody unpacks it.

    Dots of base names are escaped: readers take what follows the first one for the suffix, and `a.b` for a part of `a`.
    """
    inside = [_without_dots(posixpath.normpath("/" + key).lstrip("/") or "%2E") for key in keys]
    times = Counter(inside)
    return [
        clean if times[clean] == 1 or clean == key else f"{clean}%{i}"
        for i, (key, clean) in enumerate(zip(keys, inside, strict=True))
    ]


def _without_dots(key: str) -> str:
    folder, base = posixpath.split(key)
    return posixpath.join(folder, base.replace(".", "%2E"))


def _read(shards: Shards, index: Int64[np.ndarray, " i"], wanted: Int64[np.ndarray, " b"]) -> list[Encoded | BadImage]:
    shards.prefetch(index[wanted])
    return [_encoded(shards, int(index[i])) for i in wanted]


def _encoded(shards: Shards, i: int) -> Encoded | BadImage:
    try:
        data = shards.read(i)
        return encode_image(data, open_image(data))
    except BadImage as error:
        return error
