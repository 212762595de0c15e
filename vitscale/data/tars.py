"""The samples of a tar: where each image lies, and its label."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from vitscale.data.headers import Damage, Member, Read, members
from vitscale.errors import MISSING, VitscaleError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
LABEL_SUFFIXES = ("cls", "json")  # in order of preference
LABEL_FIELDS = ("label", "cls", "class", "class_id")  # of a sample's json, in order of preference
LONGEST_LABEL = {"cls": 1 << 12, "json": 1 << 24}  # bytes; those beside SA-1B's images reach some millions
MOST_CLASSES = 1_000_000  # beyond every labelled set of images; a number above it is a time or an id
NO_LABEL = -1  # of a sample that cannot be trained on
UNLABELLED = "it has no label (neither cls nor a label in its json)"
# True of a packed shard whatever is wrong with it: `pack` writes a missing one again, and takes one of the right size
# for whole.
AGAIN = (
    "copy this shard again; or delete it and run the `vitscale data` command that made it: only this is written anew"
)
INDEX_AGAIN = "copy this shard again; or, if it is right, make the index again: `vitscale data index LOCATION --again`"


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample of a shard: `offset` and `size` are of the encoded image inside the tar, in bytes."""

    key: str
    offset: int
    size: int
    ext: str
    label: int
    problem: str = ""
    """Why the sample cannot be trained on; its label is then `NO_LABEL`."""


@dataclass(frozen=True, slots=True)
class Contents:
    """All samples of a shard in order. `damage` says why there may be more that could not be read."""

    entries: list[Entry]
    damage: str = ""


@dataclass(slots=True)
class _Sample:
    """Consecutive members that share a key."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    labels: dict[str, bytes | None] = field(default_factory=dict)
    """What the small members hold that may tell the label; None where that is too long to be one."""


def index_tar(read: Read, size: int) -> Contents:
    """The samples of a tar of `size` bytes, from its headers and labels alone. Never raises for what the tar holds.

    A bad sample keeps its place: one without a label, cut off by the end of the tar, or of a key that was there before.
    """
    entries: list[Entry] = []
    keys: set[str] = set()
    damage = ""
    try:
        for entry in _entries(read, size):
            entries.append(_bad(entry, "its key names an earlier sample of the shard") if entry.key in keys else entry)
            keys.add(entry.key)
    except Damage as error:
        damage = str(error) if size else "the shard is empty (0 bytes)"
    return Contents(entries, damage)


def index_shard(path: Path) -> list[Entry]:
    """The samples of a whole local shard. Raises `VitscaleError` that names the shard, and the sample if it is one."""
    try:
        with path.open("rb") as file:
            contents = index_tar(lambda offset, size: os.pread(file.fileno(), size, offset), path.stat().st_size)
    except OSError as error:
        raise broken(path, error.strerror or str(error)) from error
    for entry in contents.entries:
        if entry.problem:
            raise broken(path, f"sample {entry.key!r}: {entry.problem}")
    if contents.damage:
        raise broken(path, contents.damage)
    return contents.entries


def broken(path: str | Path, reason: str, *, packed: bool = True) -> VitscaleError:
    return VitscaleError(f"{path}: {reason}", hint=AGAIN if packed else INDEX_AGAIN, exit_code=MISSING)


def class_limit(images: int) -> int:
    """No class has this number or a higher one: each class is a count's slot, and memory for it."""
    return max(images, MOST_CLASSES)


def _bad(entry: Entry, problem: str) -> Entry:
    return replace(entry, label=NO_LABEL, problem=entry.problem or problem)


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix as webdataset splits them: at the first dot of the base name. A hidden file has no key ("")."""
    folder, base = posixpath.split(name)
    stem, _, suffix = base.partition(".")
    return posixpath.join(folder, stem) if stem else "", suffix.lower()


def _entries(read: Read, size: int) -> Iterator[Entry]:
    sample = _Sample("")
    try:
        for member in members(read, size):
            key, suffix = split_name(member.name)
            if not key:
                continue
            if key != sample.key or suffix in sample.members:
                yield from _found(sample, size)
                sample = _Sample(key)
            sample.members[suffix] = member
            kind = suffix.rpartition(".")[2]
            if kind in LABEL_SUFFIXES and member.offset + member.size <= size:
                short = member.size <= LONGEST_LABEL[kind]
                sample.labels[suffix] = read(member.offset, member.size) if short else None
    except Damage:
        # What would have told the label of the last sample may be what is missing.
        for entry in _found(sample, size):
            lost = entry.problem == UNLABELLED
            yield replace(entry, problem="the shard is cut off or damaged in it") if lost else entry
        raise
    yield from _found(sample, size)


def _found(sample: _Sample, size: int) -> Iterator[Entry]:
    """The sample that the members make; several where the base names have more dots; none where there is no image."""
    for part, ext in _images(sample.members):
        image = sample.members[part + ext]
        key = sample.key + ("." + part[:-1] if part else "")
        told = {kind: sample.labels.get(part + kind, sample.labels.get(kind, b"")) for kind in LABEL_SUFFIXES}
        label, problem = _label(told)
        if image.offset + image.size > size:
            start = min(image.offset, size)
            yield Entry(key, start, size - start, ext, NO_LABEL, "its bytes are cut off by the end of the shard")
        else:
            yield Entry(key, image.offset, image.size, ext, label, problem)


def _images(suffixes: Iterable[str]) -> list[tuple[str, str]]:
    """The images of a sample by what stands between the first and the last dot of photo.2024.jpg, with its dot.

    Nothing does where the first dot leaves an image: only that one counts then.
    """
    found: dict[str, str] = {}
    for suffix in suffixes:
        part, dot, ext = suffix.rpartition(".")
        if ext in IMAGE_SUFFIXES:
            found.setdefault(part + dot, ext)
    return [("", found[""])] if "" in found else list(found.items())


def _label(members: dict[str, bytes | None]) -> tuple[int, str]:
    """Label and problem."""
    kind = next((kind for kind, data in members.items() if data != b""), None)
    if kind is None:
        return NO_LABEL, UNLABELLED
    data = members[kind]
    if data is None:
        return NO_LABEL, f"its {kind} has more than {LONGEST_LABEL[kind]:,} bytes"
    if kind == "json":
        return _label_of_json(data)
    return _number(data.decode("utf-8", "replace").strip())


def _label_of_json(data: bytes) -> tuple[int, str]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        return NO_LABEL, f"its json cannot be read ({error})"
    told = [fields.get(name) for name in LABEL_FIELDS] if isinstance(fields, dict) else []
    label = next((value for value in told if value is not None), "")
    return _number(str(label).strip())


def _number(text: str) -> tuple[int, str]:
    if not text:
        return NO_LABEL, UNLABELLED
    if not re.fullmatch(r"[+-]?[0-9]{1,18}(\.0*)?", text):
        return NO_LABEL, f"its label is no number: {text[:40]!r}"
    label = int(text.partition(".")[0])
    if not 0 <= label < 2**31:
        return NO_LABEL, f"its label is outside the range: {label}"
    return label, ""
