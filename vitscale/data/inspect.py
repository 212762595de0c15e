"""What a data set is, and whether it is whole."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from vitscale.data.decode import BadImage, decode
from vitscale.data.pack import Progress
from vitscale.data.shards import (
    DESCRIPTION,
    INDEX,
    Shards,
    fingerprint,
    index_table,
    open_shards,
    read_description,
)
from vitscale.data.tars import AGAIN, index_tar
from vitscale.errors import MISSING, Problem, VitscaleError

SHOWN = 20  # problems that are printed; the others are counted


def info(folder: Path) -> dict[str, Any]:
    """Facts about a data set, with the size of its largest and smallest class."""
    with open_shards(folder) as shards:
        description = read_description(folder) or _described(shards)
        counts = description["class_counts"]
        return {
            "folder": str(folder),
            "name": description["name"],
            "samples": len(shards),
            "num_classes": shards.num_classes,
            "smallest_class": min(counts),
            "largest_class": max(counts),
            "image_size": description["image_size"],
            "bytes": description["bytes"],
            "shards": len(shards.names),
            "fingerprint": shards.fingerprint,
            "source": description["source"],
            "classes": list(shards.classes),
            "class_counts": counts,
        }


def _described(shards: Shards) -> dict[str, Any]:
    """For a folder whose index could not be written."""
    counts = Counter(shards.labels.tolist())
    return {
        "name": shards.folder.resolve().name,
        "class_counts": [counts[c] for c in range(shards.num_classes)],
        "image_size": None,
        "bytes": sum((shards.folder / name).stat().st_size for name in shards.names),
        "source": "",
    }


def verify(folder: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Reads everything: checksums, headers against the index, keys, and every image.

    Raises `VitscaleError` (exit 5) with a problem for each thing that is wrong.
    """
    with open_shards(folder) as shards:
        problems = _shard_problems(shards, read_description(folder))
        problems += _key_problems(shards)
        problems += _image_problems(shards, progress)
        if problems:
            hidden = len(problems) - SHOWN
            if hidden > 0:
                more = f"{hidden:,} {'problem' if hidden == 1 else 'problems'} more"
                problems = [*problems[:SHOWN], Problem(f"{folder}: {more}", "mend these first")]
            raise VitscaleError.of(problems, exit_code=MISSING)
        return {"folder": str(folder), "samples": len(shards), "shards": len(shards.names)}


def _shard_problems(shards: Shards, description: dict[str, Any] | None) -> list[Problem]:
    problems = []
    entries = {}
    sums = {shard["name"]: shard["sha256"] for shard in description["shards"]} if description else {}
    for name in shards.names:
        path = shards.folder / name
        if sums.get(name) and _sha256(path) != sums[name]:
            problems.append(Problem(f"{path}: its bytes are not those that were packed (SHA-256)", AGAIN))
        try:
            entries[name] = index_tar(path)
        except VitscaleError as error:
            problems += error.problems
    if len(entries) == len(shards.names):
        found = index_table(entries)
        keys, labels = found["key"].to_pylist(), found["label"].to_pylist()
        if fingerprint(keys, labels) != shards.fingerprint:
            index = f"{shards.folder / INDEX} and {shards.folder / DESCRIPTION}"
            hint = AGAIN if problems else f"delete {index}; they are made again from the shards"
            problems.append(Problem(f"{shards.folder}: keys and labels in the shards are not those of the index", hint))
    return problems


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key_problems(shards: Shards) -> list[Problem]:
    twice = [key for key, times in Counter(shards.keys.tolist()).items() if times > 1]
    return [
        Problem(f"{shards.folder}: the key {key!r} names several samples", "pack the data set again") for key in twice
    ]


def _image_problems(shards: Shards, progress: Progress | None) -> list[Problem]:
    problems = []
    for i in range(len(shards)):
        try:
            decode(shards.read(i))
        except BadImage as error:
            message = f"{shards.shard(i)}: sample {str(shards.keys[i])!r} cannot be decoded ({error})"
            problems.append(Problem(message, "pack the data set again without it"))
        except VitscaleError as error:
            problems += error.problems
        if progress is not None:
            progress(i + 1, len(shards))
    return problems
