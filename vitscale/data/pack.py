"""Any source to shards: shuffled, resumable, and byte for byte the same however often it was interrupted."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.data.decode import BadImage
from vitscale.data.index import (
    CLASSES,
    INDEX,
    damaged,
    describe,
    index_table,
    read_description,
    read_index,
    write_index,
)
from vitscale.data.order import Indices, key_hashes, stream
from vitscale.data.shards import LOCK, STATE
from vitscale.data.sources import Encoded, Source, encoded, fail
from vitscale.data.tars import Entry, index_shard
from vitscale.files import HashedFile, disk_errors, locked, write_whole
from vitscale.locations import DESCRIPTION
from vitscale.sampling import PACK

SHARD_SAMPLES = 10_000
MAX_BAD = 0.01  # skipped here means never trained on; training itself tolerates less

# The bytes of a shard depend on its samples only; keys may have any length and be in any script.
TAR: dict[str, Any] = {"mtime": 0, "format": "PAX_FORMAT"}
PARTIAL = re.compile(
    rf"\.(.+-\d{{6,}}\.tar|{'|'.join(map(re.escape, (STATE, CLASSES, INDEX, DESCRIPTION)))})\.\d+\.partial"
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Packed:
    """What a pack did. `bad`: (file, reason) of each image that was skipped; `mended`: shards that were lost."""

    folder: Path
    description: dict[str, Any]
    bad: list[tuple[str, str]]
    was_there: bool = False
    resumed_at: int = 0
    mended: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a source is cut into shards: by samples, or by bytes where `shard_bytes` is set."""

    name: str
    seed: int = 0
    shard_samples: int = SHARD_SAMPLES
    shard_bytes: int | None = None
    max_bad: float = MAX_BAD


@dataclass
class _State:
    """Whole shards so far. Of a shard, `bad`: [position, file, reason] of what was skipped up to its end; `last`:
    nothing that can be read comes after it.
    """

    task: str
    shards: list[dict[str, Any]] = field(default_factory=list)

    @property
    def position(self) -> int:
        return int(self.shards[-1]["end"]) if self.shards else 0

    def save(self, folder: Path) -> None:
        write_whole(folder / STATE, json.dumps({"task": self.task, "shards": self.shards}).encode())


def pack(
    source: Source, out: Path, plan: Plan, *, workers: int | None = None, progress: Progress | None = None
) -> Packed:
    """Writes `source` to the folder `out`; on a folder where the same pack was interrupted it goes on.

    Where that pack had ended, the shards that are missing or have another size are written again.
    Raises `VitscaleError` (exit 5) for a folder that holds something else or that another process packs into, too many
    unreadable images, a class that lost all its images, and a full disk. Whole shards are kept in each case and nothing
    half-written stays.
    """
    task = _task(source, plan)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        existing = _existing(out, task)
        if existing is not None and is_whole(out):
            return Packed(out, existing, [], was_there=True)
        with locked(out / LOCK) as held:
            if not held:
                hint = "wait until it has ended, or choose another folder"
                raise fail(f"{out}: another process is packing into this folder", hint)
            existing = _existing(out, task)  # the other process may have ended a moment ago
            if existing is not None:
                mended = _mend(source, out, existing, workers)
                return Packed(out, existing, [], was_there=True, mended=mended)
            return _pack(source, out, plan, _State(task), workers, progress)


def is_whole(out: Path) -> bool:
    """Whether a pack has ended here and all its files are there, in their sizes."""
    description = read_description(out) if out.is_dir() else None
    if description is None or damaged(out, description["shards"]) or not (out / INDEX).is_file():
        return False
    return (out / CLASSES).is_file() or "task" not in description  # shards from elsewhere come without names


def _existing(out: Path, task: str) -> dict[str, Any] | None:
    existing = read_description(out)
    if existing is not None and existing.get("task") != task:
        raise fail(f"{out}: holds another data set ({existing['name']})", "choose an empty folder")
    return existing


def _pack(
    source: Source, out: Path, plan: Plan, state: _State, workers: int | None, progress: Progress | None
) -> Packed:
    order = _order(source, plan.seed)
    state.shards = _recorded(out, state.task)
    _forget_lost(source, order, out, state)
    state.save(out)
    _remove_leftovers(out, plan, state)
    resumed_at = state.position
    bad = _write_shards(source, order, _Writer(out, plan, state), workers, progress)
    _check_classes(source, order, state, bad)
    description = _finish(source, out, plan, state)
    return Packed(out, description, [(file, reason) for _, file, reason in bad], resumed_at=resumed_at)


def _task(source: Source, plan: Plan) -> str:
    """A digest of everything that decides what the shards hold."""
    what = json.dumps(
        [source.kind, list(source.classes), plan.name, plan.seed, plan.shard_samples, plan.shard_bytes], sort_keys=True
    )
    digest = hashlib.sha256(what.encode())
    digest.update("\0".join(source.keys).encode("utf-8", "surrogateescape"))
    digest.update(source.labels.tobytes())
    return digest.hexdigest()


def _recorded(out: Path, task: str) -> list[dict[str, Any]]:
    """Shards of the interrupted pack in `out`; none in a folder that is empty or holds none of another pack."""
    try:
        document = json.loads((out / STATE).read_bytes())
    except FileNotFoundError:
        others = [path.name for path in out.iterdir() if path.name != LOCK and not PARTIAL.fullmatch(path.name)]
        if others:
            raise fail(f"{out}: not an empty folder ({min(others)})", "choose an empty folder") from None
        return []
    shards: list[dict[str, Any]] = document.get("shards", [])
    if document.get("task") == task:
        return shards
    if shards:
        names = shards[0]["name"] if len(shards) == 1 else f"{shards[0]['name']} to {shards[-1]['name']}"
        raise fail(
            f"{out}: holds an unfinished pack of something else (another source, or other options)",
            f"delete {STATE} and {names} there to start afresh, or choose another folder",
        )
    return []


def _forget_lost(source: Source, order: Indices, out: Path, state: _State) -> None:
    """Drops shards from the first one on that is lost, or that left out an image which can be read by now."""
    lost = [shard["name"] for shard, _ in damaged(out, state.shards)]
    for number, shard in enumerate(state.shards):
        left_out = [position for position, _, _ in shard["bad"]]
        if shard.get("last"):
            left_out += range(shard["end"], len(source))
        repaired = left_out and any(isinstance(image, Encoded) for image in source.read(order[left_out]))
        if repaired or shard["name"] in lost:
            del state.shards[number:]
            return


def _remove_leftovers(out: Path, plan: Plan, state: _State) -> None:
    """What a pack that was cut off had begun, or had not recorded. Only names that a pack makes, and under its lock."""
    kept = {shard["name"] for shard in state.shards}
    shard_name = re.compile(rf"{re.escape(plan.name)}-\d{{6,}}\.tar")
    for path in list(out.iterdir()):
        if PARTIAL.fullmatch(path.name) or (shard_name.fullmatch(path.name) and path.name not in kept):
            path.unlink()


def _mend(source: Source, out: Path, description: dict[str, Any], workers: int | None) -> tuple[str, ...]:
    """Writes again what a finished pack has lost; returns the names of those shards."""
    lost = [shard for shard, _ in damaged(out, description["shards"])]
    if lost and not (out / INDEX).is_file():
        what = f"{out}: {lost[0]['name']} is lost, and {INDEX}, which says what it held"
        raise fail(what, f"delete the folder {out} and run the same command again")
    if lost:
        held: dict[str, list[str]] = {shard["name"]: [] for shard in lost}
        table = read_index(out)
        for name, key in zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True):
            if name in held:
                held[name].append(key)
        number = {key: i for i, key in enumerate(source.keys)}
        for shard in lost:
            chosen = np.array([number[key] for key in held[shard["name"]]], dtype=np.int64)
            _write_again(source, chosen, out, shard, workers)
    if not (out / INDEX).is_file():
        entries = {shard["name"]: index_shard(out / shard["name"]) for shard in description["shards"]}
        write_index(out, description, index_table(entries))
    _write_classes(source, out)
    return tuple(shard["name"] for shard in lost)


def _write_again(source: Source, chosen: Indices, out: Path, shard: dict[str, Any], workers: int | None) -> None:
    """One shard with the bytes it had. Raises `VitscaleError` where the source no longer gives them."""
    from webdataset.writer import TarWriter

    anew = f"delete the folder {out} and run the same command again: all of it is packed anew"
    with HashedFile(out / shard["name"]) as file:
        tar = TarWriter(file, **TAR)
        for i, image in encoded(source, chosen, workers):
            if isinstance(image, BadImage):
                what = f"{source.where(i)}: cannot be read ({image}), and was part of {shard['name']}, which is lost"
                raise fail(what, f"repair it; or {anew}")
            tar.write(_sample(source, i, image))
        tar.close()
        if file.sha256.hexdigest() != shard["sha256"]:
            what = f"{out / shard['name']}: is lost, and the source no longer gives the bytes that it had"
            raise fail(what, anew)
        file.commit()


def _sample(source: Source, i: int, image: Encoded) -> dict[str, Any]:
    return {"__key__": source.keys[i], image.ext: image.data, "cls": str(int(source.labels[i]))}


def _order(source: Source, seed: int) -> Indices:
    """The shuffled order, from keys: it does not depend on the order in which a source lists its images."""
    if source.in_order:
        return np.arange(len(source), dtype=np.int64)
    order: Indices = np.argsort(key_hashes(np.array(source.keys, dtype=np.str_), stream(PACK, seed)), kind="stable")
    return order


class _Writer:
    """webdataset's ShardWriter over files that become shards only when they are whole and recorded."""

    def __init__(self, out: Path, plan: Plan, state: _State) -> None:
        self.out, self.plan, self.state = out, plan, state
        self.position = state.position
        self.bad: list[list[Any]] = []
        self.sizes: set[tuple[int, int]] = set()
        self._file: HashedFile | None = None
        self._shards: Any = None
        self._ending = False

    def skip(self, position: int, where: str, reason: str) -> None:
        self.bad.append([position, where, reason])

    def write(self, position: int, sample: dict[str, Any], size: tuple[int, int]) -> None:
        if self._shards is None:
            self._shards = self._open()
        self._shards.write(sample)
        self.position = position + 1
        self.sizes.add(size)

    def _open(self) -> Any:
        # Loads torch, which a pack that turns out to be there already need not wait for.
        from webdataset.writer import ShardWriter

        return ShardWriter(
            f"{self.plan.name.replace('%', '%%')}-%06d.tar",
            maxcount=self.plan.shard_samples if self.plan.shard_bytes is None else 2**62,
            maxsize=2**62 if self.plan.shard_bytes is None else self.plan.shard_bytes,
            start_shard=len(self.state.shards),
            opener=self._begin,
            post=self._whole,
            verbose=0,
            **TAR,
        )

    def _begin(self, name: str) -> HashedFile:
        self.sizes = set()
        self._file = HashedFile(self.out / name)
        return self._file

    def _whole(self, name: str) -> None:
        assert self._file is not None
        self._file.commit()
        self.state.shards.append(
            {
                "name": name,
                "bytes": self._file.bytes,
                "samples": self._shards.count,
                "sha256": self._file.sha256.hexdigest(),
                "end": self.position,
                "image_size": min(self.sizes) if len(self.sizes) == 1 else None,
                "bad": [entry for entry in self.bad if entry[0] < self.position],
                "last": self._ending,
            }
        )
        self.bad = [entry for entry in self.bad if entry[0] >= self.position]
        self.state.save(self.out)

    def finish(self) -> None:
        self._ending = True
        if self._shards is not None:
            self._shards.close()

    def abandon(self) -> None:
        """After an error: the shard at hand is removed. Closing the ShardWriter would have called it whole."""
        if self._file is not None:
            self._file.close()


def _write_shards(
    source: Source, order: Indices, writer: _Writer, workers: int | None, progress: Progress | None
) -> list[tuple[int, str, str]]:
    """Everything from where the state ends; returns (position, file, reason) of all that was ever skipped."""
    start = writer.state.position
    skipped = sum(len(shard["bad"]) for shard in writer.state.shards)
    try:
        for position, (i, image) in enumerate(encoded(source, order[start:], workers), start):
            if isinstance(image, BadImage):
                skipped += 1
                writer.skip(position, source.where(i), str(image))
                _check_bad(source, writer.plan, skipped, source.where(i), str(image))
            else:
                writer.write(position, _sample(source, i, image), image.size)
            if progress is not None:
                progress(position + 1, len(source))
        writer.finish()
    finally:
        writer.abandon()
    recorded = [entry for shard in writer.state.shards for entry in shard["bad"]]
    return [(position, file, reason) for position, file, reason in [*recorded, *writer.bad]]


def _check_bad(source: Source, plan: Plan, count: int, where: str, reason: str) -> None:
    if count > plan.max_bad * len(source):
        raise fail(
            f"{where}: cannot be read ({reason}); {count} of {len(source):,} is above --max-bad {plan.max_bad:g}",
            "repair or remove the file, or raise --max-bad: unreadable images are left out",
        )


def _check_classes(source: Source, order: Indices, state: _State, bad: list[tuple[int, str, str]]) -> None:
    """A class that skipping left without images is an error, like one that had none."""
    if not state.shards:
        raise fail(f"{bad[0][1]}: cannot be read ({bad[0][2]}), nor can any other image", "repair the files")
    if not bad:
        return
    labels = source.labels[order[[position for position, _, _ in bad]]]
    left = np.bincount(source.labels) - np.bincount(labels, minlength=int(source.labels.max()) + 1)
    for label, (_, file, reason) in zip(labels.tolist(), bad, strict=True):
        if not left[label]:
            message = f"{file}: class {source.classes[label]!r} has no readable image ({reason})"
            raise fail(message, "repair its files or remove the class")


def _indexed(out: Path, shard: dict[str, Any]) -> list[Entry]:
    found = index_shard(out / shard["name"])
    if len(found) != shard["samples"]:
        what = f"{shard['samples']:,} images were written, and readers of shards find {len(found):,}"
        raise fail(f"{out / shard['name']}: {what}", "the names of two images are one key to them: rename one")
    return found


def _finish(source: Source, out: Path, plan: Plan, state: _State) -> dict[str, Any]:
    """Index and description, made from what lies on the disk."""
    table = index_table({shard["name"]: _indexed(out, shard) for shard in state.shards})
    sizes = {None if shard["image_size"] is None else (*shard["image_size"],) for shard in state.shards}
    keep = ("name", "bytes", "samples", "sha256")
    description = describe(
        plan.name,
        [{key: shard[key] for key in keep} for shard in state.shards],
        table,
        num_classes=len(source.classes),
        image_size=sizes.pop() if len(sizes) == 1 else None,
        source=f"{source.kind} {source.path}",
    )
    description["task"] = state.task
    description["seed"] = plan.seed
    _write_classes(source, out)
    write_index(out, description, table)
    (out / STATE).unlink()
    return description


def _write_classes(source: Source, out: Path) -> None:
    write_whole(out / CLASSES, (json.dumps(list(source.classes), indent=1, ensure_ascii=False) + "\n").encode())
