"""Under which number an attempt is recorded: a run whose folder was deleted begins to count anew, its parts do not."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

SAME = timedelta(seconds=1)
"""Of one attempt, its worker and its log say within milliseconds of each other when it started."""

_listed: dict[Path, tuple[int, dict[str, set[int]]]] = {}
"""Of each folder what it held at its last change, by run: of ten thousand parts a sweep asks as often."""


def part_name(run_id: str, attempt: int) -> str:
    """The file's name of one attempt's part."""
    return f"{run_id}-{attempt}.parquet"


def recorded(folder: Path) -> Mapping[str, set[int]]:
    """The attempts that have a part, by run; 0 of one that nobody tried."""
    try:
        changed = folder.stat().st_mtime_ns
    except OSError:
        return {}
    before = _listed.get(folder)
    if before is not None and before[0] == changed:
        return before[1]
    found: dict[str, set[int]] = {}
    for path in folder.glob("*.parquet"):
        run_id, _, number = path.stem.rpartition("-")
        if number.isdecimal() and not path.name.startswith("."):
            found.setdefault(run_id, set()).add(int(number))
    _listed[folder] = changed, found
    return found


def written(folder: Path, run_id: str, attempt: int) -> None:
    """Notes a part that this process has just written, so that the folder need not be listed again."""
    if folder in _listed:
        _, found = _listed[folder]
        found.setdefault(run_id, set()).add(attempt)
        _listed[folder] = folder.stat().st_mtime_ns, found


def number_of(folder: Path, run_id: str, attempt: int, started: datetime) -> int:
    """The attempt's own number, unless one of an earlier folder of the run may have it: then the next free one.

    An attempt that is on record keeps the number that it has there.
    """
    there = sorted(recorded(folder).get(run_id, set()) - {0})
    times = {number: time for number in there if (time := _started(folder / part_name(run_id, number))) is not None}
    for number, time in times.items():
        if number >= attempt and abs(time - started) < SAME:
            return number
    # Each of a folder's attempts is recorded before the next begins, so one behind this was of another folder.
    return max(there) + 1 if any(number >= attempt for number in times) else attempt


def _started(part: Path) -> datetime | None:
    """When the attempt started; None of a part that cannot be read: it is written anew."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with suppress(OSError, pa.ArrowException, KeyError, IndexError):
        found = pq.read_table(part, columns=["started"])["started"][0].as_py()
        return found if isinstance(found, datetime) and found.tzinfo is not None else None
    return None
