"""Local shards that were written anew since they were indexed: copies are taken, other shards refused."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vitscale.data.index import index_table, read_description, write_description
from vitscale.data.indexing import LOCK, contents_of, normalised, stat
from vitscale.data.remote import Stat
from vitscale.data.tars import broken
from vitscale.errors import VitscaleError
from vitscale.files import locked
from vitscale.locations import Location, is_compressed

COMPARED = ("key", "label", "offset", "size")


def checked(location: Location, folder: Path, description: dict[str, Any], index: pa.Table) -> dict[str, Any]:
    """The description with the time of change that each local shard has now, as its version.

    Headers and labels of shards with another time are read again. Where they are those of the index, the new times are
    kept in `folder`: a copied set is read again once. Raises `VitscaleError` that names a shard with others.
    """
    found = _touched(location, description)
    if not found:
        return description
    shards, tables, row = [], [], 0
    for shard in description["shards"]:
        table = index.slice(row, shard["samples"])
        row += shard["samples"]
        if shard["name"] in found:
            shard, table = _read_again(location.shard(shard["name"]), shard, found[shard["name"]])
        shards.append(shard)
        tables.append(table)
    # Keys depend on those of earlier shards, so that all are made anew.
    table = normalised(pa.concat_tables(tables, promote_options="default"))
    for name in COMPARED:
        other = pc.index(pc.equal(table[name], index[name]), False).as_py()
        if other >= 0:
            raise _another(location.shard(index["shard"][other].as_py()))
    now = {**description, "shards": shards}
    _keep(folder, description, now)
    return now


def _touched(location: Location, description: Mapping[str, Any]) -> dict[str, Stat]:
    """Shards whose time of change is not the recorded one. Packed ones have none; their SHA-256 tells more."""
    found = {}
    for shard in description["shards"]:
        if shard.get("version") and not shard["sha256"]:
            now = stat(location.shard(shard["name"]))
            if now.version != shard["version"]:
                found[shard["name"]] = now
    return found


def _read_again(place: str, shard: Mapping[str, Any], found: Stat) -> tuple[dict[str, Any], pa.Table]:
    """Its entry in the description, and its rows."""
    contents, size = contents_of(place, found)
    if len(contents.entries) != shard["samples"]:
        raise _another(place)
    unpacked = {"unpacked": size} if is_compressed(place) else {}
    return {**shard, "version": found.version, **unpacked}, index_table({shard["name"]: contents.entries})


def _another(place: str) -> VitscaleError:
    return broken(place, "the shard was replaced: it is not the one that was indexed", packed=False)


def _keep(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Writes the description, unless the index was made again meanwhile, or the folder is not ours to write to."""
    with contextlib.suppress(OSError), locked(folder / LOCK, wait=True):
        if read_description(folder) == before:
            write_description(folder, now)
