"""The index that shards from elsewhere lack: made in one pass over them, going on where it was interrupted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vitscale.data import remote
from vitscale.data.access import Facts, cached, shard
from vitscale.data.descriptors import Descriptors
from vitscale.data.headers import Read
from vitscale.data.index import (
    CLASSES,
    INDEX,
    SCHEMA,
    describe,
    index_table,
    parquet,
    read_description,
    write_description,
    write_index,
)
from vitscale.data.remote import Stat, UnreachableError
from vitscale.data.tars import NO_LABEL, Contents, class_limit, index_tar
from vitscale.data.threads import unordered
from vitscale.errors import MISSING, VitscaleError
from vitscale.files import disk_errors, locked, write_whole
from vitscale.locations import DESCRIPTION, Location, is_compressed, is_tar, is_url

PARTS = ".indexing"  # a table for each shard that is done, until all are
LOCK = ".indexing.lock"
THREADS = 8  # shards at once from a server: enough to wait for it, and 8 pieces in memory
LOCAL_THREADS = 2  # there is little to wait for
WINDOW = 8192  # bytes: label and description of a sample, but little of its image
META = b"vitscale"

Progress = Callable[[int, int], None]


def build(location: Location, *, again: bool = False, progress: Progress | None = None) -> Path:
    """Makes description and index where there are none, or `again`; returns the folder that holds them.

    A bad sample keeps its place with a `problem`, and a shard that is cut off or damaged is indexed as far as it goes.
    Raises `VitscaleError` (exit 5) where no image, or no label, is found at all, and for a shard that cannot be had.
    Shards that are done are kept then.
    """
    check_folder(location)
    folder = location.folder if location.folder and os.access(location.folder, os.W_OK) else location.kept
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK, wait=True):
            if again:
                _forget(folder, location)
            # Another process may have made it while we waited.
            if not (folder / DESCRIPTION).exists() and (again or not _fetch(location, folder)):
                _build(location, folder, progress)
    return folder


def check_folder(location: Location) -> None:
    """Raises `VitscaleError` for a local folder that is not there."""
    if location.folder is not None and not location.folder.is_dir():
        raise VitscaleError(
            f"{location.folder}: no such folder of shards",
            hint="correct the path, or make one: `vitscale data pack`, `vitscale data fetch fashion-mnist` or "
            "`vitscale data fractals`",
            exit_code=MISSING,
        )


def _forget(folder: Path, location: Location) -> None:
    description = read_description(folder)
    if description is not None and "task" in description and folder == location.folder:
        hint = "`vitscale data verify` says whether it is whole; the command that packed it mends it"
        raise VitscaleError(f"{folder}: was packed, and its index with it", hint=hint, exit_code=MISSING)
    (folder / DESCRIPTION).unlink(missing_ok=True)


def _fetch(location: Location, folder: Path) -> bool:
    """Whether a packed set's index lay beside the shards on the server; it is copied.

    Of other sets it may be older than the shards: only `pack` writes both together.
    """
    if location.names is not None or not location.remote:
        return False
    try:
        description = json.loads(remote.content(location.shard(DESCRIPTION)))
        if description["schema"] != SCHEMA or not description["fingerprint"]:
            return False
        shards = {shard["name"]: shard for shard in description["shards"]}
        if not all(shard["sha256"] for shard in shards.values()):
            return False
        index = remote.content(location.shard(INDEX))
    except (UnreachableError, ValueError, KeyError, TypeError):
        return False

    def seen(name: str) -> tuple[str, Stat]:
        found = remote.stat(location.shard(name))
        remote.check(location.shard(name), found, Stat(shards[name]["bytes"]))
        return name, found

    for name, found in unordered(seen, list(shards), threads=THREADS):
        shards[name]["version"] = found.version
    with contextlib.suppress(UnreachableError):
        write_whole(folder / CLASSES, remote.content(location.shard(CLASSES)))
    write_whole(folder / INDEX, index)
    write_description(folder, description)
    return True


def _build(location: Location, folder: Path, progress: Progress | None) -> None:
    names = shard_names(location)
    parts = folder / PARTS
    parts.mkdir(exist_ok=True)
    tables: dict[str, pa.Table] = {}
    threads = THREADS if location.remote else LOCAL_THREADS
    for name, table in unordered(lambda name: (name, _part(location, name, parts)), names, threads=threads):
        tables[name] = table
        if progress is not None:
            progress(len(tables), len(names))
    facts = [json.loads(tables[name].schema.metadata[META]) for name in names]
    table = pa.concat_tables([tables[name].replace_schema_metadata() for name in names], promote_options="default")
    try:
        description, table = _described(location, facts, table)
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    write_index(folder, description, table)


def _described(location: Location, facts: list[dict[str, Any]], table: pa.Table) -> tuple[dict[str, Any], pa.Table]:
    """The description, and the index as it will be. Raises `VitscaleError` where nothing could be trained on."""
    what = "shard" if len(facts) == 1 else f"{len(facts):,} shards"
    if not len(table):
        damage = next((f" ({fact['shard']['name']}: {fact['damage']})" for fact in facts if fact["damage"]), "")
        hint = "samples need an image (jpg, jpeg, png or webp) and a label (cls, or label in json)"
        raise VitscaleError(f"{location.text}: no images in its {what}{damage}", hint=hint, exit_code=MISSING)
    table = normalised(table)
    problems = _problems(table)
    if len(problems) == len(table):
        hint = "samples need a label as cls, or label in json; sets of images and captions have none"
        first = f"sample {table['key'][0].as_py()!r} of {table['shard'][0].as_py()}: {problems[0]}"
        raise VitscaleError(f"{location.text}: no label in its {what} ({first})", hint=hint, exit_code=MISSING)
    description = describe(_name(location), [fact["shard"] for fact in facts], table, source=location.text)
    damaged = [{"shard": fact["shard"]["name"], "reason": fact["damage"]} for fact in facts if fact["damage"]]
    if damaged:
        description["damaged"] = damaged
    if problems:
        description["problems"] = len(problems)
    return description, table


def normalised(table: pa.Table) -> pa.Table:
    """The rows of all shards as they stand in the index: labels are classes, and keys name one sample each."""
    return _with_unique_keys(_without_absurd_labels(table))


def _name(location: Location) -> str:
    """A short name of the set: its folder's, or its first shard's."""
    if location.names is None or len(location.names) > 1:
        return location.root.rpartition("/")[2] or location.text
    return location.names[0].rpartition("/")[2].partition(".")[0]


def _problems(table: pa.Table) -> dict[int, str]:
    if "problem" not in table.column_names:
        return {}
    return {i: text for i, text in enumerate(table["problem"].to_pylist()) if text is not None}


def _without_absurd_labels(table: pa.Table) -> pa.Table:
    """A time or an id is no label: each class is a count's slot."""
    labels = table["label"].to_numpy()
    absurd = np.flatnonzero(labels >= class_limit(len(table)))
    if not len(absurd):
        return table
    problems = _problems(table) | {int(i): f"its label is no number of a class: {labels[i]}" for i in absurd}
    labels = np.where(labels >= class_limit(len(table)), NO_LABEL, labels)
    column = pa.array([problems.get(i) for i in range(len(table))], pa.string())
    table = table.drop_columns([name for name in ("problem",) if name in table.column_names])
    return table.set_column(table.column_names.index("label"), "label", pa.array(labels)).append_column(
        "problem", column
    )


def _with_unique_keys(table: pa.Table) -> pa.Table:
    """Keys that were there before are numbered: `a`, `a%2`, `a%3`. Many sets count anew in every shard.

    By order alone, so that neither the shards' names nor where they are cut matter.
    """
    if pc.count_distinct(table["key"]).as_py() == len(table):
        return table
    seen: set[str] = set()
    times: Counter[str] = Counter()
    keys = []
    for key in table["key"].to_pylist():
        unique = key
        while unique in seen:
            times[key] += 1
            unique = f"{key}%{times[key] + 1}"
        seen.add(unique)
        keys.append(unique)
    return table.set_column(table.column_names.index("key"), "key", pa.array(keys, pa.string()))


def shard_names(location: Location) -> Sequence[str]:
    """The shards of a set in order. Raises `VitscaleError` where a folder has none."""
    if location.names is not None:
        return location.names
    folder = location.folder
    names = remote.shards(location.root) if folder is None else local_shards(folder)
    if not names:
        hint = "a data set is a folder of .tar files; `vitscale data pack SOURCE OUT` makes one"
        raise VitscaleError(f"{location.text}: no shards in this folder", hint=hint, exit_code=MISSING)
    return names


def local_shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if is_tar(path.name) and not path.name.startswith("."))


def _part(location: Location, name: str, parts: Path) -> pa.Table:
    """The rows of a shard, with what is known of it beside them; from an earlier try if it is still the same shard."""
    place = location.shard(name)
    found = stat(place)
    path = parts / f"{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.parquet"
    seen = [name, found.size, found.version]
    with contextlib.suppress(OSError, pa.ArrowException, ValueError, KeyError):
        table = pq.read_table(path)
        if json.loads(table.schema.metadata[META])["seen"] == seen:
            return table
    contents, size = contents_of(place, found)
    entry: dict[str, Any] = {"name": name, "bytes": found.size, "samples": len(contents.entries), "sha256": None}
    entry["version"] = found.version
    if is_compressed(place):
        entry["unpacked"] = size
    facts = {"seen": seen, "shard": entry, "damage": contents.damage}
    table = index_table({name: contents.entries}).replace_schema_metadata({META: json.dumps(facts)})
    write_whole(path, parquet(table))
    return table


def stat(place: str) -> Stat:
    """Size and version of a shard; of a local one, when it was written."""
    if is_url(place):
        return remote.stat(place)
    try:
        facts = Path(place).stat()
    except OSError as error:
        hint = "correct the list or the pattern, or copy the shard there"
        raise VitscaleError(f"{place}: {error.strerror}", hint=hint, exit_code=MISSING) from None
    return Stat(facts.st_size, str(facts.st_mtime_ns))


def contents_of(place: str, found: Stat) -> tuple[Contents, int]:
    """What a shard holds, read once, and its bytes as a plain tar. A remote one is in the cache afterwards."""
    descriptors = Descriptors(most=2)  # a sample may begin in one piece and end in the next
    facts = Facts(found.size, found.size, found.version)
    damage = ""
    if is_compressed(place):
        size, damage = cached(place, facts, descriptors).store()
        facts = Facts(found.size, size, found.version)
    contents = index_tar(_Window(shard(place, facts, descriptors).read).read, facts.size)
    return Contents(contents.entries, damage or contents.damage), facts.size


class _Window:
    """Reads a little more than is asked for: a label lies right behind its header, and often the next header, too."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._start, self._data = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        start = offset - self._start
        if start < 0 or start + size > len(self._data):
            self._start, self._data, start = offset, self._read(offset, max(size, WINDOW)), 0
        return self._data[start : start + size]
