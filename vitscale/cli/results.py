"""`vitscale results`: a study's numbers as a table."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitscale.cli.report import results_folder
from vitscale.cli.screen import print_json, print_table, reports_errors, say
from vitscale.errors import USAGE, VitscaleError
from vitscale.wording import NOT_HELD, count

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


SPARE = (
    "role",
    "family",
    "task_version",
    "flops",
    "n",
    "sd",
    "variant",
    "protocol",
    "init",
    "shots",
    "examples_seen",
    "examples",
    "metric",
)
"""Of the summary, what a narrow terminal does without: last what most often tells rows apart."""


class Format(StrEnum):
    table = "table"
    tsv = "tsv"
    csv = "csv"
    json = "json"
    md = "md"


@reports_errors
def results(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of a folder in results/.")],
    columns: Annotated[
        str | None, typer.Option(help="Columns of the rows themselves, with commas, or `all`. Default: a summary.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="Keep these rows, e.g. \"family == 'vit' and shots == 5\".")] = None,
    sort: Annotated[str | None, typer.Option(help="Columns to sort by, with commas; -NAME for descending.")] = None,
    output: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.table,
    root: Annotated[
        Path, typer.Option("--results", help="Folder that holds a folder of result parts for each study.")
    ] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Print what a study measured.

    Without --columns: mean, sd and number of seeds of every cell and measure.

    With --columns: the rows as they were written, all attempts and tuning too.

    Runs that the study does not hold, any more or but with --set, are left out of both.
    """
    folder, _ = results_folder(study, root)

    from vitscale.analysis.curves import of_plan, summary
    from vitscale.results import store

    everything = store.read(folder)
    frame = of_plan(everything, store.read_plan(folder))
    gone = everything["run_id"].nunique() - frame["run_id"].nunique()
    if gone:
        say(f"{count(gone, 'run')} left out: in {folder}, but {NOT_HELD}")
    if where:
        frame = matching(frame, where)
    if columns is None:
        table = summary(frame).dropna(axis="columns", how="all")
        if table.empty:
            say(f"nothing measured yet in {count(len(frame), 'row')}; --columns all prints them as they were written")
    else:
        names = list(frame.columns) if columns == "all" else [name.strip() for name in columns.split(",")]
        _known(names, frame)
        table = frame[names]
    if sort:
        table = _sorted(table, sort)
    _print(table, Format.json if as_json else output, folder.name, SPARE if columns is None else ())


def matching(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """The rows that `--where` keeps."""
    from pandas.api.types import infer_dtype

    try:
        kept: Any = frame.eval(where, target=None)  # nothing is assigned
        found: pd.DataFrame | None = (
            frame.loc[kept] if hasattr(kept, "dtype") and infer_dtype(kept) == "boolean" else None
        )
    except Exception as error:  # whatever pandas, its parser or an operator makes of the user's text
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VitscaleError(
            f"--where {where!r}: {text}",
            hint="a condition on columns, e.g. \"family == 'vit' and shots == 5\"; `--columns all` shows their names",
            exit_code=USAGE,
        ) from None
    if found is None:
        raise VitscaleError(
            f"--where {where!r}: not a condition", hint="compare something, e.g. seed == 0", exit_code=USAGE
        )
    return found


def _known(names: list[str], frame: pd.DataFrame) -> None:
    for name in names:
        if name not in frame.columns:
            near = get_close_matches(name, frame.columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(frame.columns)}"
            raise VitscaleError(f"no column {name!r} in this table", hint=hint, exit_code=USAGE)


def _sorted(table: pd.DataFrame, sort: str) -> pd.DataFrame:
    keys = [key.strip() for key in sort.split(",")]
    names = [key.removeprefix("-") for key in keys]
    _known(names, table)
    return table.sort_values(names, ascending=[not key.startswith("-") for key in keys], kind="stable")


def _print(table: pd.DataFrame, output: Format, study: str, spare: Sequence[str]) -> None:
    plain = table.astype(object).where(table.notna(), None)
    header = [str(name) for name in table.columns]
    rows = [list(row) for row in plain.itertuples(index=False, name=None)]
    if output is Format.json:
        print_json({"study": study, "rows": [dict(zip(header, row, strict=True)) for row in rows]})
    elif output is Format.table:
        print_table([[_short(cell) for cell in row] for row in rows], header, spare)
    elif output is Format.md:
        for line in (header, ["---"] * len(header), *rows):
            print("| " + " | ".join(_short(cell).replace("|", "\\|") for cell in line) + " |")
    else:
        table.to_csv(sys.stdout, sep="\t" if output is Format.tsv else ",", index=False)


def _short(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
