"""Reading the headers of a tar of samples: where each image lies, and its label."""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vitscale.errors import MISSING, VitscaleError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
LABEL_FIELDS = ("label", "cls", "class", "class_id")  # of a sample's json, in order of preference
MOST_CLASSES = 1_000_000  # beyond every labelled set of images; a number above it is a time or an id
# True of a packed shard whatever is wrong with it: `pack` writes a missing one again, and takes one of the right size
# for whole.
AGAIN = (
    "copy this shard again; or delete it and run the `vitscale data` command that made it: only this is written anew"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample of a shard: `offset` and `size` are of the encoded image inside the tar, in bytes."""

    key: str
    offset: int
    size: int
    ext: str
    label: int


def index_tar(path: Path) -> list[Entry]:
    """All samples of one shard in order. Raises `VitscaleError` that names the shard and the sample."""
    try:
        with path.open("rb") as file:
            return [entry for entry in _entries(path, file) if entry is not None]
    except tarfile.TarError as error:
        raise broken(path, str(error)) from error


def broken(path: Path, reason: str) -> VitscaleError:
    return VitscaleError(
        f"{path}: {reason}",
        hint=AGAIN,
        exit_code=MISSING,
    )


def class_limit(images: int) -> int:
    """No class has this number or a higher one: each class is a count's slot, and memory for it."""
    return max(images, MOST_CLASSES)


def _entries(path: Path, file: IO[bytes]) -> Iterator[Entry | None]:
    if not path.stat().st_size:
        raise broken(path, "the shard is empty (0 bytes)")
    with tarfile.open(fileobj=file, mode="r:") as tar:
        key, members = "", dict[str, tarfile.TarInfo]()
        for member in tar:
            if not member.isfile():
                continue
            name, suffix = split_name(member.name)
            if name != key or suffix in members:
                yield _sample(path, file, key, members)
                key, members = name, {}
            members[suffix] = member
        yield _sample(path, file, key, members)
        # A tar ends with a block of zeros. tarfile takes a cut-off or damaged header for an end, too.
        file.seek(tar.offset)
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise broken(path, f"the shard is truncated after {tar.offset:,} bytes")
        if block.strip(b"\0"):
            raise broken(path, f"the shard is damaged at byte {tar.offset:,}")


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix as webdataset splits them: at the first dot of the base name."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    folder, base = posixpath.split(name)
    stem, _, suffix = base.partition(".")
    return posixpath.join(folder, stem), suffix.lower()


def _sample(path: Path, file: IO[bytes], key: str, members: dict[str, tarfile.TarInfo]) -> Entry | None:
    """The sample made of the members that share a key; None where none of them is an image."""
    ext = next((suffix for suffix in members if suffix in IMAGE_SUFFIXES), None)
    if ext is None:
        return None
    label = _label(path, file, key, members)
    return Entry(key, members[ext].offset_data, members[ext].size, ext, label)


def _label(path: Path, file: IO[bytes], key: str, members: dict[str, tarfile.TarInfo]) -> int:
    if "cls" in members:
        text = _read(file, members["cls"]).decode("utf-8", "replace").strip()
    elif "json" in members:
        try:
            fields = json.loads(_read(file, members["json"]))
        except ValueError as error:
            raise broken(path, f"the json of sample {key!r} cannot be read ({error})") from error
        found = [fields[name] for name in LABEL_FIELDS if name in fields] if isinstance(fields, dict) else []
        text = str(found[0]) if found else ""
    else:
        text = ""
    if not text:
        raise broken(path, f"sample {key!r} has no label (neither cls nor a label in its json)")
    try:
        label = int(text)
    except ValueError as error:
        raise broken(path, f"the label of sample {key!r} is no number: {text[:40]!r}") from error
    if not 0 <= label < 2**31:
        raise broken(path, f"the label of sample {key!r} is outside the range: {label}")
    return label


def _read(file: IO[bytes], member: tarfile.TarInfo) -> bytes:
    position = file.tell()
    file.seek(member.offset_data)
    data = file.read(member.size)
    file.seek(position)
    return data
