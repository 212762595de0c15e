"""A data set of the Hugging Face hub, or a folder that the `datasets` library can load."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from vitscale.data.decode import BadImage, open_image
from vitscale.data.sources import HUB, Encoded, Options, Source, class_names, encode_image, fail
from vitscale.errors import MISSING, VitscaleError

if TYPE_CHECKING:
    from datasets import Dataset


def open_hub(name: str, options: Options) -> Source:
    """`NAME` or `NAME:CONFIG` on the hub, or a local folder; the image and the label are found by their types.

    Raises:
        VitscaleError: the library is not there, it cannot load the set, or the set has no image or label (exit 5).
    """
    rows = _load(name, options.split)
    image = _column(name, rows, options.image_column, _is_image, "--image-column")
    label = _column(name, rows, options.label_column, _is_label, "--label-column")
    rows = _undecoded(rows.select_columns([image, label]), image)
    labels = np.array(rows[label], dtype=np.int64)
    feature = rows.features[label]
    names = tuple(getattr(feature, "names", ()) or class_names(_count(labels, options), len(labels)))
    return Source(
        kind="hub",
        path=Path(name),
        keys=[f"{options.split}-{i:08d}-{_digest(row)}" for i, row in enumerate(rows[image])],
        labels=labels,
        classes=names,
        read=partial(_read, rows, image),
        where=lambda i: f"{HUB}{name}: {options.split} image {i}",
    )


def _load(name: str, split: str) -> Dataset:
    try:
        import datasets
    except ImportError:
        raise VitscaleError(
            f"{HUB}{name}: the datasets library is not installed",
            hint="pip install 'vitscale[hf]'",
            exit_code=MISSING,
        ) from None
    if not name:
        raise fail(f"{HUB}: names no data set", "hf:NAME, or hf:NAME:CONFIG")
    path, _, config = name.partition(":") if not Path(name).exists() else (name, "", "")
    try:
        return datasets.load_dataset(path, config or None, split=split)
    except Exception as error:  # what its builders raise has no common base
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        hint = "NAME or NAME:CONFIG as the hub writes them; --split names one of its splits"
        raise fail(f"{HUB}{name}: cannot be loaded ({reason})", hint) from error


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def _is_label(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel" or str(getattr(feature, "dtype", "")).startswith(("int", "uint"))


def _column(name: str, rows: Dataset, asked: str | None, fits: Any, option: str) -> str:
    """The column that was asked for, or the only one of its kind; class labels come before plain numbers."""
    fitting = [column for column, feature in rows.features.items() if fits(feature)]
    named = [column for column in fitting if type(rows.features[column]).__name__ == "ClassLabel"]
    wanted = asked or (named or fitting or [None])[0]
    if wanted not in fitting or (asked is None and len(named or fitting) > 1):
        what = f"no column {asked!r} of that kind" if asked else f"{len(fitting)} columns could be it"
        raise fail(f"{HUB}{name}: {what}", f"{option} is one of {', '.join(fitting or rows.features)}")
    return str(wanted)


def _undecoded(rows: Dataset, image: str) -> Dataset:
    """The same rows with images as files' bytes: what is a JPEG stays the JPEG that it was."""
    import datasets

    return rows.cast_column(image, datasets.Image(decode=False))


def _count(labels: Int64[np.ndarray, " n"], options: Options) -> int:
    return options.num_classes or int(labels.max(initial=-1)) + 1


def _bytes(row: dict[str, Any]) -> bytes:
    data: bytes = row["bytes"] if row["bytes"] is not None else Path(row["path"]).read_bytes()
    return data


def _digest(row: dict[str, Any]) -> str:
    """So that another image in the same place never passes for this one."""
    return hashlib.sha256(_bytes(row)).hexdigest()[:8]


def _read(rows: Dataset, image: str, index: Int64[np.ndarray, " b"]) -> list[Encoded | BadImage]:
    found: list[Encoded | BadImage] = []
    for row in rows[index.tolist()][image]:
        try:
            data = _bytes(row)
            found.append(encode_image(data, open_image(data)))
        except BadImage as error:
            found.append(error)
        except OSError as error:
            found.append(BadImage(error.strerror or str(error)))
    return found
