"""A set of WebDataset shards as a numbered list of samples that can be read in any order."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from vitscale.data.access import Access
from vitscale.data.cache import PIECE
from vitscale.data.index import CLASSES, read_description, read_index
from vitscale.data.indexing import build, check_folder, local_shards
from vitscale.data.replaced import checked
from vitscale.data.tars import broken
from vitscale.errors import MISSING, VitscaleError
from vitscale.locations import DESCRIPTION, Location, locate

STATE = ".packing.json"  # an unfinished pack; pack.py removes it when the description is written
LONGEST_KEY = 256  # letters; of more, a digest tells keys apart
LOCK = ".packing.lock"  # held by the one process that packs into the folder


@dataclass(frozen=True)
class Shards:
    """Samples 0 .. n-1 of a data set, in the order of its shards."""

    location: str
    """What opened them: a folder, a list, or a URL."""
    keys: np.ndarray  # of str
    labels: Int64[np.ndarray, " n"]
    """-1 of a sample that cannot be trained on; `problems` says why."""
    num_classes: int
    fingerprint: str
    """SHA-256 over keys and labels in index order: the data set's name in a run id."""
    classes: tuple[str, ...] = ()
    """Names of the classes; empty where a foreign data set tells none."""
    image_size: tuple[int, int] | None = None
    """Width and height where all images share them and the index knows, in pixels."""
    problems: Mapping[int, str] = field(default_factory=dict, repr=False)
    """Of samples that were found bad when the index was made: no label, no number, cut off."""
    damaged: Mapping[str, str] = field(default_factory=dict)
    """Shards that end early, and why: what lay behind the damage is not in the index."""
    names: tuple[str, ...] = field(default=(), repr=False)
    places: Int64[np.ndarray, "n 3"] = field(default_factory=lambda: np.zeros((0, 3), np.int64), repr=False)
    """Shard number, offset and size of each encoded image."""
    access: Access = field(default_factory=lambda: Access([]), repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def shard(self, i: int) -> str:
        """Path or URL of the shard that holds sample `i`."""
        return self.access.place(int(self.places[i, 0]))

    def read(self, i: int) -> bytes:
        """The encoded image of sample `i`; safe in threads. Raises `VitscaleError` for a shard that is gone, cut or
        replaced, or that its server does not give.
        """
        shard, offset, size = (int(value) for value in self.places[i])
        data = self.access.read(shard, offset, size)
        if len(data) < size:
            reason = f"the shard is truncated: sample {str(self.keys[i])!r} lies beyond its end"
            raise broken(self.shard(i), reason, packed=self.access.packed(shard))
        return data

    def prefetch(self, index: Int64[np.ndarray, " b"]) -> None:
        """Fetches what holds these samples in the background, where it is not local. Returns at once."""
        if self.access.local or not len(index):
            return
        shard, offset, size = self.places[index].T
        ends = offset // PIECE, (offset + np.maximum(size, 1) - 1) // PIECE
        pieces = np.stack([np.tile(shard, 2), np.concatenate(ends)]).T
        self.access.prefetch(dict.fromkeys(map(tuple, pieces.tolist())))

    def close(self) -> None:
        self.access.close()

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def open_shards(place: str | Path) -> Shards:
    """The data set at a folder, a list or pattern of tars, or a URL of these: see `vitscale.locations`.

    What is local and lacks an index is indexed on the spot, from headers and labels. Raises `VitscaleError` (exit 5)
    naming the file for a missing folder, no shards, an unfinished pack, a remote set that was not indexed, or a shard
    that is missing or not the one that was indexed.
    """
    location = locate(str(place))
    _check_place(location)
    folder = location.described
    if folder is None:
        _check_unfinished(location)
        folder = build(location)
    description = read_description(folder)
    assert description is not None  # it was there, or was made just now
    if not location.remote:
        _check_sizes(location, description)
        _check_names(location, folder, description)
    index = read_index(folder)
    if not location.remote:
        description = checked(location, folder, description, index)
    return _shards(location, folder, description, index)


def _check_place(location: Location) -> None:
    if location.remote and location.described is None:
        raise VitscaleError(
            f"{location.text}: there is no index of these shards",
            hint=f"make it once: vitscale data index {location.text}",
            exit_code=MISSING,
        )
    check_folder(location)


def _check_unfinished(location: Location) -> None:
    if location.folder is not None and (location.folder / STATE).exists():
        hint = "run the same `vitscale data` command again: it goes on where it stopped"
        raise VitscaleError(f"{location.folder}: the pack is unfinished", hint=hint, exit_code=MISSING)


def _check_sizes(location: Location, description: dict[str, Any]) -> None:
    for shard in description["shards"]:
        path, packed = Path(location.shard(shard["name"])), bool(shard["sha256"])
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise broken(path, "the shard is missing", packed=packed)
        if size != shard["bytes"]:
            what = "is truncated" if size < shard["bytes"] else "has changed"
            sizes = f"{size:,} bytes, and the index says {shard['bytes']:,}"
            raise broken(path, f"the shard {what}: {sizes}", packed=packed)


def _check_names(location: Location, described: Path, description: dict[str, Any]) -> None:
    """Shards that came after the index was made would never be read."""
    if location.folder is None:
        return
    known = {shard["name"] for shard in description["shards"]}
    later = [name for name in local_shards(location.folder) if name not in known]
    if later:
        more = f" and {len(later) - 1:,} more" if len(later) > 1 else ""
        raise VitscaleError(
            f"{location.folder / later[0]}{more}: the index does not know this shard",
            hint=f"delete {described / DESCRIPTION}, and all shards are indexed again; or move the shard away",
            exit_code=MISSING,
        )


def _shards(location: Location, folder: Path, description: dict[str, Any], table: pa.Table) -> Shards:
    names = tuple(shard["name"] for shard in description["shards"])
    number = {name: i for i, name in enumerate(names)}
    shard = table["shard"].combine_chunks().dictionary_encode()
    numbers = np.array([number[name.as_py()] for name in shard.dictionary], dtype=np.int64)
    places = np.stack(
        [numbers[shard.indices.to_numpy()], table["offset"].to_numpy(), table["size"].to_numpy()], axis=1
    ).astype(np.int64)
    size = description["image_size"]
    with contextlib.suppress(OSError, ValueError):
        description = {**description, "classes": json.loads((folder / CLASSES).read_bytes())}
    problems = table["problem"].to_pylist() if "problem" in table.column_names else []
    return Shards(
        location=location.text,
        keys=np.array([_short(key) for key in table["key"].to_pylist()], dtype=np.str_),
        labels=table["label"].to_numpy().astype(np.int64),
        num_classes=description["num_classes"],
        fingerprint=description["fingerprint"],
        classes=tuple(description.get("classes", ())),
        image_size=None if size is None else (size[0], size[1]),
        problems={i: problem for i, problem in enumerate(problems) if problem is not None},
        damaged={shard["shard"]: shard["reason"] for shard in description.get("damaged", ())},
        names=names,
        places=places,
        access=Access([(location.shard(shard["name"]), shard) for shard in description["shards"]]),
    )


def _short(key: str) -> str:
    """The key, or its beginning and a digest: the longest key of a set decides how much memory each of them takes."""
    if len(key) <= LONGEST_KEY:
        return key
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{key[: LONGEST_KEY - 17]}%{digest}"
