"""IDX files, as MNIST and its relatives come: one file of images, one of labels, gzipped or not."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vitscale.data.sources import Options, Source, class_names, encode_array, fail

PREFIXES = {"train": ("train",), "test": ("t10k", "test")}
UNSIGNED_BYTE = 8


def is_idx(path: Path) -> bool:
    try:
        return _content(path, 4)[:3] == bytes([0, 0, UNSIGNED_BYTE])
    except (OSError, EOFError, zlib.error):
        return False


def open_idx(path: Path, options: Options) -> Source:
    """`path` is the file of images, or the folder that holds the four files."""
    images = _images_in(path, options.split) if path.is_dir() else path
    pixels = read_idx(images)
    if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3)) or not pixels.size:
        raise fail(f"{images}: an array of shape {pixels.shape}, not one of images", "give the file of images (idx3)")
    labels_path = _labels_of(images)
    labels = read_idx(labels_path)
    if labels.shape != pixels.shape[:1]:
        raise fail(
            f"{labels_path}: labels of shape {labels.shape} for {len(pixels):,} images",
            "the files do not belong together",
        )
    count = options.num_classes or int(labels.max()) + 1
    return array_source("idx", path, pixels, labels, class_names(count, len(labels)), str(images))


def array_source(
    kind: str, path: Path, pixels: UInt8[np.ndarray, "n ..."], labels: np.ndarray, classes: tuple[str, ...], where: str
) -> Source:
    """Images in memory. Their keys carry a digest of the pixels, so that other images never pass for these."""
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:8]
    squeezed = pixels[..., 0] if pixels.ndim == 4 and pixels.shape[3] == 1 else pixels
    return Source(
        kind=kind,
        path=path,
        keys=[f"{digest}-{i:06d}" for i in range(len(pixels))],
        labels=labels.astype(np.int64),
        classes=classes,
        read=partial(encode_array, squeezed),
        where=lambda i: f"{where}: image {i}",
    )


def read_idx(path: Path) -> UInt8[np.ndarray, " ..."]:
    """The array of unsigned bytes in an IDX file (Y. LeCun's format: type, rank, sizes, data; big-endian)."""
    try:
        data = _content(path)
    except FileNotFoundError:
        raise fail(f"{path}: no such file", "images and labels are two files in one folder") from None
    except (OSError, EOFError, zlib.error) as error:
        raise fail(f"{path}: cannot be read ({error})", "fetch the file again") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != UNSIGNED_BYTE:
        raise fail(f"{path}: not an IDX file of bytes", "IDX files begin with 00 00 08")
    rank = data[3]
    shape = tuple(int(size) for size in np.frombuffer(data[4 : 4 + 4 * rank], dtype=">u4"))
    expected = 4 + 4 * rank + int(np.prod(shape, dtype=object))
    if len(shape) != rank or len(data) != expected:
        raise fail(f"{path}: {len(data):,} bytes, and its header says {expected:,}", "fetch the file again")
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)


def _content(path: Path, size: int = -1) -> bytes:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if zipped else path.open("rb") as file:
        return file.read(size)


def _images_in(folder: Path, split: str) -> Path:
    if split not in PREFIXES:
        raise fail(f"{split!r} is no split of IDX files", "--split train or --split test")
    found = sorted(
        p for p in folder.iterdir() if p.name.startswith(PREFIXES[split]) and ("idx3" in p.name or "idx4" in p.name)
    )
    if not found:
        wanted = PREFIXES[split][0] + "-images-idx3-ubyte"
        raise fail(f"{folder / wanted}: no such file (nor with .gz)", "--split chooses train or test")
    return found[0]


def _labels_of(images: Path) -> Path:
    name = images.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    if name == images.name:
        raise fail(f"{images}: no file of labels goes by this name", "name the pair ...images... and ...labels...")
    stem = name.removesuffix(".gz")
    return next(
        (p for p in (images.with_name(stem), images.with_name(stem + ".gz")) if p.exists()), images.with_name(name)
    )
