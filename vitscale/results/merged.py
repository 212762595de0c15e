"""Many parts as one table. A copy of it is kept, since to open each of ten thousand small files takes half a minute."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vitscale.errors import VitscaleError
from vitscale.files import write_whole
from vitscale.locations import cache_folder
from vitscale.processes import cores

if TYPE_CHECKING:
    import pyarrow as pa

TOGETHER = 256
WORTH = 64  # parts: so few are read as fast as a copy is written
UNUSED = 30 * 86_400  # seconds after which a copy goes
PART = "_part"  # the column with the number of a row's file
KEY = b"vitscale"
DIGEST = 32  # bytes of SHA-256 that a copy begins with

Stamp = list[int]
"""Size, time of the last change in ns, and inode: whatever replaces a file has another one."""
Read = Callable[[Path], "pa.Table"]


def merged(files: Sequence[Path], read: Read, reads: str) -> pa.Table:
    """The rows of all files, which lie in one folder, in the files' order; a column that some lack is null there.

    Of a folder with a copy only files that are new or have changed since are read. `reads` names what `read` makes of a
    file: a copy under another name is not used.
    """
    if len(files) < WORTH:
        return read_all(files, read)
    try:
        path = cache_folder() / "results" / f"{_digest(files[0].parent)}.arrow"
    except VitscaleError:  # of a user without a home
        return read_all(files, read)
    stamps = {file.name: _stamp(file) for file in files}  # before any is read, for it may change meanwhile
    numbers = {file.name: number for number, file in enumerate(files)}
    copied, known = _copied(path, reads, stamps, numbers)
    new = [file for file in files if file.name not in known]
    table = _concatenated([*copied, *([read_all(new, _numbering(read, numbers))] if new else [])])
    part = table[PART].to_numpy()
    if (part[1:] < part[:-1]).any():
        table = table.take(part.argsort(kind="stable"))
    if len(new) >= WORTH:
        _keep(path, table, {KEY: json.dumps({"reads": reads, "parts": list(stamps.items())}).encode()})
    return table.drop_columns([PART])


def read_all(files: Sequence[Path], read: Read) -> pa.Table:
    """As `merged`, of any files and without a copy."""
    # Merged a few hundred at a time: thousands of tables of a few rows take a gigabyte.
    groups = (files[start : start + TOGETHER] for start in range(0, len(files), TOGETHER))
    with ThreadPoolExecutor(cores()) as pool:  # Arrow decodes without Python's lock; more threads wait for it longer
        return _concatenated([_concatenated(pool.map(read, some)).combine_chunks() for some in groups])


def _concatenated(tables: Iterable[pa.Table]) -> pa.Table:
    """Older parts lack newer columns."""
    import pyarrow as pa

    return pa.concat_tables(tables, promote_options="default")


def _numbering(read: Read, numbers: Mapping[str, int]) -> Read:
    import pyarrow as pa

    def numbered(file: Path) -> pa.Table:
        table = read(file)
        return table.append_column(PART, pa.array([numbers[file.name]] * table.num_rows, pa.int32()))

    return numbered


def _copied(
    path: Path, reads: str, stamps: Mapping[str, Stamp], numbers: Mapping[str, int]
) -> tuple[list[pa.Table], set[str]]:
    """The rows of those of the copy's parts that have not changed, numbered as the files are now, and their names."""
    import numpy as np
    import pyarrow as pa

    try:
        data = path.read_bytes()
        if hashlib.sha256(data[DIGEST:]).digest() != data[:DIGEST]:
            return [], set()
        table = pa.ipc.open_file(pa.py_buffer(memoryview(data)[DIGEST:])).read_all()
        told = json.loads((table.schema.metadata or {})[KEY])
        if told["reads"] != reads:
            return [], set()
        os.utime(path)
    except (OSError, ValueError, KeyError, pa.ArrowException):  # there is none, or none of use
        return [], set()
    known = {name for name, stamp in told["parts"] if stamps.get(name) == stamp}
    renumbered = np.array([numbers[name] if name in known else -1 for name, _ in told["parts"]], dtype=np.int32)
    part = renumbered[table[PART].to_numpy()]
    table = table.set_column(table.column_names.index(PART), PART, pa.array(part))
    return [table.filter(pa.array(part >= 0))], known


def _keep(path: Path, table: pa.Table, metadata: Mapping[bytes, bytes]) -> None:
    """Where the disk allows: it is a copy, and can be done without. Copies that nobody reads any more go."""
    import pyarrow as pa

    buffer = pa.BufferOutputStream()
    schema = table.schema.with_metadata(metadata)
    with pa.ipc.new_file(buffer, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_table(table.replace_schema_metadata(metadata))
    with suppress(OSError, VitscaleError):
        path.parent.mkdir(parents=True, exist_ok=True)
        data = buffer.getvalue().to_pybytes()
        write_whole(path, hashlib.sha256(data).digest() + data)
        for other in path.parent.glob("*.arrow"):
            if time.time() - other.stat().st_mtime > UNUSED:
                other.unlink()


def _stamp(file: Path) -> Stamp:
    try:
        found = file.stat()
    except OSError:  # which is for whoever reads it to say
        return []
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _digest(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
