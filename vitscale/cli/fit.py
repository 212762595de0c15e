"""`vitscale fit`: scaling laws with intervals, from a study's results or any table."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitscale.cli import options
from vitscale.cli.report import results_folder
from vitscale.cli.screen import print_json, print_table, reports_errors, say
from vitscale.errors import BUG, MISSING, USAGE, VitscaleError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from vitscale.analysis.facts import Fact
    from vitscale.analysis.tables import Columns

TABLES = (".csv", ".tsv", ".parquet")
STUDY_CURVES = ("family", "variant")


class FormName(StrEnum):
    auto = "auto"
    power = "power"
    saturating = "saturating"
    zhai = "zhai"
    m4 = "m4"
    broken = "broken"
    parametric = "parametric"
    parabola = "parabola"


class MeasureName(StrEnum):
    accuracy = "accuracy"
    error = "error"
    loss = "loss"


@reports_errors
def fit(
    source: Annotated[
        str | None,
        typer.Argument(metavar="STUDY|FILE", help="A study file, a folder in results/, or a .csv, .tsv or .parquet."),
    ] = None,
    x: Annotated[str | None, typer.Option("--x", help="Column that the law is in, e.g. flops or examples.")] = None,
    y: Annotated[str, typer.Option("--y", help="Column of accuracies, errors or losses.")] = "value",
    n: Annotated[str | None, typer.Option("--n", help="Column of model sizes, for parametric.")] = None,
    d: Annotated[str | None, typer.Option("--d", help="Column of data sizes, for parametric.")] = None,
    by: Annotated[
        str | None, typer.Option("--by", help="Columns, with commas: a curve for each value. Of a study: family.")
    ] = None,
    form: Annotated[
        FormName | None, typer.Option("--form", help="The law. Default: auto, or parametric with --n and --d.")
    ] = None,
    y_is: Annotated[
        MeasureName | None, typer.Option("--y-is", help="What y is. Default: by its name; else an accuracy.")
    ] = None,
    at: Annotated[
        list[str] | None, typer.Option("--at", metavar="X", help="Forecast here: X, or N,D. Can be given again.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="Fit these rows only, e.g. \"task == 'digits'\".")] = None,
    low: Annotated[float | None, typer.Option("--from", help="Leave out smaller x (of parametric: N times D).")] = None,
    high: Annotated[float | None, typer.Option("--to", help="Leave out larger x (of parametric: N times D).")] = None,
    cluster: Annotated[
        str | None,
        typer.Option(help="Column whose equal values are not independent. Of a study: the pre-training run."),
    ] = None,
    n_test: Annotated[
        float | None, typer.Option(min=1, help="Test images behind each accuracy. Default: column n_test.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    results: options.Results = Path("results"),
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Fit data whose law is known, say what was found, and nothing else.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Fit a scaling law to a study's results or any table, with intervals and what it depends on.

    Errors (1 - accuracy) are fitted by a robust binomial likelihood, losses by Huber's function of log loss.

    Forms: power b x^-c; saturating a + b x^-c; zhai a + b (x + d)^-c; m4; broken (one break); parametric
    E + A/N^alpha + B/D^beta; parabola in log x. docs/fits.md has the equations and the estimators.
    """
    if selftest:
        _selftest(json)
        return
    if source is None:
        raise VitscaleError("nothing to fit", hint="name a study or a table: vitscale fit STUDY|FILE", exit_code=USAGE)
    name = _form(form, x, n, d)
    inputs = (n, d) if n and d else (str(x),)

    from vitscale.analysis.assess import assess
    from vitscale.analysis.tables import Columns, curves_of
    from vitscale.cli import fit_screen

    asked = _asked(at or [], len(inputs))
    table, facts, study = _table(source, results)
    columns = Columns(
        inputs=inputs,
        y=y,
        by=_by(by, table, study),
        cluster=cluster or ("trunk_id" if study else None),
        measure=y_is.value if y_is else None,
        trials=n_test,
    )
    rows, left_out = _range(_where(table, where), columns, low, high)
    curves, more = curves_of(rows, columns)
    found = [assess(curve, name, asked, resamples=resamples, seed=seed) for curve in curves]
    overall = [*facts, *left_out, *more]
    if json:
        print_json({"source": source, **fit_screen.document(found, overall)})
    else:
        fit_screen.show(found, overall)


def _form(form: FormName | None, x: str | None, n: str | None, d: str | None) -> str:
    """The form's name; refuses inputs that are not its own."""
    two = n is not None or d is not None
    if two and (x is not None or n is None or d is None):
        raise VitscaleError(
            "--n and --d go together, and without --x", hint="give --x COL, or --n COL --d COL", exit_code=USAGE
        )
    if not two and x is None:
        raise VitscaleError(
            "nothing to fit against",
            hint="give --x COL, or --n COL --d COL for E + A/N^alpha + B/D^beta",
            exit_code=USAGE,
        )
    name = form.value if form else ("parametric" if two else "auto")
    if two != (name == "parametric"):
        needs = "--n and --d" if name == "parametric" else "--x"
        raise VitscaleError(f"the form {name} needs {needs}", hint=f"vitscale fit ... {needs} ...", exit_code=USAGE)
    return name


def _asked(at: list[str], inputs: int) -> np.ndarray:
    """Where to forecast: a row for each place."""
    import numpy as np

    try:
        rows = [[float(part) for part in text.split(",")] for text in at]
    except ValueError:
        rows = [[0.0]]
    if inputs == 1:
        rows = [[value] for row in rows for value in row]
    if any(len(row) != inputs or not all(np.isfinite(v) and v > 0 for v in row) for row in rows):
        example = "--at 1e21" if inputs == 1 else "--at 1e9,1e12"
        raise VitscaleError(f"--at {' '.join(at)}: not {'a positive number' if inputs == 1 else 'N,D'}",
                            hint=f"e.g. {example}", exit_code=USAGE)  # fmt: skip
    return np.array(rows, dtype=float).reshape(-1, inputs)


def _table(source: str, results: Path) -> tuple[pd.DataFrame, list[Fact], bool]:
    """The rows, what was left out already, and whether they are a study's."""
    path = Path(source)
    if path.suffix in TABLES:
        return _read(path), [], False
    from vitscale.analysis.curves import of_plan
    from vitscale.analysis.facts import Fact, count
    from vitscale.analysis.measured import measured
    from vitscale.results import store

    folder, _ = results_folder(source, results)
    everything = store.read(folder)
    frame = of_plan(everything, store.read_plan(folder))
    table, facts = measured(frame)
    gone = everything["run_id"].nunique() - frame["run_id"].nunique()
    if gone:
        facts = [Fact("excluded", f"{count(gone, 'run')} left out: not in the study any more."), *facts]
    return table, facts, True


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        raise VitscaleError(f"{path}: no such file", hint="give a study or a .csv, .tsv or .parquet", exit_code=MISSING)
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        with path.open(encoding="utf-8") as lines:
            comments = next((i for i, line in enumerate(lines) if not line.startswith("#")), 0)
        return pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", skiprows=comments, skipinitialspace=True)
    except (ValueError, OSError) as error:  # of pandas, pyarrow and the decoder alike
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VitscaleError(
            f"{path}: not a readable table: {text}",
            hint="a .csv or .tsv has its columns' names in its first line",
            exit_code=MISSING,
        ) from error


def _by(by: str | None, table: pd.DataFrame, study: bool) -> tuple[str, ...]:
    if by is not None:
        return tuple(name.strip() for name in by.split(",") if name.strip())
    return tuple(name for name in STUDY_CURVES if table[name].nunique() > 1) if study else ()


def _where(table: pd.DataFrame, where: str | None) -> pd.DataFrame:
    from vitscale.cli.results import matching

    return table if where is None else matching(table, where)


def _range(
    table: pd.DataFrame, columns: Columns, low: float | None, high: float | None
) -> tuple[pd.DataFrame, list[Fact]]:
    """The rows between --from and --to, and how many lie outside."""
    if low is None and high is None:
        return table, []
    from vitscale.analysis.facts import Fact, count
    from vitscale.analysis.tables import known, numeric

    known(table, columns.inputs)
    compute = numeric(table, columns.inputs[0])
    for name in columns.inputs[1:]:
        compute = compute * numeric(table, name)
    outside = (compute < (low or 0.0)) | (compute > (high or float("inf")))
    text = f"{count(int(outside.sum()), 'row')} left out by --from and --to."
    return table[~outside], [Fact("range", text)] if outside.any() else []


def _selftest(json: bool) -> None:
    from vitscale.analysis.selftest import selftest

    checks = selftest()
    failed = sum(not check.passed for check in checks)
    if json:
        fields = ("name", "quantity", "expected", "found", "tolerance", "passed")
        print_json({"checks": [{field: getattr(check, field) for field in fields} for check in checks]})
    else:
        header = ["law", "quantity", "known", "found", "may differ by", "verdict"]
        rows = [
            [
                c.name,
                c.quantity,
                f"{c.expected:g}",
                f"{c.found:.9g}",
                f"{c.tolerance:.1e}",
                "pass" if c.passed else "FAIL",
            ]
            for c in checks
        ]
        print_table(rows, header)
        say(f"{len(checks) - failed} of {len(checks)} recovered")
    if failed:
        raise typer.Exit(BUG)
