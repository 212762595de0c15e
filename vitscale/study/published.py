"""Published checkpoints that stand in a study: their content is what names them."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from vitscale.errors import MISSING, VitscaleError
from vitscale.study.datasets import Dataset

UNKNOWN_DATA = Dataset(name="", samples=0, num_classes=0, fingerprint=None)
"""What a published checkpoint was trained on, as far as a study can know."""


def content(file: Path) -> str:
    """SHA-256 of the file in hex, computed once while it stays the same.

    Raises:
        VitscaleError: there is no such file (exit 5).
    """
    try:
        facts = file.stat()
        return _sha256(file, facts.st_mtime_ns, facts.st_size)
    except OSError as error:
        raise VitscaleError(
            f"no checkpoint at {file}: {error.strerror}",
            hint="give the path of the file, seen from where the command runs",
            exit_code=MISSING,
        ) from None


@lru_cache(maxsize=256)
def _sha256(file: Path, written: int, size: int) -> str:  # noqa: ARG001  # they make a changed file another key
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
