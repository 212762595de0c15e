"""`vitscale fit`: scaling laws with intervals, from a study's results or any table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vitscale.cli import fit_options, options
from vitscale.cli.fit_options import FormName
from vitscale.cli.screen import print_json, print_table, reports_errors, say
from vitscale.errors import BUG, USAGE, VitscaleError

if TYPE_CHECKING:
    import numpy as np


VALUE = "value"  # the column of a study's results that is fitted


@reports_errors
def fit(
    source: fit_options.Source = None,
    x: fit_options.X = None,
    y: fit_options.Y = VALUE,
    n: fit_options.N = None,
    d: fit_options.D = None,
    by: fit_options.By = None,
    label: fit_options.Label = None,
    relative_to: fit_options.RelativeTo = None,
    form: fit_options.Form = None,
    y_is: fit_options.YIs = None,
    at: fit_options.At = None,
    flops: fit_options.Flops = None,
    where: fit_options.Where = None,
    low: fit_options.Low = None,
    high: fit_options.High = None,
    cluster: fit_options.Cluster = None,
    n_test: fit_options.Trials = None,
    resamples: fit_options.Resamples = 1000,
    seed: fit_options.Seed = 0,
    results: options.Results = Path("results"),
    selftest: fit_options.SelfTest = False,
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
    _check_inputs(name, inputs, y, relative_to)

    from vitscale.analysis.tables import Columns, curves_of, known, named
    from vitscale.cli import fit_answers, fit_source

    places, budgets = _asked(at or [], name)
    table, facts, study = fit_source.table(source, results)
    known(table, inputs)
    if y == VALUE and y not in table.columns:
        hint = f"say what is fitted with --y; {named(table)}"
        raise VitscaleError(f"{source}: no column {VALUE!r} in this table", hint=hint, exit_code=USAGE)
    ranged = inputs if name == "parametric" else inputs[:1]
    rows, left_out = fit_source.between(fit_source.where(table, where), ranged, low, high)
    fit_source.refuse_none(rows, table, "--where, --from and --to")
    rows, mean, measure, read = fit_source.averaged(rows, y, y_is.value if y_is else None, table)
    columns = Columns(
        inputs=inputs,
        y=mean,
        by=_names(by) if by is not None else fit_source.by(table, study=study and name != "envelope"),
        cluster=cluster or (fit_source.TRUNK if study else None),
        measure=measure,
        labels=_names(label) if label else fit_source.labels(table, study=study),
        trials=n_test,
        flops=flops or (fit_source.FLOPS if study and name == "parametric" else None),
    )
    curves, more = curves_of(rows, columns, table if mean == y else None)
    draws = fit_answers.Draws(resamples, seed)
    if name == "isoflop":
        answer = fit_answers.isoflops(curves, places[:, 0], draws)
    else:
        answer = fit_answers.laws(curves, name, places, draws, relative_to, budgets)
    fit_answers.give(answer.with_facts([*facts, *left_out, *read, *more]), source, as_json=json)


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


def _check_inputs(form: str, inputs: tuple[str, ...], y: str, relative_to: str | None) -> None:
    given = [*inputs, y]
    if twice := next((column for column in given if given.count(column) > 1), None):
        raise VitscaleError(f"{twice!r} is given twice", hint="each of them is another column", exit_code=USAGE)
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
