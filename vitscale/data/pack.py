"""Any source to shards: shuffled, resumable, and byte for byte the same however often it was interrupted."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.data.decode import BadImage
from vitscale.data.order import PACK, Indices, key_hashes, stream
from vitscale.data.shards import CLASSES, STATE, describe, index_table, read_description, write_index
from vitscale.data.sources import Encoded, Source, fail
from vitscale.data.tars import index_tar
from vitscale.files import HashedFile, disk_errors, write_whole

SHARD_SAMPLES = 10_000
MAX_BAD = 0.01  # skipped here means never trained on; training itself tolerates less

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Packed:
    """What a pack did. `bad`: (file, reason) of each image that was skipped."""

    folder: Path
    description: dict[str, Any]
    bad: list[tuple[str, str]]
    was_there: bool = False
    resumed_at: int = 0


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
    """Whole shards so far. `bad` of a shard: [position, file, reason] of what was skipped up to its end."""

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

    Raises `VitscaleError` (exit 5) for a folder that holds something else, too many unreadable images, a class that
    lost all its images, and a full disk. Whole shards are kept in each case and nothing half-written stays.
    """
    task = _task(source, plan)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        existing = read_description(out)
        if existing is not None:
            if existing.get("task") != task:
                raise fail(f"{out}: holds another data set ({existing['name']})", "choose an empty folder")
            return Packed(out, existing, [], was_there=True)
        state = _load_state(out, task)
        resumed_at = state.position
        order = _order(source, plan.seed)
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


def _load_state(out: Path, task: str) -> _State:
    for leftover in out.glob(".*.partial"):
        leftover.unlink()
    try:
        document = json.loads((out / STATE).read_bytes())
    except FileNotFoundError:
        others = [path.name for path in out.iterdir()]
        if others:
            raise fail(f"{out}: not an empty folder ({min(others)})", "choose an empty folder") from None
        state = _State(task)
        state.save(out)
        return state
    if document["task"] != task:
        raise fail(f"{out}: holds an unfinished pack of something else", "finish that one, or choose another folder")
    state = _State(task, document["shards"])
    kept = {shard["name"] for shard in state.shards}
    for path in out.glob("*.tar"):
        if path.name not in kept:  # whole, but cut off before it was recorded: it is written again
            path.unlink()
    return state


def _order(source: Source, seed: int) -> Indices:
    """The shuffled order, from keys: it does not depend on the order in which a source lists its images."""
    order: Indices = np.argsort(key_hashes(np.array(source.keys, dtype=np.str_), stream(PACK, seed)), kind="stable")
    return order


def _encoded(source: Source, order: Indices, workers: int | None) -> Iterator[tuple[int, Encoded | BadImage]]:
    """Sample numbers and images in the order asked for; several threads work ahead of the writer, a bounded way."""
    count = workers or len(os.sched_getaffinity(0))
    chunks = [order[i : i + source.chunk] for i in range(0, len(order), source.chunk)]
    with ThreadPoolExecutor(count, thread_name_prefix="pack") as pool:
        ahead: deque[tuple[Indices, Future[list[Encoded | BadImage]]]] = deque()
        try:
            for chunk in chunks:
                ahead.append((chunk, pool.submit(source.read, chunk)))
                if len(ahead) > 2 * count:
                    done, future = ahead.popleft()
                    yield from zip(done.tolist(), future.result(), strict=True)
            while ahead:
                done, future = ahead.popleft()
                yield from zip(done.tolist(), future.result(), strict=True)
        finally:
            for _, future in ahead:
                future.cancel()


class _Writer:
    """webdataset's ShardWriter over files that become shards only when they are whole and recorded."""

    def __init__(self, out: Path, plan: Plan, state: _State) -> None:
        self.out, self.plan, self.state = out, plan, state
        self.position = state.position
        self.bad: list[list[Any]] = []
        self.sizes: set[tuple[int, int]] = set()
        self._file: HashedFile | None = None
        self._shards: Any = None

    def skip(self, position: int, where: str, reason: str) -> None:
        self.bad.append([position, where, reason])

    def write(self, position: int, key: str, label: int, image: Encoded) -> None:
        if self._shards is None:
            self._shards = self._open()
        self._shards.write({"__key__": key, image.ext: image.data, "cls": str(label)})
        self.position = position + 1
        self.sizes.add(image.size)

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
            mtime=0,  # the bytes of a shard depend on its samples only
            format="PAX_FORMAT",  # keys of any length and in any script
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
            }
        )
        self.bad = [entry for entry in self.bad if entry[0] >= self.position]
        self.state.save(self.out)

    def finish(self) -> None:
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
        for position, (i, image) in enumerate(_encoded(source, order[start:], workers), start):
            if isinstance(image, BadImage):
                skipped += 1
                writer.skip(position, source.where(i), str(image))
                _check_bad(source, writer.plan, skipped, source.where(i), str(image))
            else:
                writer.write(position, source.keys[i], int(source.labels[i]), image)
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


def _finish(source: Source, out: Path, plan: Plan, state: _State) -> dict[str, Any]:
    """Index and description, made from what lies on the disk."""
    entries = {shard["name"]: index_tar(out / shard["name"]) for shard in state.shards}
    sizes = {None if shard["image_size"] is None else (*shard["image_size"],) for shard in state.shards}
    keep = ("name", "bytes", "samples", "sha256")
    description = describe(
        plan.name,
        [{key: shard[key] for key in keep} for shard in state.shards],
        entries,
        num_classes=len(source.classes),
        image_size=sizes.pop() if len(sizes) == 1 else None,
        source=f"{source.kind} {source.path}",
    )
    description["task"] = state.task
    description["seed"] = plan.seed
    write_whole(out / CLASSES, (json.dumps(list(source.classes), indent=1, ensure_ascii=False) + "\n").encode())
    write_index(out, description, index_table(entries))
    (out / STATE).unlink()
    return description
