"""What a data set is, and whether it is whole."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.data.decode import BadImage, decode, open_header
from vitscale.data.index import INDEX, fingerprint, index_table, read_description
from vitscale.data.indexing import normalised
from vitscale.data.pack import Progress
from vitscale.data.remote import GivenUpError
from vitscale.data.shards import Shards, open_shards
from vitscale.data.tars import AGAIN, Entry, index_tar
from vitscale.errors import MISSING, USAGE, Problem, VitscaleError
from vitscale.locations import DESCRIPTION, locate

SAMPLED = 200  # images that are looked at for their size
IN_VAIN = 3  # shards that a server does not give, one after another: it is not the shards then
SHOWN = 20  # problems that are printed; the others are counted
HASHED = 2**20  # bytes at a time
MANY_CLASSES = 100  # with fewer, a part of a larger set may well lack half of them
COPIED = "copy this shard again, then `vitscale data index LOCATION --again`"


def info(place: str | Path) -> dict[str, Any]:
    """Facts about a data set, with the size of its largest and smallest class."""
    with open_shards(place) as shards:
        description = _description(shards)
        counts = description["class_counts"]
        return {
            "folder": str(place),
            "name": description["name"],
            "samples": len(shards),
            "num_classes": shards.num_classes,
            "smallest_class": min(counts),
            "largest_class": max(counts),
            "effective_classes": _effective(counts),
            "image_size": description["image_size"],
            "sampled": _sampled(shards),
            "bytes": description["bytes"],
            "shards": len(shards.names),
            "fingerprint": shards.fingerprint,
            "source": description["source"],
            "classes": list(shards.classes),
            "class_counts": counts,
            "problems": [{"key": str(shards.keys[i]), "reason": reason} for i, reason in shards.problems.items()],
            "damaged": dict(shards.damaged),
            "suspect": _suspect(shards),
        }


def _suspect(shards: Shards) -> dict[str, str] | None:
    """The sample with the highest label of a foreign set, where most classes below it have no image: a slip, perhaps.

    Of a packed set the number of classes was said, or counted from their names.
    """
    empty = int((np.bincount(shards.labels[shards.labels >= 0], minlength=shards.num_classes) == 0).sum())
    if shards.access.packed(0) or shards.num_classes <= MANY_CLASSES or 2 * empty <= shards.num_classes:
        return None
    i = int(shards.labels.argmax())
    reason = f"its label {shards.labels[i]} leaves {empty:,} of {shards.num_classes:,} classes without images"
    return {"shard": shards.shard(i), "key": str(shards.keys[i]), "reason": reason}


def _effective(counts: list[int]) -> float:
    """How many classes of equal size would be as varied: 1 / sum of squared shares."""
    total = sum(counts)
    return total**2 / sum(count**2 for count in counts) if total else 0.0


def _sampled(shards: Shards) -> dict[str, Any]:
    """Sizes and formats of some images from their headers: spread over a local set, the first ones of a remote one."""
    last = len(shards) - 1 if shards.access.local else min(SAMPLED, len(shards)) - 1
    index = np.unique(np.linspace(0, last, min(SAMPLED, len(shards))).astype(np.int64))
    index = index[shards.labels[index] >= 0]
    sizes, formats, total = [], Counter[str](), 0
    for i in index.tolist():
        with contextlib.suppress(BadImage, VitscaleError):  # `verify` says what is wrong with them
            data = shards.read(i)
            image = open_header(data)
            sizes.append(image.size)
            formats[str(image.format)] += 1
            total += len(data)
    if not sizes:
        return {"images": 0}
    widths, heights = (sorted(side) for side in zip(*sizes, strict=True))
    middle = len(sizes) // 2
    return {
        "images": len(sizes),
        "width": [widths[0], widths[middle], widths[-1]],
        "height": [heights[0], heights[middle], heights[-1]],
        "mean_bytes": total / len(sizes),
        "formats": dict(formats.most_common()),
    }


def _description(shards: Shards) -> dict[str, Any]:
    folder = locate(shards.location).described
    description = None if folder is None else read_description(folder)
    assert description is not None  # the shards are open
    return description


def verify(place: str | Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Reads everything: checksums, headers against the index, keys, labels and every image.

    Raises `VitscaleError` (exit 5) with a problem for each thing that is wrong; exit 2 for a wrong setting.
    """
    with open_shards(place) as shards:
        problems, lost = _shard_problems(shards)
        problems += _key_problems(shards) + _sample_problems(shards)
        problems += _image_problems(shards, lost, progress)
        problems = list(dict.fromkeys(problems))  # a full disk is met with each shard
        if problems:
            hidden = len(problems) - SHOWN
            if hidden > 0:
                more = f"{hidden:,} {'problem' if hidden == 1 else 'problems'} more"
                problems = [*problems[:SHOWN], Problem(f"{place}: {more}", "mend these first")]
            raise VitscaleError.of(problems, exit_code=MISSING)
        return {"folder": str(place), "samples": len(shards), "shards": len(shards.names)}


def _shard_problems(shards: Shards) -> tuple[list[Problem], set[int]]:
    """What is wrong with whole shards, and the numbers of those that cannot be read."""
    problems: list[Problem] = []
    entries: dict[str, list[Entry]] = {}
    lost: set[int] = set()
    in_vain = 0
    sums = [shard["sha256"] for shard in _description(shards)["shards"]]
    for number, name in enumerate(shards.names):
        place = shards.access.place(number)
        try:
            if sums[number] and _sha256(shards, number) != sums[number]:
                problems.append(Problem(f"{place}: its bytes are not those that were packed (SHA-256)", AGAIN))
            contents = index_tar(lambda o, s, n=number: shards.access.read(n, o, s), shards.access.size(number))
        except VitscaleError as error:
            problems += _of_data(error)
            lost.add(number)
            in_vain = in_vain + 1 if isinstance(error, GivenUpError) else 0
            if in_vain == IN_VAIN:
                lost.update(range(number + 1, len(shards.names)))
                more = f"{len(shards.names) - number - 1:,} further shards were not looked at"
                return [*problems, Problem(f"{shards.location}: {more}", "try again when the server answers")], lost
            continue
        in_vain = 0
        entries[name] = contents.entries
        if damage := shards.damaged.get(name, contents.damage):
            problems.append(Problem(f"{place}: {damage}", _hint(shards, number)))
    problems += _repeated_keys(shards, entries)
    if not lost:
        problems += _index_problems(shards, entries, mended=not problems)
    return problems, lost


def _of_data(error: VitscaleError) -> tuple[Problem, ...]:
    """Its problems, unless a setting is wrong: that ends the command."""
    if error.exit_code == USAGE:
        raise error
    return error.problems


def _hint(shards: Shards, number: int) -> str:
    return AGAIN if shards.access.packed(number) else COPIED


def _sha256(shards: Shards, number: int) -> str:
    digest = hashlib.sha256()
    for offset in range(0, shards.access.size(number), HASHED):
        digest.update(shards.access.read(number, offset, HASHED))
    return digest.hexdigest()


def _repeated_keys(shards: Shards, entries: dict[str, list[Entry]]) -> list[Problem]:
    """Keys of several shards. In one shard, the later sample has a problem of its own."""
    times = Counter(key for found in entries.values() for key in {entry.key for entry in found})
    hint = "no harm to training, where the later ones are numbered"
    return [
        Problem(f"{shards.location}: the key {key!r} names several samples", hint) for key, n in times.items() if n > 1
    ]


def _index_problems(shards: Shards, entries: dict[str, list[Entry]], *, mended: bool) -> list[Problem]:
    table = normalised(index_table(entries))
    if fingerprint(table["key"].to_pylist(), table["label"].to_pylist()) == shards.fingerprint:
        return []
    folder = locate(shards.location).described
    assert folder is not None  # the shards are open
    made = f"delete {folder / INDEX} and {folder / DESCRIPTION}; they are made again from the shards"
    hint = made if mended else _hint(shards, 0)
    return [Problem(f"{shards.location}: keys and labels in the shards are not those of the index", hint)]


def _sample_problems(shards: Shards) -> list[Problem]:
    hint = "pack the data set again without it; training passes over it, up to data.max_bad"
    problems = [
        Problem(f"{shards.shard(i)}: sample {str(shards.keys[i])!r}: {reason}", hint)
        for i, reason in shards.problems.items()
    ]
    if suspect := _suspect(shards):
        hint = "correct the label and index the set again; no harm where it is a part of a larger set"
        problems.append(Problem(f"{suspect['shard']}: sample {suspect['key']!r}: {suspect['reason']}", hint))
    return problems


def _key_problems(shards: Shards) -> list[Problem]:
    hint = "vitscale never writes there; packing the data set again gives the sample a harmless name"
    return [
        Problem(f"{shards.shard(i)}: the key {key!r} leads out of the folder where somebody unpacks the shard", hint)
        for i, key in enumerate(shards.keys.tolist())
        if key.startswith("/") or ".." in key.split("/")
    ]


def _image_problems(shards: Shards, lost: set[int], progress: Progress | None) -> list[Problem]:
    problems = []
    for i in range(len(shards)):
        if i not in shards.problems and int(shards.places[i, 0]) not in lost:
            try:
                decode(shards.read(i))
            except BadImage as error:
                message = f"{shards.shard(i)}: sample {str(shards.keys[i])!r} cannot be decoded ({error})"
                problems.append(Problem(message, "pack the data set again without it"))
            except VitscaleError as error:
                problems += _of_data(error)
        if progress is not None:
            progress(i + 1, len(shards))
    return problems
