"""From a table to curves: which column is what, what is refused, and what is left out and counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from vitscale.analysis.facts import Fact
from vitscale.analysis.fits import Observations
from vitscale.analysis.frontier import Configuration, surpassed
from vitscale.analysis.measures import Measure, fitted, measure_of, metrics, percent, read_as_percent
from vitscale.analysis.residuals import Binomial, LogLoss, Residuals, seed_spread
from vitscale.errors import MISSING, USAGE, VitscaleError
from vitscale.wording import count

MIXED = ("metric", "task_version", "task", "protocol", "shots", "init")  # a curve has one value of each
SURPASSED = "surpassed"  # a kind of fact
VARYING = ("model", "examples", "examples_seen", "dataset", "resolution", "code_hash")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table are what."""

    inputs: tuple[str, ...]
    """x, or N and D."""
    y: str
    by: tuple[str, ...] = ()
    any_by: bool = True
    """Whether the user may name any columns for `by`: a hint says so."""
    cluster: str | None = None
    """Rows with one value of it are not independent; None: each row stands for itself."""
    measure: Measure | None = None
    """None: by the metric column, or the name of y; an accuracy where neither tells."""
    labels: tuple[str, ...] = ()
    """Which name a point's configuration; none: each row is one, by its number in the whole table."""
    trials: float | None = None
    """Test images behind each accuracy; None: the column n_test, and unknown without it."""
    flops: str | None = None
    """What each run cost; None: nothing tells."""


@dataclass(frozen=True, slots=True)
class Curve:
    name: str
    """The values of the columns in `by`; empty where there is one curve."""
    columns: Columns
    observations: Observations
    labels: tuple[str, ...]
    """Of each point its configuration."""
    what: str
    """What is fitted, in words: `error = 1 - imagenet`."""
    facts: tuple[Fact, ...] = field(default=())
    flops: Float[np.ndarray, " points"] | None = None
    """What each point's run cost; NaN where it is not known."""


def curves_of(
    table: pd.DataFrame, columns: Columns, whole: pd.DataFrame | None = None
) -> tuple[list[Curve], list[Fact]]:
    """A curve for each value of `by`, and what is to be said of those that have too few points.

    `whole`: the table that these rows were chosen from; whether values are percent is that of all of it.

    Raises:
        VitscaleError: a column that is not there (exit 2); values that cannot be fitted, measures that cannot share a
            curve, or nothing left to fit (exit 5).
    """
    maybe = [name for name in (columns.cluster, columns.flops) if name is not None]
    known(table, [*columns.inputs, columns.y, *columns.by, *columns.labels, *maybe])
    for name in (*columns.by, *([columns.cluster] if columns.cluster else [])):
        _single(table, name)
    if table.empty:
        raise VitscaleError("the table has no rows", hint="give one with a row for each point", exit_code=MISSING)
    if not (table.index.is_unique and pd.api.types.is_integer_dtype(table.index)):
        table = table.reset_index(drop=True)
    numbers = {name: numeric(table, name) for name in dict.fromkeys((*columns.inputs, columns.y))}
    bare = pd.concat(numbers, axis=1).isna().any(axis=1)
    left_out = _missing(int(bare.sum()), [*columns.inputs, columns.y])
    kept = table[~bare].assign(**{name: values[~bare] for name, values in numbers.items()})
    for name in columns.inputs:
        _positive(kept, name)
    whole = table if whole is None else whole
    units = percent(whole, columns.y)
    found, refused, told = [], [], {}
    for name, rows in _groups(kept, columns.by):
        rows, without = _with_trials(rows, columns, name)
        left_out += without
        _one_measure(rows, columns, name)
        too_few = _too_few(rows, columns, name)
        if too_few is None:
            metric = metrics(rows).iloc[0]
            found.append(_curve(name, rows, columns, in_percent=units[metric]))
            if units[metric] and isinstance(found[-1].observations.residuals, Binomial):
                told[metric] = read_as_percent(whole, columns.y, metric)
        else:
            refused.append(too_few)
    if not found:
        first = refused[0] if refused else Fact("nan_rows", "no row has a number in every column")
        hint = "a curve needs two points or more, at different places and with different values"
        raise VitscaleError(first.text.rstrip("."), hint=hint, exit_code=MISSING)
    return found, [*left_out, *told.values(), *refused]


def known(table: pd.DataFrame, names: Sequence[str]) -> None:
    """Refuses columns that are not there, naming those that are."""
    for name in names:
        if name not in table.columns:
            near = get_close_matches(name, [str(column) for column in table.columns], n=1)
            there = named(table)
            hint = f"did you mean {near[0]!r}? {there}" if near else there
            raise VitscaleError(f"no column {name!r} in this table", hint=hint, exit_code=USAGE)


def _single(table: pd.DataFrame, name: str) -> None:
    """Refuses lists and the like, which no curve can be named by."""
    if not _is_single(table[name]):
        hint = "name a column with one value in each row"
        raise VitscaleError(f"column {name!r} holds lists, or what is like them", hint=hint, exit_code=MISSING)


def _is_single(column: pd.Series) -> bool:
    return column.dtype != object or bool(column.map(pd.api.types.is_hashable).all())


def named(table: pd.DataFrame) -> str:
    return f"there are: {', '.join(str(column) for column in table.columns)}"


def numeric(table: pd.DataFrame, name: str) -> pd.Series:
    """The column as numbers; what is empty or not finite is null."""
    column = table[name]
    if pd.api.types.is_bool_dtype(column):
        hint = "name a column of numbers; --by NAME makes a curve for each"
        raise VitscaleError(f"column {name!r} holds true and false, not numbers", hint=hint, exit_code=MISSING)
    if pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.is_timedelta64_dtype(column):
        # Which pandas would count in nanoseconds.
        column = column.astype("string")
    values = pd.to_numeric(column, errors="coerce").astype("float64")
    text = column.astype("string").str.strip()
    wrong = values.isna() & column.notna() & ~text.str.lower().isin(["", "nan", "na", "null", "none"])
    if wrong.any():
        at = int(np.flatnonzero(wrong.to_numpy())[0])
        row = table.index[at] + 1 if pd.api.types.is_integer_dtype(table.index) else at + 1
        raise VitscaleError(
            f"column {name!r} is not numeric: row {row} holds {str(column.iloc[at])!r}",
            hint="name a column of numbers, or leave such rows out with --where",
            exit_code=MISSING,
        )
    return values.where(np.isfinite(values))


def _positive(rows: pd.DataFrame, name: str) -> None:
    wrong = rows[rows[name] <= 0]
    if len(wrong):
        raise VitscaleError(
            f"column {name!r} is 0 or negative in {count(len(wrong), 'row')}, e.g. {wrong[name].iloc[0]:g}",
            hint=f'it must be above 0; leave such rows out with --where "{name} > 0"',
            exit_code=MISSING,
        )


def _missing(rows: int, names: list[str]) -> list[Fact]:
    text = f"{count(rows, 'row')} left out without a number in {' or '.join(names)}."
    return [Fact("nan_rows", text)] if rows else []


def _groups(rows: pd.DataFrame, by: tuple[str, ...]) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each curve by its name, which no two share."""
    if not by:
        yield "", rows
        return
    parts: dict[tuple[str, ...], list[pd.DataFrame]] = {}
    for key, group in rows.groupby(list(by), dropna=False, sort=True):
        parts.setdefault(tuple("" if _is_empty(value) else str(value) for value in key), []).append(group)
    for name, groups in zip(_curve_names(list(parts), by), parts.values(), strict=True):
        yield name, groups[0] if len(groups) == 1 else pd.concat(groups).sort_index()


def _curve_names(keys: Sequence[tuple[str, ...]], by: tuple[str, ...]) -> list[str]:
    """The values of each key without its empty ones; where two are alike, a word for these, or the columns."""
    short = [", ".join(filter(None, key)) or f"no {' or '.join(by)}" for key in keys]
    full = [", ".join(value or f"no {name}" for name, value in zip(by, key, strict=True)) for key in keys]
    quoted = [", ".join(f"{name} {value!r}" for name, value in zip(by, key, strict=True)) for key in keys]
    return next(names for names in (short, full, quoted) if len(set(names)) == len(keys))


def _is_empty(value: object) -> bool:
    return str(value).strip() in ("", "nan", "None", "<NA>")


def _with_trials(rows: pd.DataFrame, columns: Columns, name: str) -> tuple[pd.DataFrame, list[Fact]]:
    """Without the rows that do not say on how many images they were tested, where others do; and how many those are."""
    if columns.trials is not None or "n_test" not in rows.columns:
        return rows, []
    bare = rows["n_test"].isna()
    if not bare.any() or bare.all() or (columns.measure or measure_of(rows, columns.y)) == "loss":
        return rows, []
    text = f"{f'{name}: ' if name else ''}{count(int(bare.sum()), 'row')} left out without a number in n_test."
    return rows[~bare], [Fact("nan_rows", text)]


def _one_measure(rows: pd.DataFrame, columns: Columns, name: str) -> None:
    """Refuses a curve of several measures, with a condition that leaves one."""
    mixed = {column: _values(rows[column]) for column in MIXED if column in rows.columns}
    mixed = {column: values for column, values in mixed.items() if len(values) > 1}
    if not mixed:
        return
    shown = "; ".join(f"{column} {', '.join(values)}" for column, values in mixed.items())
    conditions = (_condition(rows[column], column) for column in mixed)
    otherwise = f", or give --by {','.join(mixed)}" if columns.any_by else ""
    raise VitscaleError(
        f"{f'{name}: ' if name else ''}rows of one curve differ in {shown}",
        hint=f'choose, e.g. --where "{" and ".join(filter(None, conditions))}"{otherwise}',
        exit_code=MISSING,
    )


def _values(column: pd.Series) -> list[str]:
    return [*sorted({str(value) for value in column.dropna()}), *(["none"] if column.isna().any() else [])]


def _condition(column: pd.Series, name: str) -> str:
    """That of the first row; what it leaves empty, the other columns must decide."""
    first = column.iloc[0]
    if str(first) in ("nan", "<NA>", "None"):
        return ""
    return f"{name} == {first if pd.api.types.is_numeric_dtype(column) else repr(str(first))}"


def _too_few(rows: pd.DataFrame, columns: Columns, name: str) -> Fact | None:
    of = f"{name}: " if name else ""
    if len(rows) < 2:
        return Fact("too_few", f"{of}{count(len(rows), 'point')}, and a curve needs two or more.")
    for column in columns.inputs:
        if rows[column].nunique() < 2:
            return Fact("too_few", f"{of}every {column} is {rows[column].iloc[0]:g}, and a curve needs several.")
    if rows[columns.y].nunique() < 2:
        return Fact("too_few", f"{of}every {columns.y} is {rows[columns.y].iloc[0]:g}: there is no curve in it.")
    return None


def _curve(name: str, rows: pd.DataFrame, columns: Columns, *, in_percent: bool) -> Curve:
    measure = columns.measure or measure_of(rows, columns.y)
    y, what = fitted(rows[columns.y].to_numpy(dtype=float), columns.y, measure, percent=in_percent)
    inputs = rows[list(columns.inputs)].to_numpy(dtype=float)
    clusters, alone = _clusters(rows, columns.cluster)
    residuals, facts = _residuals(y, measure, inputs, _trials(rows, columns))
    facts += [*alone, *_copies(rows, columns), *_varying(rows, columns)]
    flops = numeric(rows, columns.flops).to_numpy() if columns.flops else None
    points = Observations(inputs, residuals, clusters)
    facts += _surpassed(rows, points)
    return Curve(name, columns, points, _labels(rows, columns), what, tuple(facts), flops)


def _clusters(rows: pd.DataFrame, name: str | None) -> tuple[Int[np.ndarray, " rows"], list[Fact]]:
    """The number of each row's cluster: a row that names none is one of its own, and how many those are is said."""
    if name is None:
        return np.arange(len(rows)), []
    empty = rows[name].map(_is_empty).to_numpy(dtype=bool)
    named = pd.factorize(rows[name].astype("string"), use_na_sentinel=False)[0].astype(np.int64)
    clusters = np.where(empty, len(rows) + np.arange(len(rows)), named)
    text = f"{count(int(empty.sum()), 'row')} without a value in {name}: each counts as independent."
    return clusters, [Fact("no_cluster", text)] if empty.any() else []


def _copies(rows: pd.DataFrame, columns: Columns) -> list[Fact]:
    """Rows that are the same in every column, where each is taken for a run."""
    if columns.cluster is not None:
        return []
    alike = rows[rows.duplicated([*columns.inputs, columns.y], keep=False)]  # in these first, as rows are wide
    copies = int(alike.astype("string").duplicated().sum())
    if not copies:
        return []
    text = (
        f"{count(copies, 'row')} {'is a copy' if copies == 1 else 'are copies'} of another in every column, and count"
    )
    return [Fact("copies", f"{text}{'s' if copies == 1 else ''} as independent: --cluster says what belongs together.")]


def _varying(rows: pd.DataFrame, columns: Columns) -> list[Fact]:
    """What differs between points that the law takes for repetitions of one another."""
    told = [name for name in VARYING if name in rows.columns and name not in columns.inputs]
    names = [name for name in told if _is_single(rows[name])]
    counts = rows.groupby(list(columns.inputs))[names].nunique().max()
    several = [f"{name} ({int(counts[name])} at one place)" for name in names if counts[name] > 1]
    if not several:
        return []
    text = f"Points at one {' and '.join(columns.inputs)} differ in {', '.join(several)}: --where can choose."
    return [Fact("varies", text)]


def _surpassed(rows: pd.DataFrame, points: Observations) -> list[Fact]:
    """Models that cheaper ones beat: their runs lift the law off what the best reach."""
    if "model" not in rows.columns or points.inputs.shape[1] > 1:
        return []
    runs = pd.DataFrame({"compute": points.compute, "model": rows["model"].astype(str).to_numpy(), "y": points.y})
    cells = runs.groupby(["compute", "model"])["y"].agg(["mean", "size"])
    grid = [Configuration(model, x, mean, int(size)) for (x, model), mean, size in cells.itertuples(name=None)]
    beaten = surpassed(grid)
    if not beaten:
        return []
    what = f"{len(beaten)} of {count(len(grid), 'configuration')} {'is' if len(beaten) == 1 else 'are'}"
    text = f"{what} beaten by another model that is no dearer: a law of all of them lies above what the best reach."
    names = sorted({one.name for one in beaten})
    return [Fact(SURPASSED, text, (f"{', '.join(names)}; --form envelope has the law of the best",))]


def _labels(rows: pd.DataFrame, columns: Columns) -> tuple[str, ...]:
    if not columns.labels:
        return tuple(f"row {row + 1}" for row in rows.index)
    parts = [
        rows[name].map(lambda value: f"{value:,}" if isinstance(value, int) else str(value)) for name in columns.labels
    ]
    return tuple(", ".join(row) for row in zip(*parts, strict=True))


def _trials(rows: pd.DataFrame, columns: Columns) -> np.ndarray | None:
    if columns.trials is not None:
        return np.full(len(rows), columns.trials)
    if "n_test" not in rows.columns or rows["n_test"].isna().any():
        return None
    trials = numeric(rows, "n_test")
    _positive(rows.assign(n_test=trials), "n_test")
    return trials.to_numpy(dtype=float)


def _residuals(
    y: np.ndarray, measure: Measure, inputs: np.ndarray, trials: np.ndarray | None
) -> tuple[Residuals, list[Fact]]:
    if measure == "loss":
        return LogLoss(y), []
    if trials is None:
        fact = Fact("unweighted", "The number of test images is unknown: every point counts as one of equal size.")
        return Binomial(y, np.ones(len(y))), [fact]
    return Binomial(y, trials, seed_spread(y, trials, inputs)), []
