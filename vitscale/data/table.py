"""A CSV, TSV or Parquet file whose rows name an image file and its label."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitscale.data.folder import unique_keys
from vitscale.data.sources import Options, Source, encode_files, fail

SUFFIXES = (".csv", ".tsv", ".parquet")
IMAGE_COLUMNS = ("path", "image_path", "file", "filename", "file_name", "image", "filepath")
LABEL_COLUMNS = ("label", "class", "target", "category", "labels")


def open_table(path: Path, options: Options) -> Source:
    """Paths are relative to the table's folder. Labels are numbers from 0, or names, numbered in their order."""
    columns = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    images = _column(path, columns, options.image_column, IMAGE_COLUMNS, "--image-column")
    texts = _column(path, columns, options.label_column, LABEL_COLUMNS, "--label-column")
    row = next((i for i, (image, text) in enumerate(zip(images, texts, strict=True)) if not image or not text), None)
    if row is not None:
        raise fail(
            f"{_where(path, row)}: no {'label' if images[row] else 'image path'}", "fill it in or remove the row"
        )
    labels, classes = _labels(texts, options.num_classes)
    files = [path.parent / image for image in images]
    names = [Path(image) for image in images]
    if len(set(names)) < len(names):
        twice = len(names) - 1 - names[::-1].index(Counter(names).most_common(1)[0][0])
        raise fail(
            f"{_where(path, twice)}: image {images[twice]!r} is listed twice", "an image has one row and one label"
        )
    return Source(
        kind="table",
        path=path,
        keys=unique_keys([Path(str(name).replace("..", "%2E%2E").lstrip("/")) for name in names]),
        labels=labels,
        classes=classes,
        read=partial(encode_files, files),
        where=lambda i: f"{_where(path, i)}: {files[i]}",
    )


def _where(path: Path, row: int) -> str:
    """A row as an editor numbers it: the header is line 1 of a CSV."""
    return f"{path}: row {row + 1}" if path.suffix.lower() == ".parquet" else f"{path}:{row + 2}"


def _labels(texts: Sequence[str], num_classes: int | None) -> tuple[np.ndarray, tuple[str, ...]]:
    try:
        numbers = np.array([int(text) for text in texts], dtype=np.int64)
    except (ValueError, OverflowError):
        classes = tuple(sorted(set(texts)))
        number = {name: i for i, name in enumerate(classes)}
        return np.array([number[text] for text in texts], dtype=np.int64), classes
    count = num_classes or max(int(numbers.max(initial=0)) + 1, 1)
    return numbers, tuple(str(i) for i in range(count))


def _column(
    path: Path, columns: dict[str, list[str]], asked: str | None, usual: Sequence[str], option: str
) -> list[str]:
    name = asked or next((name for name in usual if name in columns), None)
    if name is None or name not in columns:
        wanted = f"no column {asked!r}" if asked else f"no column that is called {', '.join(usual[:3])} or the like"
        raise fail(f"{path}: {wanted}", f"{option} is one of {', '.join(columns)}")
    return columns[name]


def _csv(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise fail(f"{path}: cannot be read ({error})", "save the table as UTF-8") from error
    if not rows:
        raise fail(f"{path}: the table is empty", "its first line names the columns")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise fail(f"{path}:{number}: {len(row)} fields, and the header has {len(rows[0])}", "correct the line")
    return {name.strip(): [row[i].strip() for row in rows[1:]] for i, name in enumerate(rows[0])}


def _parquet(path: Path) -> dict[str, list[str]]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise fail(f"{path}: cannot be read ({error})", "write the table again") from error
    return {
        name: ["" if value is None else str(value) for value in table[name].to_pylist()] for name in table.column_names
    }
