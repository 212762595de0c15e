"""A CSV, TSV or Parquet file whose rows name an image file and its label."""

from __future__ import annotations

import contextlib
import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitscale.data.folder import unique_keys
from vitscale.data.sources import Options, Source, class_names, encode_files, fail
from vitscale.data.tars import class_limit

SUFFIXES = (".csv", ".tsv", ".parquet")
IMAGE_COLUMNS = ("path", "image_path", "file", "filename", "file_name", "image", "filepath")
LABEL_COLUMNS = ("label", "class", "target", "category", "labels")
FLOAT = re.compile(r"([+-]?\d+)\.0*")  # pandas writes whole numbers so when the column has ever had a gap
NULLS = ("nan", "null", "<na>")  # how tools write a gap among numbers
NEARLY_ALL = 0.9  # of the labels are numbers: the others are slips, and not names of classes

Table = tuple[list[str], Callable[[str], list[str]]]
"""The columns' names, and the texts of a column; "" for a null."""


def open_table(path: Path, options: Options) -> Source:
    """Paths are relative to the table's folder. Labels are numbers from 0, or names, numbered in their order."""
    if path.is_dir():
        which = f": {path / tables_in(path)[0]}" if tables_in(path) else ""
        raise fail(f"{path}: a folder, not a table", f"give the table itself{which}; or leave --kind out")
    names, column = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    image_column = _column(path, names, options.image_column, IMAGE_COLUMNS, "--image-column")
    label_column = _column(path, names, options.label_column, LABEL_COLUMNS, "--label-column")
    if path.suffix.lower() == ".parquet":
        _check_paths(path, image_column)
    images, texts = column(image_column), column(label_column)
    row = next((i for i, (image, text) in enumerate(zip(images, texts, strict=True)) if not image or not text), None)
    if row is not None:
        raise fail(
            f"{_where(path, row)}: no {'label' if images[row] else 'image path'}", "fill it in or remove the row"
        )
    labels, classes = _labels(path, texts, options.num_classes)
    files = [path.parent / image for image in images]
    paths = [Path(image) for image in images]
    if len(set(paths)) < len(paths):
        twice = len(paths) - 1 - paths[::-1].index(Counter(paths).most_common(1)[0][0])
        raise fail(
            f"{_where(path, twice)}: image {images[twice]!r} is listed twice", "an image has one row and one label"
        )
    return Source(
        kind="table",
        path=path,
        keys=unique_keys([Path(str(name).replace("..", "%2E%2E").lstrip("/")) for name in paths]),
        labels=labels,
        classes=classes,
        read=partial(encode_files, files),
        where=lambda i: f"{_where(path, i)}: {files[i]}",
    )


def tables_in(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir() if child.suffix.lower() in SUFFIXES and child.is_file())


def _where(path: Path, row: int) -> str:
    """A row as an editor numbers it: the header is line 1 of a CSV."""
    return f"{path}: row {row + 1}" if path.suffix.lower() == ".parquet" else f"{path}:{row + 2}"


def _labels(path: Path, texts: Sequence[str], num_classes: int | None) -> tuple[np.ndarray, tuple[str, ...]]:
    numbers = [_number(text) for text in texts]
    if None in numbers:
        _check_names(path, texts, numbers, num_classes)
        names = tuple(sorted(set(texts)))
        number = {name: i for i, name in enumerate(names)}
        return np.array([number[text] for text in texts], dtype=np.int64), names
    labels = [number for number in numbers if number is not None]
    limit = class_limit(len(labels))
    for row, label in enumerate(labels):
        if not -limit < label < limit:
            raise fail(
                f"{_where(path, row)}: label {texts[row]} is no number of a class",
                "classes are numbered from 0; if this is a time or an id, --label-column names another column",
            )
    return np.array(labels, dtype=np.int64), class_names(num_classes or max([0, *labels]) + 1, len(labels))


def _number(text: str) -> int | None:
    """The whole number that a text is, 3.0 too; None for a name."""
    try:
        return int(text)
    except ValueError:
        match = FLOAT.fullmatch(text)
        return int(match[1]) if match else None


def _check_names(path: Path, texts: Sequence[str], numbers: Sequence[int | None], num_classes: int | None) -> None:
    """Refuses names that are slips among numbers: a single one would number every class anew, in the order of texts."""
    wrong = [row for row, number in enumerate(numbers) if number is None]
    first = texts[wrong[0]]
    if len(wrong) < len(texts) and all(texts[row].lower() in NULLS for row in wrong):
        raise fail(f"{_where(path, wrong[0])}: no label ({first})", "fill it in or remove the row")
    if num_classes is not None:
        hint = "correct it; where labels are names, leave --num-classes out"
    elif len(texts) - len(wrong) >= NEARLY_ALL * len(texts):
        hint = "correct it; if the numbers are names too, put a letter before each"
    else:
        return
    what = "a whole number" if _is_float(first) else "a number"
    raise fail(f"{_where(path, wrong[0])}: label {first!r} is not {what}", hint)


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _column(path: Path, names: Sequence[str], asked: str | None, usual: Sequence[str], option: str) -> str:
    name = asked or next((name for name in usual if name in names), None)
    if name is None or name not in names:
        wanted = f"no column {asked!r}" if asked else f"no column that is called {', '.join(usual[:3])} or the like"
        raise fail(f"{path}: {wanted}", f"{option} is one of {', '.join(names)}")
    return name


def _csv(path: Path) -> Table:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except OSError as error:
        raise fail(f"{path}: cannot be read ({error.strerror})", "the table is a file that you may read") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise fail(f"{path}: cannot be read ({error})", "save the table as UTF-8") from error
    if not rows:
        raise fail(f"{path}: the table is empty", "its first line names the columns")
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            fields = "1 field" if len(row) == 1 else f"{len(row)} fields"
            raise fail(f"{path}:{number}: {fields}, and the header has {len(rows[0])}", "correct the line")
    place = {name.strip(): i for i, name in enumerate(rows[0])}
    return list(place), lambda name: [row[place[name]].strip() for row in rows[1:]]


def _parquet(path: Path) -> Table:
    """Only the columns that are asked for are read: others may hold the images themselves."""

    def column(name: str) -> list[str]:
        with _parquet_errors(path):
            values = pq.read_table(path, columns=[name])[name].to_pylist()
        # A gap among floats is null or NaN, which alone differs from itself.
        return ["" if value is None or value != value else str(value) for value in values]

    with _parquet_errors(path):
        return pq.read_schema(path).names, column


@contextlib.contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise fail(f"{path}: cannot be read ({error})", "write the table again") from error


def _check_paths(path: Path, name: str) -> None:
    with _parquet_errors(path):
        kind = pq.read_schema(path).field(name).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_nested(value) or any(word in str(value) for word in ("binary", "bytes")):
        what = "records" if pa.types.is_nested(value) else "bytes"
        raise fail(
            f"{path}: column {name!r} holds {what} ({value}), not paths of image files",
            "write the images to files and their paths to a column, which --image-column names",
        )
