"""`vitscale suggest`: which runs of a study's grid would make a forecast surer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitscale.cli import options
from vitscale.cli.fit import FormName
from vitscale.cli.screen import print_json, print_table, reports_errors, say
from vitscale.errors import MISSING, USAGE, VitscaleError

if TYPE_CHECKING:
    from vitscale.analysis.suggest import Candidate, Suggestion
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
LAWS = [form.value for form in FormName if form.value not in ("parametric", "isoflop", "envelope")]


@reports_errors
def suggest(
    study: options.StudyFile,
    budget: Annotated[float, typer.Option("--budget", min=0.0, help="FLOPs that the next runs may take together.")],
    settings: options.Settings = None,
    x: Annotated[str, typer.Option("--x", help=f"Column that the law is in: {', '.join(INPUTS)}.")] = "flops",
    y: Annotated[str, typer.Option("--y", help="Column of accuracies, errors or losses.")] = "value",
    by: Annotated[str, typer.Option("--by", help="A law for each: family or model.")] = "family",
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
    _check(x, by, form)
    import numpy as np

    from vitscale.analysis.checks import choose
    from vitscale.analysis.fits import fit
    from vitscale.analysis.forms import FORMS
    from vitscale.analysis.suggest import suggest as ranked
    from vitscale.study.load import load

    loaded = load(study, settings=settings or [])
    curves = _curves(loaded, results, x, y, by, where)
    fits = {}
    for curve in curves:
        law = choose(curve.observations).form if form.value == "auto" else FORMS[form.value]
        fits[curve.name] = fit(law, curve.observations)
    places = {c.name: np.array([[at or 10 * c.observations.inputs.max()]]) for c in curves}
    trunks = {c.name: dict(zip(c.labels, c.observations.clusters.tolist(), strict=True)) for c in curves}
    candidates, how = _candidates(loaded, runs, x, by, device)
    found = list(ranked(fits, places, candidates, budget, most=most, trunks=trunks, seed=seed))
    if json:
        laws = [{"curve": name, "form": fits[name].form.name, "at": float(places[name][0, 0])} for name in fits]
        named = [{**asdict(each), "narrower": each.narrower} for each in found]
        print_json({"study": loaded.name, "rates": how, "curves": laws, "suggestions": named})
        return
    print_table(
        [_row(each) for each in found],
        ["run", "curve", x, "FLOPs", "hours", "interval", "expected", "narrower", "why"],
    )
    for name, place in places.items():
        say(f"{name or loaded.name}: {fits[name].form.equation}, forecast at {x} = {place[0, 0]:.4g}")
    say(f"hours {how}")
    if not found:
        say(_nothing(candidates, budget))


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


def _check(x: str, by: str, form: FormName) -> None:
    for given, known, option in ((x, INPUTS, "--x"), (by, GROUPS, "--by")):
        if given not in known:
            message = f"{option} {given}: not known of a run before it is made"
            raise VitscaleError(message, hint=f"one of {', '.join(known)}", exit_code=USAGE)
    if form.value not in LAWS:
        message = f"--form {form.value} is no law in one column"
        raise VitscaleError(message, hint=f"one of {', '.join(LAWS)}", exit_code=USAGE)


def _curves(study: Study, results: Path, x: str, y: str, by: str, where: str | None) -> list[Curve]:
    from vitscale.analysis.tables import Columns, curves_of
    from vitscale.cli import fit_source

    table, _, _ = fit_source.table(study.name, results)
    columns = Columns(inputs=(x,), y=y, by=(by,), cluster=fit_source.TRUNK, labels=(fit_source.TRUNK,))
    found, facts = curves_of(fit_source.where(table, where), columns)
    for fact in facts:
        say(fact.text)
    return found


def _candidates(study: Study, runs: Path, x: str, by: str, device: str | None) -> tuple[list[Candidate], str]:
    """The cells that are not done, with what each would compute, and how much of its trunk is missing."""
    from vitscale.launch import folders
    from vitscale.launch.rates import rates_of
    from vitscale.launch.sweep import current_plan

    now = current_plan(study, runs)
    rates = rates_of(now.jobs, device, options.cores())
    found = [
        _candidate(job, runs, x, by, rates)
        for job in now.jobs
        if job.kind == "pretrain" and job.role == "cell" and folders.state_of(job, runs) not in ("done", "failed")
    ]
    if not found:
        raise VitscaleError(
            f"every run of {study.name} is done", hint="add values to one of its [[axes]]: suggest chooses among them",
            exit_code=MISSING,
        )  # fmt: skip
    return found, rates.how


def _candidate(job: Job, runs: Path, x: str, by: str, rates: Rates) -> Candidate:
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
        flops=flops,
        hours=hours,
        trunk=job.branch.trunk if job.branch else None,
        trunk_flops=flops * share,
        trunk_hours=hours * share,
    )


def _nothing(candidates: list[Candidate], budget: float) -> str:
    cheapest = min(candidate.cost(0.0)[0] for candidate in candidates)
    if cheapest > budget:
        return f"nothing to suggest: the cheapest run that is not done takes {cheapest:.3g} FLOPs"
    return "nothing to suggest: no run that is not done is expected to narrow the interval by 1 % or more"
