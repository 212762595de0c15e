"""CIFAR-10 and CIFAR-100 in their Python version, read without running what a pickle may ask for."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.data.idx import array_source
from vitscale.data.sources import Options, Source, fail


@dataclass(frozen=True, slots=True)
class Layout:
    """Files and fields of one of the data sets; `labels` and `names` are by label column, the default first."""

    meta: str
    files: dict[str, tuple[str, ...]]
    labels: dict[str, str]


LAYOUTS = {
    "cifar-10": Layout(
        "batches.meta",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        {"labels": "label_names"},
    ),
    "cifar-100": Layout(
        "meta",
        {"train": ("train",), "test": ("test",)},
        {"fine_labels": "fine_label_names", "coarse_labels": "coarse_label_names"},
    ),
}


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text as {encoding}")
    return text.encode("latin1")


# What a pickle of arrays calls. numpy has moved these functions about, so they are asked from numpy itself.
_RECONSTRUCT: Callable[..., Any] = np.zeros(1).__reduce__()[0]  # type: ignore[assignment]
_FROM_BUFFER: Callable[..., Any] = np.zeros(1).__reduce_ex__(5)[0]  # type: ignore[assignment]
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    """Arrays, dicts, lists, strings and numbers; anything else is refused before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of CIFAR")
        return ALLOWED[module, name]


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a CIFAR file. Raises `VitscaleError` for anything else, without running any of it."""
    try:
        content = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except FileNotFoundError:
        raise fail(f"{path}: no such file", "the folder holds the Python version's files, unpacked") from None
    except Exception as error:  # a broken pickle raises nearly anything
        raise fail(f"{path}: not a CIFAR file ({error})", "fetch the data set again") from error
    if not isinstance(content, dict):
        raise fail(f"{path}: not a CIFAR file (a {type(content).__name__})", "fetch the data set again")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def open_cifar(path: Path, options: Options) -> Source:
    """`path` is the unpacked folder of either data set."""
    layout = next((layout for layout in LAYOUTS.values() if (path / layout.meta).is_file()), None)
    if layout is None:
        raise fail(f"{path}: neither batches.meta (CIFAR-10) nor meta (CIFAR-100) in it", "give the unpacked folder")
    if options.split not in layout.files:
        raise fail(f"{options.split!r} is no split of CIFAR", "--split train or --split test")
    column = options.label_column or next(iter(layout.labels))
    if column not in layout.labels:
        raise fail(f"{path}: no labels {column!r} in it", f"--label-column is one of {', '.join(layout.labels)}")
    names = read_pickle(path / layout.meta).get(layout.labels[column])
    if not isinstance(names, list):
        raise fail(f"{path / layout.meta}: no {layout.labels[column]} in it", "fetch the data set again")
    parts = [_batch(path / name, column) for name in layout.files[options.split]]
    pixels = np.concatenate([data for data, _ in parts])
    labels = np.concatenate([found for _, found in parts])
    classes = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    return array_source("cifar", path, pixels, labels, classes, str(path / layout.files[options.split][0]))


def _batch(path: Path, column: str) -> tuple[np.ndarray, np.ndarray]:
    content = read_pickle(path)
    try:
        labels = np.array(content[column], dtype=np.int64)
        data = np.asarray(content["data"])
        if data.dtype != np.uint8 or data.shape != (len(labels), 3072):
            raise ValueError(f"data of shape {data.shape} and type {data.dtype} for {len(labels)} labels")
    except (KeyError, ValueError, TypeError) as error:
        raise fail(f"{path}: not a CIFAR batch ({error})", "fetch the data set again") from error
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels
