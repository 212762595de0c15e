"""What a person has to look at: a run's folder that cannot be used as it is. It concerns that run alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitscale.errors import MISSING, VitscaleError
from vitscale.files import FULL, disk_errors


class Unusable(VitscaleError):  # noqa: N818
    """A folder that must not be touched, or cannot be read: it concerns its run alone, and a person has to look."""


class Unwritable(Unusable):
    """A folder that others may read: another user's, or on a read-only mount of its own."""


@contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Of what the disk refuses to a run's folder alone, makes a word on that run.

    Raises:
        Unwritable: the folder takes no files, and the one above does (exit 5).
        VitscaleError: the disk is full, or the folder above takes none (exit 5).
    """
    try:
        yield
    except OSError as error:
        if _concerns_it_alone(error, folder):
            raise Unwritable(
                f"{folder}: {error.strerror}",
                hint="let its owner go on with the run, or move the folder away: it is then trained again",
                exit_code=MISSING,
            ) from error
        with disk_errors(folder.parent):
            raise


def _concerns_it_alone(error: OSError, folder: Path) -> bool:
    """Whether a disk that refuses a run's folder takes others beside it."""
    return error.errno not in FULL and folder.exists() and os.access(folder.parent, os.W_OK | os.X_OK)


def append_nothing(folder: Path) -> None:
    """Raises OSError where a log that is there takes no more lines: its folder may be a group's, and it its owner's."""
    for name in ("events.jsonl", "log.txt"):
        if (folder / name).is_file():
            (folder / name).open("ab").close()


def in_the_way(folder: Path) -> Unusable | None:
    """What is a file where a run has a folder, or a folder where it has a file (exit 5); None: nothing is."""
    if not folder.exists():  # so it is with most, of a study that begins
        return None
    for path in (folder, folder / "checkpoints"):
        if path.exists() and not path.is_dir():
            return _away(f"{path} is a file and no folder")
    for path in (folder / "events.jsonl", folder / "log.txt"):
        if path.is_dir():
            return _away(f"{path} is a folder and no file")
    return None


def _away(what: str) -> Unusable:
    return Unusable(what, hint="move it away: the run is then trained", exit_code=MISSING)
