"""Lists of training images that must not be trained on, as `vitscale data dedup` writes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vitscale.errors import MISSING, VitscaleError

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Keys of images that are left out, with their labels."""

    labels: Mapping[str, int]
    fingerprint: str | None
    """Of the data set that the list was made for."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """SHA-256 over the keys, whatever their order; part of a run's id."""
        return hashlib.sha256("\n".join(sorted(self.labels)).encode("utf-8", "surrogateescape")).hexdigest()


def read(path: Path) -> Exclusions:
    """The list in a file.

    Raises:
        VitscaleError: it is missing, or no such list (exit 5).
    """
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        hint = "vitscale data dedup TRAIN --against TASK writes one"
        raise VitscaleError(f"{path}: {error.strerror}", hint=hint, exit_code=MISSING) from None


@lru_cache(maxsize=16)
def _read(path: Path, written: int) -> Exclusions:  # noqa: ARG001  # `written` makes a changed file another key
    try:
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']}")
        labels = {str(entry["key"]): int(entry["label"]) for entry in document["excluded"]}
        return Exclusions(labels=labels, fingerprint=document.get("fingerprint"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VitscaleError(
            f"{path}: no list of exclusions ({type(error).__name__}: {error})",
            hint='vitscale data dedup writes one: {"schema": 1, "excluded": [{"key": ..., "label": ...}]}',
            exit_code=MISSING,
        ) from None
