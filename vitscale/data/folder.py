"""A folder of class folders with images, at any depth."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vitscale.data.sources import Options, Source, encode_files, fail

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")


def open_folder(path: Path, options: Options) -> Source:  # noqa: ARG001
    """Every sub-folder is a class, in the order of their names; hidden files and what is no image are left alone."""
    if not path.is_dir():
        raise fail(f"{path}: a file, not a folder of class folders", "leave --kind out, or give the folder")
    classes = sorted(child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_images(path / name))
        files += found
        labels += [label] * len(found)
    return Source(
        kind="folder",
        path=path,
        keys=unique_keys([file.relative_to(path) for file in files]),
        labels=np.array(labels, dtype=np.int64),
        classes=tuple(classes),
        read=partial(encode_files, files),
        where=lambda i: str(files[i]),
    )


def _images(folder: Path) -> list[Path]:
    def unreadable(error: OSError) -> None:
        raise fail(f"{error.filename}: {error.strerror}", "make the folder readable, or move it out of the source")

    return [
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=unreadable)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    ]


def unique_keys(paths: Sequence[Path]) -> list[str]:
    """A key from each path: without its suffix, other dots escaped, as readers split at a base name's first dot.

    Files that differ in their suffix only keep it.
    """
    stems = [_key(path) for path in paths]
    times = Counter(stems)
    return [
        # An escape is %2E or %25, so that this mark stands for itself.
        f"{stem}%{path.suffix[1:]}" if times[stem] > 1 else stem
        for path, stem in zip(paths, stems, strict=True)
    ]


def _key(path: Path) -> str:
    name = path.stem.replace("%", "%25").replace(".", "%2E")
    # A file name may be any bytes; a key is UTF-8.
    return str(path.with_name(name)).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
