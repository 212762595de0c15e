"""The files that describe a data set: `dataset.json` for planning, `index.parquet` with a row for each sample."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitscale.data.tars import NO_LABEL, Entry
from vitscale.errors import MISSING, VitscaleError
from vitscale.files import write_whole
from vitscale.locations import DESCRIPTION

SCHEMA = 1
INDEX, CLASSES = "index.parquet", "classes.json"


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


def read_index(folder: Path) -> pa.Table:
    try:
        return pq.read_table(folder / INDEX)
    except (OSError, pa.ArrowException) as error:
        hint = f"delete {folder / DESCRIPTION}; the index is then made again from the shards"
        raise VitscaleError(f"{folder / INDEX}: cannot be read", hint=hint, exit_code=MISSING) from error


def index_table(entries: Mapping[str, Sequence[Entry]]) -> pa.Table:
    """The sample index; its row order is the order of the samples.

    Its column `problem` says why a sample cannot be trained on; it is left out where all of them can.
    """
    rows = [(name, entry) for name, found in entries.items() for entry in found]
    columns = {
        "shard": pa.array([name for name, _ in rows], pa.string()),
        "offset": pa.array([entry.offset for _, entry in rows], pa.int64()),
        "size": pa.array([entry.size for _, entry in rows], pa.int64()),
        "ext": pa.array([entry.ext for _, entry in rows], pa.string()),
        "key": pa.array([entry.key for _, entry in rows], pa.string()),
        "label": pa.array([entry.label for _, entry in rows], pa.int64()),
    }
    if any(entry.problem for _, entry in rows):
        columns["problem"] = pa.array([entry.problem or None for _, entry in rows], pa.string())
    return pa.table(columns)


def describe(
    name: str,
    shards: Sequence[dict[str, Any]],
    table: pa.Table,
    *,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    source: str = "",
) -> dict[str, Any]:
    """The content of `dataset.json`: what planning needs to know without opening a shard."""
    labels = table["label"].to_numpy()
    counts = np.bincount(labels[labels != NO_LABEL], minlength=num_classes or 0)
    return {
        "schema": SCHEMA,
        "name": name,
        "samples": len(labels),
        "num_classes": len(counts),
        "class_counts": counts.tolist(),
        "fingerprint": fingerprint(table["key"].to_pylist(), labels.tolist()),
        "image_size": None if image_size is None else list(image_size),
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": list(shards),
        "source": source,
    }


def fingerprint(keys: Iterable[str], labels: Iterable[int]) -> str:
    """SHA-256 over keys and labels in index order, in hex."""
    lines = (f"{key}\0{label}\n" for key, label in zip(keys, labels, strict=True))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def write_index(folder: Path, description: dict[str, Any], table: pa.Table) -> None:
    """Writes the index, then the description, whose presence says that the data set is whole."""
    write_whole(folder / INDEX, parquet(table))
    write_description(folder, description)


def write_description(folder: Path, description: dict[str, Any]) -> None:
    write_whole(folder / DESCRIPTION, (json.dumps(description, indent=1) + "\n").encode())


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def damaged(folder: Path, shards: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], int | None]]:
    """Shards that have not the size they were written with, and the size they have; None for one that is missing."""
    paths = [folder / shard["name"] for shard in shards]
    sizes = [path.stat().st_size if path.is_file() else None for path in paths]
    return [(shard, size) for shard, size in zip(shards, sizes, strict=True) if size != shard["bytes"]]
