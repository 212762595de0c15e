"""Where `vitscale fit` has its rows from: a study's results, or a table in a file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitscale.cli.report import results_folder
from vitscale.cli.results import matching
from vitscale.errors import MISSING, USAGE, VitscaleError
from vitscale.wording import NOT_HELD, count

if TYPE_CHECKING:
    import pandas as pd

    from vitscale.analysis.facts import Fact
    from vitscale.analysis.measures import Measure

FILES = (".csv", ".tsv", ".parquet")
STUDY_CURVES = ("family", "variant")
NAMES = ("name", "model")  # columns that tell configurations of a table apart
TRUNK = "trunk_id"
FLOPS = "flops"


def table(source: str, results: Path) -> tuple[pd.DataFrame, list[Fact], bool]:
    """The rows, what was left out already, and whether they are a study's."""
    path = Path(source)
    if path.suffix.lower() in FILES and not path.is_dir():
        return _read(path), [], False
    if path.is_file() and path.suffix.lower() != ".toml":
        hint = "save it as .csv, .tsv or .parquet; a study is named by its .toml file or its folder in results/"
        raise VitscaleError(f"{path}: not a kind of table that is read", hint=hint, exit_code=MISSING)
    from vitscale.analysis.curves import of_plan
    from vitscale.analysis.facts import Fact
    from vitscale.analysis.measured import measured
    from vitscale.results import store

    folder, _ = results_folder(source, results)
    everything = store.read(folder)
    frame = of_plan(everything, store.read_plan(folder))
    table, facts = measured(frame)
    gone = everything["run_id"].nunique() - frame["run_id"].nunique()
    if gone:
        facts = [Fact("excluded", f"{count(gone, 'run')} left out: {NOT_HELD}."), *facts]
    return table, facts, True


def _read(path: Path) -> pd.DataFrame:

    if not path.is_file():
        raise VitscaleError(f"{path}: no such file", hint="give a study or a .csv, .tsv or .parquet", exit_code=MISSING)
    try:
        return _parquet(path) if path.suffix.lower() == ".parquet" else _text(path)
    except (ValueError, OSError) as error:  # of pandas, pyarrow and the decoder alike
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VitscaleError(
            f"{path}: not a readable table: {text}", hint=_way(path, error), exit_code=MISSING
        ) from error


def _way(path: Path, error: Exception) -> str:
    if path.suffix.lower() == ".parquet":
        return "write it again as Parquet, or as .csv"
    return (
        "save it with the encoding UTF-8"
        if isinstance(error, UnicodeDecodeError)
        else "a .csv or .tsv has its columns' names in its first line"
    )


def _parquet(path: Path) -> pd.DataFrame:
    """Its columns, and the index of a frame where that has a name: pandas writes it beside them."""
    import pandas as pd

    table = pd.read_parquet(path)
    return table.reset_index([name for name in table.index.names if name is not None and name not in table.columns])


def _text(path: Path) -> pd.DataFrame:
    """A CSV or TSV, with or without a byte order mark, and lines that begin with # before its header."""
    import pandas as pd

    encoding = "utf-8-sig"
    with path.open(encoding=encoding) as lines:
        comments = next((i for i, line in enumerate(lines) if not line.startswith("#")), 0)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    options: Any = {"sep": separator, "skiprows": comments, "skipinitialspace": True, "encoding": encoding}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        # Of two columns of one name pandas renames the second.
        names = [str(name).strip() for name in pd.read_csv(path, header=None, nrows=1, **options).iloc[0]]
        if other := next((mark for mark in ";\t|" if separator != mark and mark in names[0]), None):
            raise VitscaleError(
                f"{path}: its columns are separated by {other!r}",
                hint="save it with commas as .csv, or with tabs as .tsv",
                exit_code=MISSING,
            )
        if twice := sorted({name for name in names if names.count(name) > 1 and name != "nan"}):
            raise ValueError(f"two of its columns have the name {twice[0]!r}")
        try:
            # Otherwise pandas takes the first column for names of rows where the header has too few.
            return pd.read_csv(path, index_col=False, **options)
        except pd.errors.ParserWarning:
            raise ValueError("its rows have more fields than its header has names") from None


def averaged(
    rows: pd.DataFrame, y: str, measure: Measure | None, whole: pd.DataFrame
) -> tuple[pd.DataFrame, str, Measure | None, list[Fact]]:
    """The rows with the mean of the columns that y names, its name, what it measures, and which of them are in percent.

    One column stays itself.

    Accuracies and errors are averaged as shares, also where some columns are in percent: of the `whole` table, as a
    choice of rows may leave what is all below 1 per cent.
    """
    from vitscale.analysis import measures
    from vitscale.analysis.tables import known, numeric

    names = [name.strip() for name in y.split(",") if name.strip()]
    if len(names) < 2 or y in rows.columns:
        return rows, y, measure, []
    known(rows, names)
    numbers = rows.assign(**{name: numeric(rows, name) for name in names})
    measure = measure or measures.common_measure(numbers, names)
    parts, facts = {}, []
    for name in names:
        units = measures.percent(whole, name) if measure != "loss" else {}
        percents = [metric for metric in measures.metrics(rows).unique() if units.get(metric)]
        values = measures.in_unit(numbers[name].to_numpy(), name, measure, percent=bool(percents))
        parts[f"{name}/100" if percents else name] = values
        facts += [measures.read_as_percent(whole, name, metric) for metric in percents]
    named = f"mean of {', '.join(parts)}"
    return rows.assign(**{named: sum(parts.values()) / len(parts)}), named, measure, facts


def by(table: pd.DataFrame, *, study: bool) -> tuple[str, ...]:
    """What makes curves of a study where nothing is said; a table is one curve."""
    return tuple(name for name in STUDY_CURVES if table[name].nunique() > 1) if study else ()


def labels(table: pd.DataFrame, *, study: bool) -> tuple[str, ...]:
    """What names a configuration where nothing is said."""
    if study:
        return ("model", *(name for name in ("variant", "examples", "examples_seen") if table[name].nunique() > 1))
    return next(((name,) for name in NAMES if name in table.columns), ())


def where(table: pd.DataFrame, condition: str | None) -> pd.DataFrame:
    from vitscale.analysis.tables import named

    try:
        if condition is None:
            return table
        _is_condition(table, condition)
        return matching(table, condition)
    except VitscaleError as error:
        raise VitscaleError(
            error.problems[0].message, hint=f"a condition on columns; {named(table)}", exit_code=USAGE
        ) from None


def refuse_none(rows: pd.DataFrame, table: pd.DataFrame, options: str) -> None:
    """Refuses a choice of rows, by these options, that leaves none."""
    if rows.empty and not table.empty:
        message = f"none of the table's {count(len(table), 'row')} is left"
        raise VitscaleError(message, hint=f"{options} can choose others", exit_code=MISSING)


def _is_condition(table: pd.DataFrame, text: str) -> None:
    """Refuses an expression that pandas would take for names of rows."""
    import pandas as pd

    try:
        found = table.eval(text)
    except Exception:  # `matching` has the words for what pandas, its parser or an operator makes of the user's text
        return
    if not isinstance(found, pd.Series) or not pd.api.types.is_bool_dtype(found):
        raise VitscaleError(f"--where {text!r}: not a condition", hint="", exit_code=USAGE)


def _check_ends(low: float | None, high: float | None) -> None:
    for option, value in (("--from", low), ("--to", high)):
        if value is not None and not value > 0:
            raise VitscaleError(
                f"{option} {value:g}: not a positive number", hint=f"e.g. {option} 1e18", exit_code=USAGE
            )
    if low is not None and high is not None and low > high:
        raise VitscaleError(f"--from {low:g} is above --to {high:g}", hint="exchange them", exit_code=USAGE)


def between(
    table: pd.DataFrame, inputs: tuple[str, ...], low: float | None, high: float | None
) -> tuple[pd.DataFrame, list[Fact]]:
    """The rows with x, or N times D, from `low` to `high`, and how many lie outside."""
    from vitscale.analysis.facts import Fact
    from vitscale.analysis.tables import known, numeric

    _check_ends(low, high)
    if low is None and high is None:
        return table, []
    known(table, inputs)
    compute = numeric(table, inputs[0])
    for name in inputs[1:]:
        compute = compute * numeric(table, name)
    outside = (compute < (low or 0.0)) | (compute > (high or float("inf")))
    fact = Fact("range", f"{count(int(outside.sum()), 'row')} left out by --from and --to.")
    return table[~outside], [fact] if outside.any() else []
