"""A folder of WebDataset shards as a numbered list of samples that can be read in any order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from vitscale.data.tars import Entry, broken, class_limit, index_tar
from vitscale.errors import MISSING, VitscaleError
from vitscale.files import write_whole

SCHEMA = 1
DESCRIPTION, INDEX, CLASSES = "dataset.json", "index.parquet", "classes.json"
STATE = ".packing.json"  # an unfinished pack; pack.py removes it when the description is written
LOCK = ".packing.lock"  # held by the one process that packs into the folder


class _Files:
    """Descriptors of shards, opened when first read. `os.pread` moves no file position, so threads share them."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        with self._lock:
            if path not in self._open:
                self._open[path] = os.open(path, os.O_RDONLY)
            descriptor = self._open[path]
        return os.pread(descriptor, size, offset)

    def close(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self.close()


@dataclass(frozen=True)
class Shards:
    """Samples 0 .. n-1 of a data set, in the order of its shards."""

    folder: Path
    keys: np.ndarray  # of str
    labels: Int64[np.ndarray, " n"]
    num_classes: int
    fingerprint: str
    """SHA-256 over keys and labels in index order: the data set's name in a run id."""
    classes: tuple[str, ...] = ()
    """Names of the classes; empty where a foreign data set tells none."""
    image_size: tuple[int, int] | None = None
    """Width and height where all images share them and the index knows, in pixels."""
    names: tuple[str, ...] = field(default=(), repr=False)
    places: Int64[np.ndarray, "n 3"] = field(default_factory=lambda: np.zeros((0, 3), np.int64), repr=False)
    """Shard number, offset and size of each encoded image."""
    _files: _Files = field(default_factory=_Files, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def shard(self, i: int) -> Path:
        """The shard that holds sample `i`."""
        return self.folder / self.names[int(self.places[i, 0])]

    def read(self, i: int) -> bytes:
        """The encoded image of sample `i`; safe in threads. Raises `VitscaleError` for a shard that is gone or cut."""
        path = self.shard(i)
        _, offset, size = (int(value) for value in self.places[i])
        try:
            data = self._files.read(path, offset, size)
        except OSError as error:
            raise broken(path, error.strerror or str(error)) from error
        if len(data) < size:
            raise broken(path, f"the shard is truncated: sample {str(self.keys[i])!r} lies beyond its end")
        return data

    def prefetch(self, index: Int64[np.ndarray, " b"]) -> None:
        """Nothing to do: all shards are here."""

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def open_shards(path: str | Path) -> Shards:
    """The data set in a folder. A folder of tars without an index is indexed on the spot, from their headers.

    Raises `VitscaleError` (exit 5) naming the file for a missing folder, no shards, an unfinished pack, or a shard that
    is missing, cut short or damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise VitscaleError(
            f"{folder}: no such folder of shards",
            hint="make one with `vitscale data pack`, `vitscale data fetch fashion-mnist` or `vitscale data fractals`",
            exit_code=MISSING,
        )
    description = read_description(folder)
    if description is None:
        if (folder / STATE).exists():
            hint = "run the same `vitscale data` command again: it goes on where it stopped"
            raise VitscaleError(f"{folder}: the pack is unfinished", hint=hint, exit_code=MISSING)
        description, table = index_folder(folder)
        # A folder that cannot be written to is indexed again each time; that is slow, not wrong.
        with contextlib.suppress(OSError):
            write_index(folder, description, table)
    else:
        _check_sizes(folder, description)
        _check_names(folder, description)
        table = read_index(folder)
    return _shards(folder, description, table)


def read_description(folder: Path) -> dict[str, Any] | None:
    """`dataset.json` of a whole data set; None where there is none."""
    path = folder / DESCRIPTION
    hint = f"delete {path} and {folder / INDEX}; they are made again from the shards"
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise VitscaleError(f"{path}: cannot be read ({error})", hint=hint, exit_code=MISSING) from error
    except OSError as error:
        raise VitscaleError(f"{path}: {error.strerror}", hint="make it readable", exit_code=MISSING) from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise VitscaleError(f"{path}: not a description of schema {SCHEMA}", hint=hint, exit_code=MISSING)
    return document


def damaged(folder: Path, shards: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], int | None]]:
    """Shards that have not the size they were written with, and the size they have; None for one that is missing."""
    paths = [folder / shard["name"] for shard in shards]
    sizes = [path.stat().st_size if path.is_file() else None for path in paths]
    return [(shard, size) for shard, size in zip(shards, sizes, strict=True) if size != shard["bytes"]]


def _check_sizes(folder: Path, description: dict[str, Any]) -> None:
    for shard, size in damaged(folder, description["shards"]):
        path = folder / shard["name"]
        if size is None:
            raise broken(path, "the shard is missing")
        what = "is truncated" if size < shard["bytes"] else "has changed"
        raise broken(path, f"the shard {what}: {size:,} bytes, and the index says {shard['bytes']:,}")


def _check_names(folder: Path, description: dict[str, Any]) -> None:
    """Shards that came after the index was made would never be read."""
    known = {shard["name"] for shard in description["shards"]}
    later = sorted(path.name for path in folder.glob("*.tar") if path.name not in known and path.name[0] != ".")
    if later:
        more = f" and {len(later) - 1:,} more" if len(later) > 1 else ""
        raise VitscaleError(
            f"{folder / later[0]}{more}: the index does not know this shard",
            hint=f"delete {folder / DESCRIPTION}, and all shards are indexed again; or move the shard away",
            exit_code=MISSING,
        )


def read_index(folder: Path) -> pa.Table:
    try:
        return pq.read_table(folder / INDEX)
    except (OSError, pa.ArrowException) as error:
        hint = f"delete {folder / DESCRIPTION}; the index is then made again from the shards"
        raise VitscaleError(f"{folder / INDEX}: cannot be read", hint=hint, exit_code=MISSING) from error


def _shards(folder: Path, description: dict[str, Any], table: pa.Table) -> Shards:
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
    return Shards(
        folder=folder,
        keys=np.array(table["key"].to_pylist(), dtype=np.str_),
        labels=table["label"].to_numpy().astype(np.int64),
        num_classes=description["num_classes"],
        fingerprint=description["fingerprint"],
        classes=tuple(description.get("classes", ())),
        image_size=None if size is None else (size[0], size[1]),
        names=names,
        places=places,
    )


def fingerprint(keys: Iterable[str], labels: Iterable[int]) -> str:
    """SHA-256 over keys and labels in index order, in hex."""
    lines = (f"{key}\0{label}\n" for key, label in zip(keys, labels, strict=True))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def index_folder(folder: Path) -> tuple[dict[str, Any], pa.Table]:
    """Description and index of the tars in a folder, from their headers and labels alone."""
    names = sorted(path.name for path in folder.glob("*.tar") if not path.name.startswith("."))
    if not names:
        hint = "a data set is a folder of .tar files; `vitscale data pack SOURCE OUT` makes one"
        raise VitscaleError(f"{folder}: no shards in this folder", hint=hint, exit_code=MISSING)
    entries = {name: index_tar(folder / name) for name in names}
    if not any(entries.values()):
        hint = "samples need an image (jpg, jpeg, png or webp) and a label (cls, or label in json)"
        what = "shard" if len(names) == 1 else f"{len(names):,} shards"
        raise VitscaleError(f"{folder}: no images in its {what}", hint=hint, exit_code=MISSING)
    _check_labels(folder, entries)
    shards = [
        {"name": name, "bytes": (folder / name).stat().st_size, "samples": len(found), "sha256": None}
        for name, found in entries.items()
    ]
    return describe(folder.resolve().name, shards, entries), index_table(entries)


def _check_labels(folder: Path, entries: dict[str, list[Entry]]) -> None:
    images = sum(len(found) for found in entries.values())
    for name, found in entries.items():
        for entry in found:
            if entry.label >= class_limit(images):
                message = f"{folder / name}: the label of sample {entry.key!r} is no number of a class: {entry.label}"
                hint = "classes are numbered from 0; a time or an id is no label"
                raise VitscaleError(message, hint=hint, exit_code=MISSING)


def index_table(entries: dict[str, list[Entry]]) -> pa.Table:
    """The sample index; its row order is the order of the samples."""
    rows = [(name, entry) for name, found in entries.items() for entry in found]
    return pa.table(
        {
            "shard": pa.array([name for name, _ in rows], pa.string()),
            "offset": pa.array([entry.offset for _, entry in rows], pa.int64()),
            "size": pa.array([entry.size for _, entry in rows], pa.int64()),
            "ext": pa.array([entry.ext for _, entry in rows], pa.string()),
            "key": pa.array([entry.key for _, entry in rows], pa.string()),
            "label": pa.array([entry.label for _, entry in rows], pa.int64()),
        }
    )


def describe(
    name: str,
    shards: Sequence[dict[str, Any]],
    entries: dict[str, list[Entry]],
    *,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    source: str = "",
) -> dict[str, Any]:
    """The content of `dataset.json`: what planning needs to know without opening a shard."""
    samples = [entry for found in entries.values() for entry in found]
    counts = np.bincount([entry.label for entry in samples], minlength=num_classes or 0)
    return {
        "schema": SCHEMA,
        "name": name,
        "samples": len(samples),
        "num_classes": len(counts),
        "class_counts": counts.tolist(),
        "fingerprint": fingerprint((entry.key for entry in samples), (entry.label for entry in samples)),
        "image_size": None if image_size is None else list(image_size),
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": list(shards),
        "source": source,
    }


def write_index(folder: Path, description: dict[str, Any], table: pa.Table) -> None:
    """Writes the index, then the description, whose presence says that the data set is whole."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_whole(folder / INDEX, sink.getvalue().to_pybytes())
    write_whole(folder / DESCRIPTION, (json.dumps(description, indent=1) + "\n").encode())
