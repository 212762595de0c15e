"""`vitscale suggest`: which runs of a study's grid would make a forecast surer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitscale.cli import options
from vitscale.cli.fit_options import FormName, YIs
from vitscale.cli.screen import print_json, print_table, reports_errors, say
from vitscale.errors import MISSING, USAGE, VitscaleError
from vitscale.processes import cores
from vitscale.wording import count

if TYPE_CHECKING:
    import pandas as pd

    from vitscale.analysis.facts import Fact
    from vitscale.analysis.fits import Fit
    from vitscale.analysis.measures import Measure
    from vitscale.analysis.suggest import Bare, Candidate, Suggestion
    from vitscale.analysis.tables import Curve
    from vitscale.launch.rates import Rates
    from vitscale.study.job import Job
    from vitscale.study.load import Study

INPUTS: dict[str, Callable[[Job], float]] = {
    "flops": lambda job: job.pretrain_flops,
    "examples": lambda job: job.examples,
    "examples_seen": lambda job: job.examples_seen,
    "params_total": lambda job: job.params.total,
    "params_blocks": lambda job: job.params.blocks,
}
"""Columns of results that are known of a run before it is made."""
GROUPS: dict[str, Callable[[Job], str]] = {
    "family": lambda job: job.arch.family,
    "model": lambda job: job.run.model.name,
}
Trunks = dict[str, dict[str, int]]
"""Of each curve the cluster that the points of a trunk are in."""
LAWS = [form.value for form in FormName if form.value not in ("parametric", "isoflop", "envelope")]


@reports_errors
def suggest(
    study: options.StudyFile,
    budget: Annotated[
        float,
        typer.Option("--budget", min=0.0, callback=options.finite, help="FLOPs that the next runs may take together."),
    ],
    settings: options.Settings = None,
    x: Annotated[str, typer.Option("--x", help=f"Column that the law is in: {', '.join(INPUTS)}.")] = "flops",
    y: Annotated[str, typer.Option("--y", help="Column of accuracies, errors or losses.")] = "value",
    by: Annotated[str, typer.Option("--by", help="A law for each: family or model.")] = "family",
    y_is: YIs = None,
    where: Annotated[str | None, typer.Option(help="Fit these rows only, e.g. \"task == 'digits'\".")] = None,
    form: Annotated[FormName, typer.Option("--form", help=f"The law: {', '.join(LAWS)}.")] = FormName.auto,
    at: Annotated[
        float | None, typer.Option("--at", help="The forecast that is to be surer. Default: 10 times the largest x.")
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Runs to name.")] = 5,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Hours on this kind, as for vitscale plan.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulation.")] = 0,
    runs: options.Runs = Path("runs"),
    results: options.Results = Path("results"),
    json: options.Json = False,
) -> None:
    """Name the runs of STUDY's grid, of those not done, that would narrow a forecast most for each device-hour.

    What a run would measure is drawn from the law that is fitted to those that are done.
    """
    _check(x, by, form, at)
    from vitscale.study.load import load

    loaded = load(study, settings=settings or [])
    table, curves = _curves(loaded, results, x, y, by, where, y_is.value if y_is else None)
    candidates, how = _candidates(loaded, runs, table, x, by, device)
    fits = {curve.name: _fit(curve, form) for curve in curves}
    places = {curve.name: at or 10 * float(curve.observations.inputs.max()) for curve in curves}
    trunks = {c.name: dict(zip(c.labels, c.observations.clusters.tolist(), strict=True)) for c in curves}
    found = _ranked(fits, places, candidates, budget, most, trunks, seed)
    without = _without(fits, form, table[table["fitted"]].dropna(subset=[x, y]), x, by, candidates, trunks)
    doubts = {name: _doubts(fits[name], place) for name, place in places.items()}
    if json:
        laws = [
            {"curve": name, "form": fits[name].form.name, "at": place, "facts": [asdict(fact) for fact in doubts[name]]}
            for name, place in places.items()
        ]
        named = [{**asdict(each), "narrower": each.narrower} for each in found]
        bare = [{**asdict(each), "flops": _together(each)} for each in without]
        document = {"study": loaded.name, "rates": how, "curves": laws, "without_interval": bare, "suggestions": named}
        print_json(document)
        return
    print_table(
        [_row(each) for each in found],
        ["run", "curve", x, "FLOPs", "hours", "interval", "expected", "narrower", "why"],
    )
    for name, place in places.items():
        say(f"{name or loaded.name}: {fits[name].form.equation}, forecast at {x} = {place:.4g}")
        for fact in doubts[name]:
            say(f"{name or loaded.name}: {fact.text}")
    say(f"hours {how}")
    for each in without:
        _say_bare(each, x, budget)
    judged = {*fits} - {each.curve for each in without}
    if judged and not found:
        say(_nothing([candidate for candidate in candidates if candidate.curve in judged], budget))


def _doubts(fit: Fit, at: float) -> list[Fact]:
    import numpy as np

    from vitscale.analysis.facts import far

    return far(fit, np.array([[at]]))


def _without(
    fits: dict[str, Fit],
    form: FormName,
    rows: pd.DataFrame,
    x: str,
    by: str,
    candidates: list[Candidate],
    trunks: Trunks,
) -> list[Bare]:
    from vitscale.analysis.checks import AUTO
    from vitscale.analysis.forms import FORMS
    from vitscale.analysis.suggest import bare

    law = FORMS[AUTO[0] if form is FormName.auto else form.value]
    measured = {str(name): places.astype(float) for name, places in rows.groupby(by)[x].unique().items()}
    return bare(fits, law, measured, candidates, trunks)


def _together(each: Bare) -> float:
    return sum(run.cost(0.0)[0] for run in each.runs)


def _say_bare(each: Bare, x: str, budget: float) -> None:
    """Why there is no interval, and the runs that would bring one."""
    runs = count(len(each.runs), "run")
    way = f"{runs} would bring one" if each.runs else "no run of the grid would bring one: add values to its [[axes]]"
    if (flops := _together(each)) > budget:
        way += f", for {flops:.3g} FLOPs: more than the budget"
    say(f"{each.curve}: no interval yet ({each.why}); {way}")
    for run in each.runs:
        flops, hours = run.cost(0.0)
        say(f"  {run.name}: {x} = {run.inputs[0]:.4g}, {flops:.3g} FLOPs, {hours:.3g} hours")


def _fit(curve: Curve, form: FormName) -> Fit:
    from vitscale.analysis.checks import choose
    from vitscale.analysis.fits import fit
    from vitscale.analysis.forms import FORMS

    law = choose(curve.observations).form if form.value == "auto" else FORMS[form.value]
    return fit(law, curve.observations)


def _ranked(
    fits: dict[str, Fit],
    places: dict[str, float],
    candidates: list[Candidate],
    budget: float,
    most: int,
    trunks: Trunks,
    seed: int,
) -> list[Suggestion]:
    import numpy as np

    from vitscale.analysis.suggest import suggest

    at = {name: np.array([[place]]) for name, place in places.items()}
    return list(suggest(fits, at, candidates, budget, most=most, trunks=trunks, seed=seed))


def _row(each: Suggestion) -> list[str]:
    return [
        each.candidate.name,
        each.candidate.curve,
        f"{each.candidate.inputs[0]:.4g}",
        f"{each.flops:.3g}",
        f"{each.hours:.3g}",
        f"{each.before:.3g}",
        f"{each.after:.3g}",
        f"{each.narrower:.0%}",
        each.why,
    ]


def _check(x: str, by: str, form: FormName, at: float | None) -> None:
    for given, known, option in ((x, INPUTS, "--x"), (by, GROUPS, "--by")):
        if given not in known:
            message = f"{option} {given}: not known of a run before it is made"
            raise VitscaleError(message, hint=f"one of {', '.join(known)}", exit_code=USAGE)
    if form.value not in LAWS:
        message = f"--form {form.value} is no law in one column"
        raise VitscaleError(message, hint=f"one of {', '.join(LAWS)}", exit_code=USAGE)
    if at is not None and not (at > 0 and math.isfinite(at)):
        raise VitscaleError(f"--at {at:g}: not a positive number", hint="e.g. --at 1e21", exit_code=USAGE)


def _curves(
    study: Study, results: Path, x: str, y: str, by: str, where: str | None, measure: Measure | None
) -> tuple[pd.DataFrame, list[Curve]]:
    """All measured rows, and the curves of those that are fitted."""
    from vitscale.analysis.tables import Columns, curves_of
    from vitscale.cli import fit_source

    table, left_out, _ = fit_source.table(study.name, results)
    rows = fit_source.where(table, where)
    fit_source.refuse_none(rows, table, "--where")
    trunk = fit_source.TRUNK
    columns = Columns(inputs=(x,), y=y, by=(by,), any_by=False, cluster=trunk, labels=(trunk,), measure=measure)
    found, facts = curves_of(rows, columns, table)
    for fact in (*left_out, *facts):
        say(fact.text)
    return table.assign(fitted=table.index.isin(rows.index)), found


def _candidates(
    study: Study, runs: Path, table: pd.DataFrame, x: str, by: str, device: str | None
) -> tuple[list[Candidate], str]:
    """The cells that are not done, with what each would compute, the transfers that are fitted included, and how much
    of its trunk is missing. `table`: what is measured, also of runs whose folders are not here; `fitted` marks rows."""
    from vitscale.launch import folders
    from vitscale.launch.rates import rates_of
    from vitscale.launch.sweep import current_plan

    now = current_plan(study, runs)
    rates = rates_of(now.jobs, device, cores())
    measured = {*table["run_id"], *table["parent_id"].dropna()}
    fitted = table[table["fitted"] & table["parent_id"].notna()]
    needed = set(zip(fitted["task"], fitted["protocol"], strict=True))
    transfers: dict[str, list[Job]] = {}
    for job in now.jobs:
        if job.run.transfer and job.task and (job.task.name, job.run.transfer.protocol) in needed:
            transfers.setdefault(str(job.parent), []).append(job)
    found = [
        _candidate(job, transfers.get(job.id, []), runs, x, by, rates)
        for job in now.jobs
        if job.kind == "pretrain"
        and job.role == "cell"
        and job.id not in measured
        and folders.state_of(job, runs) not in ("done", "failed")
    ]
    if not found:
        raise VitscaleError(
            f"every run of {study.name} is done", hint="add values to one of its [[axes]]: suggest chooses among them",
            exit_code=MISSING,
        )  # fmt: skip
    return found, rates.how


def _candidate(job: Job, transfers: list[Job], runs: Path, x: str, by: str, rates: Rates) -> Candidate:
    from vitscale.analysis.suggest import Candidate
    from vitscale.launch import trunks

    flops, hours, share = float(job.flops), rates.seconds(job) / 3600, 0.0
    if job.branch is not None:
        missing = max(job.branch.step - trunks.reached(runs / job.branch.trunk), 0)
        share = missing * job.run.recipe.batch_size / job.examples_trained
    return Candidate(
        name=job.id,
        curve=GROUPS[by](job),
        inputs=(float(INPUTS[x](job)),),
        flops=flops + sum(float(transfer.flops) for transfer in transfers),
        hours=hours + sum(rates.seconds(transfer) for transfer in transfers) / 3600,
        trunk=job.branch.trunk if job.branch else None,
        trunk_flops=flops * share,
        trunk_hours=hours * share,
    )


def _nothing(candidates: list[Candidate], budget: float) -> str:
    from vitscale.analysis.suggest import WORTH

    if not candidates:
        return "nothing to suggest: every run of those that have an interval is done"
    cheapest = min(candidate.cost(0.0)[0] for candidate in candidates)
    if cheapest > budget:
        return f"nothing to suggest: the cheapest run that is not done takes {cheapest:.3g} FLOPs"
    return f"nothing to suggest: no run that is not done is expected to narrow the interval by {WORTH:.0%} or more"
