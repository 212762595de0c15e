"""`vitscale fit`: scaling laws with intervals, from a study's results or any table."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitscale.cli import options
from vitscale.cli.screen import print_json, print_table, reports_errors, say
from vitscale.errors import BUG, MISSING, USAGE, VitscaleError

if TYPE_CHECKING:
    import numpy as np


class FormName(StrEnum):
    auto = "auto"
    power = "power"
    saturating = "saturating"
    zhai = "zhai"
    m4 = "m4"
    broken = "broken"
    parametric = "parametric"
    isoflop = "isoflop"
    envelope = "envelope"


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
    y: Annotated[
        str, typer.Option("--y", help="Column of accuracies, errors or losses; several, with commas: their mean.")
    ] = "value",
    n: Annotated[str | None, typer.Option("--n", help="Column of model sizes, for parametric and isoflop.")] = None,
    d: Annotated[str | None, typer.Option("--d", help="Column of data sizes, for parametric.")] = None,
    by: Annotated[
        str | None, typer.Option("--by", help="Columns, with commas: a curve for each value. Of a study: family.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Columns, with commas, that name a configuration of the envelope.")
    ] = None,
    relative_to: Annotated[
        str | None, typer.Option(metavar="CURVE", help="Say how many times each other curve's compute this one needs.")
    ] = None,
    form: Annotated[
        FormName | None, typer.Option("--form", help="The law. Default: auto, or parametric with --n and --d.")
    ] = None,
    y_is: Annotated[
        MeasureName | None, typer.Option("--y-is", help="What y is. Default: by its name; else an accuracy.")
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            metavar="X",
            help="Forecast here: X, or N,D; of parametric and isoflop, a budget of FLOPs: its best size. "
            "Can be given again.",
        ),
    ] = None,
    flops: Annotated[
        str | None,
        typer.Option(help="Column of each run's FLOPs, for parametric's budgets. Default: 6 N D; of a study: flops."),
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

    Laws in x: power b x^-c, saturating a + b x^-c, zhai a + b (x + d)^-c, m4, broken (one break); auto chooses.

    In N and D: parametric E + A/N^alpha + B/D^beta.

    Of a grid: isoflop (the best size at each compute), envelope (the best error at each compute, and who has it).

    docs/fits.md has the equations and how they are estimated.
    """
    if selftest:
        _selftest(json)
        return
    if source is None:
        raise VitscaleError("nothing to fit", hint="name a study or a table: vitscale fit STUDY|FILE", exit_code=USAGE)
    name = _form(form, x, n, d)
    inputs = tuple(column for column in (x, n, d) if column)
    _check_inputs(name, inputs, relative_to)

    from vitscale.analysis.tables import Columns, curves_of
    from vitscale.cli import fit_answers, fit_source

    places, budgets = _asked(at or [], name)
    table, facts, study = fit_source.table(source, results)
    table, y = fit_source.averaged(table, y)
    columns = Columns(
        inputs=inputs,
        y=y,
        by=_names(by) if by is not None else fit_source.by(table, study=study and name != "envelope"),
        cluster=cluster or (fit_source.TRUNK if study else None),
        measure=y_is.value if y_is else None,
        labels=_names(label) if label else fit_source.labels(table, study=study),
        trials=n_test,
        flops=flops or (fit_source.FLOPS if study and name == "parametric" else None),
    )
    ranged = inputs if name == "parametric" else inputs[:1]
    rows, left_out = fit_source.between(fit_source.where(table, where), ranged, low, high)
    if rows.empty and not table.empty:
        raise VitscaleError(
            f"none of the table's {len(table):,} rows is left",
            hint="--where, --from and --to choose others",
            exit_code=MISSING,
        )
    curves, more = curves_of(rows, columns)
    draws = fit_answers.Draws(resamples, seed)
    if name == "isoflop":
        answer = fit_answers.isoflops(curves, places[:, 0], draws)
    else:
        answer = fit_answers.laws(curves, name, places, draws, relative_to, budgets)
    fit_answers.give(answer.with_facts([*facts, *left_out, *more]), source, as_json=json)


def _form(form: FormName | None, x: str | None, n: str | None, d: str | None) -> str:
    """The form's name; refuses inputs that are not its own."""
    name = form.value if form else ("parametric" if n and d else "auto")
    needs = {"parametric": "--n COL --d COL", "isoflop": "--x COL --n COL"}.get(name, "--x COL")
    given = " ".join(f"--{option} COL" for option, column in (("x", x), ("n", n), ("d", d)) if column)
    if not given:
        raise VitscaleError(
            "nothing to fit against",
            hint=f"name the columns: {needs}" + (", or --n COL --d COL" if needs == "--x COL" else ""),
            exit_code=USAGE,
        )
    if given != needs:
        raise VitscaleError(f"the form {name} needs {needs}, not {given}", hint=f"give {needs}", exit_code=USAGE)
    return name


def _check_inputs(form: str, inputs: tuple[str, ...], relative_to: str | None) -> None:
    if len(set(inputs)) < len(inputs):
        raise VitscaleError(
            f"{inputs[0]!r} is given twice", hint="the form needs two different columns", exit_code=USAGE
        )
    if relative_to is not None and len(inputs) > 1:
        raise VitscaleError(
            f"--relative-to compares laws in compute, and {form} is none",
            hint="give --x COL with a law in x, e.g. --form power",
            exit_code=USAGE,
        )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _asked(at: list[str], form: str) -> tuple[np.ndarray, np.ndarray]:
    """Where to forecast, a row for each place; and where two make a place, the lone numbers: budgets."""
    import numpy as np

    try:
        rows = [[float(part) for part in text.split(",")] for text in at]
    except ValueError:
        rows = [[0.0]]
    inputs = 2 if form == "parametric" else 1
    budgets = [row[0] for row in rows if len(row) < inputs]
    places = [row for row in rows if len(row) == 2] if inputs == 2 else [[value] for row in rows for value in row]
    if any(len(row) > 2 for row in rows if inputs == 2) or not all(np.isfinite(v) and v > 0 for r in rows for v in r):
        wrong = "not a positive number" if inputs == 1 else "neither N,D nor a budget of FLOPs"
        example = "--at 1e21" if inputs == 1 else "--at 1e9,1e12 or --at 1e21"
        raise VitscaleError(f"--at {' '.join(at)}: {wrong}", hint=f"e.g. {example}", exit_code=USAGE)
    return np.array(places, dtype=float).reshape(-1, inputs), np.array(budgets, dtype=float)


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
