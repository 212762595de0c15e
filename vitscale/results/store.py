"""Result parts: one Parquet file per attempt of a run, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitscale import __version__
from vitscale.errors import MISSING, VitscaleError
from vitscale.files import write_whole
from vitscale.results.attempts import number_of, part_name, written
from vitscale.results.merged import merged, read_all
from vitscale.results.schema import COLUMNS, NAMES, SCHEMA, Column, arrow_schema

PLAN = "_plan.json"  # Parquet readers skip names that begin with an underscore
PLAN_SCHEMA = 1
READING = 2
"""Changes by hand with what `_read_part` makes of a part, so that no copy from before is used."""
CHANGES = "_changes"

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def write_part(
    rows: list[dict[str, Any]], folder: Path, *, run_id: str, attempt: int, started: str | None = None
) -> Path:
    """Write the outcome of one attempt as `<run_id>-<attempt>.parquet`; a second write of the same attempt replaces it.

    With the time (ISO) when the attempt `started`, one of another folder that the run had before is not replaced: this
    one takes the next number, in its rows, too.

    `run_id`, `attempt` and `schema` are filled in where a row lacks them, any other missing column is null.
    JSON columns take text or the object itself; times take a `datetime` with a zone, ISO text or seconds since 1970.
    Raises ValueError for a column that is not in the schema or a value of the wrong type.
    """
    data = _parquet(rows, run_id, attempt)
    path = folder / part_name(run_id, attempt)
    # The end of a sweep records everything again, and most of it is there.
    if path.is_file() and path.read_bytes() == data:
        return path
    if started is not None:
        number = number_of(folder, run_id, attempt, datetime.fromisoformat(started))
        if number != attempt:
            return write_part([{**row, "attempt": number} for row in rows], folder, run_id=run_id, attempt=number)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)  # under a name with a dot at first, which Parquet readers skip
    written(folder, run_id, attempt)
    return path


def _parquet(rows: list[dict[str, Any]], run_id: str, attempt: int) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = _table([{"run_id": run_id, "attempt": attempt, "schema": SCHEMA, **row} for row in rows])
    buffer = pa.BufferOutputStream()
    # Of a few rows, dictionaries and statistics of 57 columns are most of the file, and of the time to read it.
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False, write_statistics=False)
    return bytes(buffer.getvalue().to_pybytes())


def write_changes(diff: str | None, folder: Path) -> str | None:
    """Keeps in what code differed from its commit, once; the file's name in `_changes`, None for no difference."""
    if not diff:
        return None
    data = diff.encode()
    path = folder / CHANGES / f"{hashlib.sha256(data).hexdigest()[:12]}.patch"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    return path.name


def parts(folder: Path) -> list[Path]:
    """The parts of a study's folder, sorted by name; empty if there is no such folder."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith((".", "_")))


def read(folder: Path) -> pd.DataFrame:
    """All rows of all parts, every attempt, with the schema's columns; integers and booleans are nullable."""
    if not folder.is_dir():
        raise VitscaleError(
            f"{folder}: no such results folder", hint=_siblings(folder.parent, folder.name), exit_code=MISSING
        )
    files = parts(folder)
    if not files:
        raise VitscaleError(
            f"{folder}: no result parts (*.parquet) in this folder",
            hint="`vitscale sweep` writes one when a run ends; `vitscale status` says where the study stands",
            exit_code=MISSING,
        )
    return _frame(_whole(merged(files, _read_part, f"vitscale {__version__}, schema {SCHEMA}, reading {READING}")))


def read_run(root: Path, run_id: str) -> pd.DataFrame:
    """The rows of one run in every study's folder under `root`; none where it was not recorded."""
    files = [path for path in sorted(root.glob(f"*/{run_id}-*.parquet")) if not path.parent.name.startswith(".")]
    if not files:
        return frame_of([])
    return _frame(_whole(read_all(files, _read_part)))


def frame_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows that lie in no part, as `read` would give them."""
    return _frame(_table(rows))


def _frame(table: pa.Table) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    frame: pd.DataFrame = table.combine_chunks().to_pandas(types_mapper=nullable.get)
    return frame


class DamagedPlan(VitscaleError):  # noqa: N818
    """Nothing can be read from it: it may be written anew."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a study holds now: the ids of its runs, and how many more cannot be named before [select] has chosen."""

    runs: frozenset[str]
    waiting: int = 0
    version: str | None = field(default=None, compare=False)
    """Of the study: who finds another one on record was started with an older file, or with a newer one."""
    settings: tuple[str, ...] = field(default=(), compare=False)
    """Of `--set`, where the study was never swept without: no record of the study as its file says."""
    file: str | None = field(default=None, compare=False)
    """The study's, from the folder of its results, so that both may move; None of records of before it was kept."""


def write_plan(folder: Path, held: Held) -> None:
    """Record which runs the study holds now; parts of any other run stay in the folder and count no more.

    While runs wait for a choice, those that were recorded before stay in: the choice may fall on them again.
    """
    before = read_plan(folder) if held.waiting else None
    runs = held.runs | (before.runs if before else frozenset())
    told = {
        "version": held.version,
        "file": held.file,
        "settings": list(held.settings),
        "waiting": held.waiting,
    }
    document = {"schema": PLAN_SCHEMA, **{key: value for key, value in told.items() if value}, "runs": sorted(runs)}
    data = (json.dumps(document, indent=1) + "\n").encode()
    path = folder / PLAN
    if path.is_file() and path.read_bytes() == data:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)


def read_plan(folder: Path) -> Held | None:
    """The runs that the study holds now; None where none were recorded: then every row counts."""
    path = folder / PLAN
    try:
        document = json.loads(path.read_bytes())
        version, runs, waiting = document["schema"], document["runs"], document.get("waiting", 0)
        if not isinstance(version, int) or not isinstance(runs, list) or not all(isinstance(id_, str) for id_ in runs):
            raise ValueError("not a list of run ids")
        if not isinstance(waiting, int):
            raise ValueError("waiting is not a number")
        if not isinstance(document.get("file"), str | None):
            raise ValueError("file is not a text")
        study = document.get("version"), tuple(document.get("settings", [])), document.get("file")
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        file = next(place for place in (folder, *folder.parents) if place.exists())
        hint = "move it away, or name another folder of results with --results"
        raise VitscaleError(f"{file} is a file and no folder", hint=hint, exit_code=MISSING) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        kind = VitscaleError if isinstance(error, OSError) else DamagedPlan
        raise kind(
            f"{path}: not readable as the study's list of runs: {error}",
            hint="`vitscale sweep STUDY` writes it anew; without it, every row counts",
            exit_code=MISSING,
        ) from error
    if version > PLAN_SCHEMA:
        raise VitscaleError(
            f"{path}: written with schema {version}; this vitscale reads up to {PLAN_SCHEMA}",
            hint="upgrade vitscale",
            exit_code=MISSING,
        )
    return Held(frozenset(runs), waiting, *study)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa

    unknown = sorted({name for row in rows for name in row} - set(NAMES))
    if unknown:
        near = get_close_matches(unknown[0], NAMES, n=1)
        raise ValueError(f"unknown result column {unknown[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    schema = arrow_schema()
    arrays = []
    for column in COLUMNS:
        values = [_plain(row.get(column.name), column) for row in rows]
        try:
            arrays.append(pa.array(values, type=schema.field(column.name).type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
            raise ValueError(f"result column {column.name!r} holds {column.type}: {error}") from error
    return pa.Table.from_arrays(arrays, schema=schema)


def _plain(value: Any, column: Column) -> Any:
    if value is None:
        return None
    if column.type == "json" and not isinstance(value, str):
        return json.dumps(value, sort_keys=True)
    if column.type == "float64" and isinstance(value, int):
        return float(value)  # Arrow refuses integers that a double cannot hold exactly, as FLOPs are
    if column.type == "int64" and isinstance(value, float) and not value.is_integer():
        raise ValueError(f"result column {column.name!r} holds int64, not {value}")  # Arrow would cut it in silence
    if column.type != "timestamp":
        return value
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    elif isinstance(value, int | float):
        value = datetime.fromtimestamp(value, UTC)
    if value.tzinfo is None:
        raise ValueError(f"result column {column.name!r}: {value} has no time zone")
    return value


def _read_part(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        # Of a small file, threads and a file system of Arrow's cost more than they save.
        table = pq.ParquetFile(pa.py_buffer(path.read_bytes())).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise VitscaleError(
            f"{path}: not a readable Parquet file (truncated?): {str(error).splitlines()[0]}",
            hint="restore it from version control, or delete it and run `vitscale sweep` again to write it anew",
            exit_code=MISSING,
        ) from error
    version = pc.max(table["schema"]).as_py() if "schema" in table.column_names else None
    if not isinstance(version, int) and table.num_rows:
        raise VitscaleError(
            f"{path}: not a result part of vitscale (no number in a column `schema`)",
            hint=f"move it out of {path.parent}",
            exit_code=MISSING,
        )
    if version is not None and version > SCHEMA:
        raise VitscaleError(
            f"{path}: written with results schema {version}; this vitscale reads up to {SCHEMA}",
            hint="upgrade vitscale",
            exit_code=MISSING,
        )
    types = _types()
    table = table.select([name for name in table.column_names if name in types])
    for number, column in enumerate(table.schema):
        if column.type != types[column.name]:
            cast = _cast(table[column.name], types[column.name], path, column.name)
            table = table.set_column(number, column.name, cast)
    return _migrated(table) if version == 1 else table


def _cast(column: pa.ChunkedArray, type_: pa.DataType, path: Path, name: str) -> pa.ChunkedArray:
    import pyarrow as pa

    try:
        return column.cast(type_)
    except pa.ArrowException as error:
        raise VitscaleError(
            f"{path}: column {name!r} holds what is no {type_}: {str(error).splitlines()[0]}",
            hint="restore it from version control, or delete it and run `vitscale sweep` again to write it anew",
            exit_code=MISSING,
        ) from error


def _migrated(table: pa.Table) -> pa.Table:
    """Without the numbers of schema 1 that mean something else now, and cannot be told from its columns."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not {"protocol", "flops_segment"} <= {*table.column_names}:
        return table
    of_one = pc.equal(table["protocol"], "finetune")
    kept = pc.if_else(pc.fill_null(of_one, False), pa.scalar(None, pa.float64()), table["flops_segment"])
    return table.set_column(table.column_names.index("flops_segment"), "flops_segment", kept)


@cache
def _types() -> Mapping[str, pa.DataType]:
    return {field.name: field.type for field in arrow_schema()}


def _whole(table: pa.Table) -> pa.Table:
    """With the schema's columns, all of them and no others."""
    import pyarrow as pa

    missing = [name for name in NAMES if name not in table.column_names]
    for name in missing:
        table = table.append_column(name, pa.nulls(table.num_rows, _types()[name]))
    return table.select(list(NAMES))


def _siblings(root: Path, name: str) -> str:
    found = sorted(path.name for path in _folders(root))
    if not found:
        return "run `vitscale sweep STUDY` first: it writes there"
    near = get_close_matches(name, found, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are results of: {', '.join(found)}"


def _folders(root: Path) -> Iterable[Path]:
    return (path for path in root.iterdir() if parts(path)) if root.is_dir() else ()
