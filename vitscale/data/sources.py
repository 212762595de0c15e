"""Where images come from before they are shards: what every kind of source offers, and which kind a path is."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from vitscale.data.decode import BadImage, encode_png, open_image, to_rgb
from vitscale.data.tars import class_limit
from vitscale.errors import MISSING, USAGE, VitscaleError
from vitscale.locations import is_tar
from vitscale.processes import cores

KINDS = ("folder", "idx", "cifar", "table", "shards", "hub")

HUB = "hf:"  # before the name of a data set of the Hugging Face hub

# What is stored as it is: the formats that readers of shards agree on. MPO is a JPEG with a second picture behind it.
KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image as it goes into a shard; `size` is width and height."""

    ext: str
    data: bytes
    size: tuple[int, int]


@dataclass(frozen=True)
class Source:
    """Numbered images with labels; nothing is read before it is asked for."""

    kind: str
    path: Path
    keys: Sequence[str]
    """Unique; they stay with an image however it is packed, and subsets are chosen by them."""
    labels: Int64[np.ndarray, " n"]
    classes: tuple[str, ...]
    read: Callable[[Int64[np.ndarray, " b"]], list[Encoded | BadImage]]
    """Encodes several images; in place of one that cannot be read, the reason."""
    where: Callable[[int], str]
    """The file that a sample comes from, for messages."""
    chunk: int = 32
    """How many images one call of `read` should be asked for."""
    in_order: bool = False
    """Whether its images are packed in the order of this list, as reading them in another is slow."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Options:
    """What a source may be told on the command line; each kind takes what it knows."""

    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    num_classes: int | None = None
    allow_empty: bool = False


def fail(message: str, hint: str) -> VitscaleError:
    return VitscaleError(message, hint=hint, exit_code=MISSING)


def open_source(path: Path, *, kind: str | None = None, options: Options | None = None) -> Source:
    """The source at `path`, of the kind that it looks like. Raises `VitscaleError` naming the file that is wrong."""
    options = options or Options()
    if str(path).startswith(HUB) and kind in (None, "hub"):
        from vitscale.data import hub

        source = hub.open_hub(str(path).removeprefix(HUB), options)
    else:
        if not path.exists():
            what = "a folder of class folders, IDX or CIFAR files or shards, a table, or hf:NAME"
            raise fail(f"{path}: no such file or folder", f"the source is {what}")
        source = _open_local(path, kind or kind_of(path), options)
    check_labels(source, options)
    return source


def _open_local(path: Path, kind: str, options: Options) -> Source:
    from vitscale.data import cifar, folder, hub, idx, reshard, table

    openers = {
        "folder": folder.open_folder,
        "idx": idx.open_idx,
        "cifar": cifar.open_cifar,
        "table": table.open_table,
        "shards": reshard.open_all,
        "hub": lambda path, options: hub.open_hub(str(path), options),
    }
    if kind not in openers:
        raise VitscaleError(f"{kind!r} is no kind of source", hint=f"one of {', '.join(KINDS)}", exit_code=USAGE)
    return openers[kind](path, options)


def kind_of(path: Path) -> str:
    """Decided by what is there, not by the name of the data set."""
    from vitscale.data import cifar, idx, table

    if path.is_file():
        if path.suffix.lower() in table.SUFFIXES:
            return "table"
        if idx.is_idx(path):
            return "idx"
        raise fail(f"{path}: neither a table nor an IDX file", f"tables end in {', '.join(table.SUFFIXES)}")
    names = {child.name for child in path.iterdir()}
    if any(is_tar(name) for name in names):
        return "shards"
    if cifar.LAYOUTS.keys() & {next((k for k, v in cifar.LAYOUTS.items() if v.meta in names), "")}:
        return "cifar"
    if any("idx3" in name or "idx4" in name for name in names):
        return "idx"
    folders = [child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")]
    tables = table.tables_in(path)
    if tables and len(folders) == 1:
        raise fail(
            f"{path}: one folder, {folders[0]}, beside {tables[0]}: class folders or a table?",
            f"give the table itself: {path / tables[0]}; or say --kind folder, and {folders[0]} is the only class",
        )
    if folders:
        return "folder"
    if tables:
        raise fail(f"{path}: a folder with {tables[0]} in it", f"give the table itself: {path / tables[0]}")
    raise fail(f"{path}: no class folders, IDX files, CIFAR batches or table in it", "see docs/data.md for the layouts")


def check_labels(source: Source, options: Options) -> None:
    """Raises `VitscaleError` for no images, a label outside the classes, and a class without images."""
    if not len(source):
        raise fail(f"{source.path}: no images", "images end in .jpg, .png, .webp, .bmp, .gif, .tif or .ppm")
    if len(set(source.keys)) < len(source):
        twice = Counter(source.keys).most_common(1)[0][0]
        raise fail(f"{source.path}: two images share the key {twice!r}", "rename one of them")
    outside = np.flatnonzero((source.labels < 0) | (source.labels >= len(source.classes)))
    if len(outside):
        i = int(outside[0])
        raise fail(
            f"{source.where(i)}: label {source.labels[i]} is outside the range 0 to {len(source.classes) - 1}",
            "labels count from 0; --num-classes says how many there are",
        )
    empty = np.flatnonzero(np.bincount(source.labels, minlength=len(source.classes)) == 0)
    if len(empty) and not options.allow_empty:
        which = source.classes[empty[0]]
        more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        where = source.path / which if source.kind == "folder" else source.path
        raise fail(f"{where}: class {which!r} has no images{more}", "remove the class, or keep it with --allow-empty")


def class_names(count: int, images: int) -> tuple[str, ...]:
    """Names of classes that are numbers. Raises `VitscaleError` (exit 2) for a count that `--num-classes` mistook."""
    if count > class_limit(images):
        hint = f"at most {class_limit(images):,}"
        raise VitscaleError(f"--num-classes {count} is no number of classes", hint=hint, exit_code=USAGE)
    return tuple(str(number) for number in range(count))


def encode_files(paths: Sequence[Path], index: Int64[np.ndarray, " b"]) -> list[Encoded | BadImage]:
    """Image files as they are where readers of shards take the format, else as PNG; each is decoded as a check."""
    return [_caught(partial(encode_file, paths[int(i)])) for i in index]


def encode_file(path: Path) -> Encoded:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error
    return encode_image(data, open_image(data))


def encode_image(data: bytes, image: Image.Image) -> Encoded:
    """A decoded image's own bytes where readers of shards take their format, else PNG."""
    if image.format in KEPT:
        return Encoded(KEPT[image.format], data, image.size)
    keep = image.mode in ("1", "L", "RGB")
    return Encoded("png", encode_png(image if keep else to_rgb(image)), image.size)


def encode_array(pixels: UInt8[np.ndarray, " ..."], index: Int64[np.ndarray, " b"]) -> list[Encoded | BadImage]:
    """Rows of an array of images as PNG: nothing of them is lost."""
    return [Encoded("png", encode_png(pixels[int(i)]), (pixels.shape[2], pixels.shape[1])) for i in index]


def encoded(
    source: Source, order: Int64[np.ndarray, " n"], workers: int | None
) -> Iterator[tuple[int, Encoded | BadImage]]:
    """Sample numbers and images in the order asked for; several threads work ahead of the writer, a bounded way."""
    count = workers or cores()
    chunks = [order[i : i + source.chunk] for i in range(0, len(order), source.chunk)]
    with ThreadPoolExecutor(count, thread_name_prefix="pack") as pool:
        ahead: deque[tuple[np.ndarray, Future[list[Encoded | BadImage]]]] = deque()
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


def _caught(read: Callable[[], Encoded]) -> Encoded | BadImage:
    try:
        return read()
    except BadImage as error:
        return error
