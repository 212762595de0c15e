"""What `vitscale fit` answers: laws, the frontier, isoFLOP profiles, and how much compute a family saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from vitscale.analysis.assess import Assessed, assess
from vitscale.analysis.facts import Fact
from vitscale.analysis.frontier import Choice, choose, configurations, frontier, without_law
from vitscale.analysis.isoflop import Budget, IsoFlop, isoflop
from vitscale.analysis.multiplier import Multiplier, multiplier
from vitscale.analysis.tables import Curve
from vitscale.cli import fit_optimum
from vitscale.cli.fit_screen import Table, document, ends, finite, number, or_nan, pair, show, tables
from vitscale.cli.screen import print_json
from vitscale.errors import USAGE, VitscaleError


@dataclass(frozen=True, slots=True)
class Draws:
    """Of the bootstrap."""

    resamples: int
    seed: int


@dataclass(frozen=True, slots=True)
class Answer:
    tables: list[Table]
    document: dict[str, Any]
    facts: tuple[tuple[str, Fact], ...]
    """Each with its curve's name; empty for what is true of all."""

    def with_facts(self, overall: Sequence[Fact]) -> Answer:
        document = {**self.document, "facts": [asdict(fact) for fact in overall]}
        return replace(self, document=document, facts=(*(("", fact) for fact in overall), *self.facts))


def give(answer: Answer, source: str, *, as_json: bool) -> None:
    if as_json:
        print_json(finite({"source": source, **answer.document}))
    else:
        show(answer.tables, answer.facts)


def laws(
    curves: Sequence[Curve], form: str, at: np.ndarray, draws: Draws, relative_to: str | None, budgets: np.ndarray
) -> Answer:
    """`form`: a name in FORMS, auto or envelope. `budgets` are split between N and D."""
    envelope = form == "envelope"
    law = "auto" if envelope else form
    lawless = {c.name: fact for c in curves if envelope and (fact := without_law(c.observations))}
    fitted = [curve for curve in curves if curve.name not in lawless]
    if relative_to is not None:
        _check_reference([curve.name for curve in fitted], relative_to)
    found = [
        # A seed each: curves of as many runs would share their resamples, and a comparison takes them for independent.
        assess(curve, law, at, resamples=draws.resamples, seed=draws.seed + i, of_envelope=envelope)
        for i, curve in enumerate(fitted)
    ]
    shown, told = tables(found), {"curves": document(found)}
    if envelope:
        shown = frontier_tables(curves, at[:, 0].tolist()) + shown
        told["frontiers"] = frontier_document(curves, at[:, 0].tolist())
        told["without_law"] = [{"curve": name, **asdict(fact)} for name, fact in lawless.items()]
    if relative_to is not None:
        compared = multipliers(found, relative_to)
        shown = shown + multiplier_tables(compared, relative_to)
        told["multipliers"] = multiplier_document(compared)
    facts = [*lawless.items(), *((a.curve.name, fact) for a in found for fact in a.facts)]
    if len(budgets):
        best = fit_optimum.optima(found, budgets)
        shown = shown + fit_optimum.tables(best)
        told["optima"] = fit_optimum.document(best)
        facts += [(a.curve.name, fact) for a, one in best for fact in one.facts]
    return Answer(shown, told, tuple(facts))


def isoflops(curves: Sequence[Curve], at: np.ndarray, draws: Draws) -> Answer:
    asked = at.tolist()
    found = [(c, isoflop(c.observations, at=asked, resamples=draws.resamples, seed=draws.seed)) for c in curves]
    facts = tuple((curve.name, fact) for curve, one in found for fact in (*curve.facts, *one.facts))
    return Answer(isoflop_tables(found, asked), {"curves": isoflop_document(found, asked)}, facts)


def frontier_tables(curves: Sequence[Curve], budgets: Sequence[float]) -> list[Table]:
    best, choices = [], []
    for curve in curves:
        grid = configurations(curve.observations, curve.labels)
        best += [[curve.name, number(c.compute), c.name, number(c.value), c.runs] for c in frontier(grid)]
        choices += [[curve.name, number(budget), *_chosen(choose(grid, budget))] for budget in budgets]
    return [
        (["curve", "compute", "best configuration", "value", "runs"], best),
        (["curve", "budget", "choose", "value", "next best", "value", ""], choices),
    ]


def _chosen(choice: Choice | None) -> list[Any]:
    if choice is None:
        return ["", "", "", "", "dearer than the budget, all of them"]
    second = [choice.second.name, number(choice.second.value)] if choice.second else ["", ""]
    note = "the dearest within the budget: a dearer one may be better" if choice.at_edge else ""
    return [choice.best.name, number(choice.best.value), *second, note]


def frontier_document(curves: Sequence[Curve], budgets: Sequence[float]) -> list[dict[str, Any]]:
    documents = []
    for curve in curves:
        grid = configurations(curve.observations, curve.labels)
        found = [choose(grid, budget) for budget in budgets]
        documents.append(
            {
                "curve": curve.name,
                "frontier": [asdict(one) for one in frontier(grid)],
                "choices": [None if choice is None else asdict(choice) for choice in found],
            }
        )
    return documents


def multipliers(found: Sequence[Assessed], reference: str) -> list[tuple[str, Multiplier | None]]:
    """Of each curve but the reference: how many times its compute the reference needs."""
    by_name = {a.curve.name: a for a in found}
    dear = by_name.pop(reference).sample
    return [(name, multiplier(dear, a.sample, (reference, name))) for name, a in by_name.items()]


def _check_reference(names: Sequence[str], reference: str) -> None:
    if reference not in names:
        between = "; " if any("," in name for name in names) else ", "
        there = between.join(filter(None, names)) or "one curve without a name; --by makes several"
        raise VitscaleError(f"no curve {reference!r} to compare with", hint=f"there are: {there}", exit_code=USAGE)


def multiplier_tables(found: Sequence[tuple[str, Multiplier | None]], reference: str) -> list[Table]:
    header = ["curve", f"compute of {reference} over its own", "95% low", "95% high", "from", "to", "at values"]
    rows: list[list[Any]] = []
    for name, one in found:
        if one is None:
            rows.append([name, "", "", "", "", "", "none that both reached"])
        else:
            at = f"{number(one.errors.low)} to {number(one.errors.high)}"
            rows.append([name, number(one.value), *ends(one.interval), number(one.smallest), number(one.largest), at])
    return [(header, rows)]


def multiplier_document(found: Sequence[tuple[str, Multiplier | None]]) -> list[dict[str, Any]]:
    return [
        {"cheap": name}
        if one is None
        else {
            "dear": one.dear,
            "cheap": one.cheap,
            "multiplier": one.value,
            "interval": pair(one.interval),
            "smallest": one.smallest,
            "largest": one.largest,
            "at": pair(one.errors),
        }
        for name, one in found
    ]


def isoflop_tables(found: Sequence[tuple[Curve, IsoFlop]], at: Sequence[float]) -> list[Table]:
    budgets, laws, sizes = [], [], []
    for curve, one in found:
        for b in one.budgets:
            row = [number(b.compute), number(or_nan(b.best_size)), *ends(b.interval), number(or_nan(b.best_value))]
            budgets.append([curve.name, *row, _why_not(b)])
        if one.a is not None and one.k is not None:
            laws.append([curve.name, "a", number(one.a), *ends(one.interval)])
            laws.append([curve.name, "k", number(one.k), "", ""])
        sizes += [[curve.name, number(c), number(or_nan(one.best_size(c))), *ends(one.size_interval(c))] for c in at]
    return [
        (["curve", "compute", "best size", "95% low", "95% high", "value there", ""], budgets),
        (["curve", "size = k compute^a", "value", "95% low", "95% high"], laws),
        (["curve", "at", "best size", "95% low", "95% high"], sizes),
    ]


def _why_not(budget: Budget) -> str:
    """What a budget has instead of a best size; empty where it has one."""
    if not budget.at_edge:
        return "its runs do not tell it" if budget.is_open else ""
    if budget.fit.parameters["h"] <= 0:
        return "its profile has no minimum"
    return "above its largest size" if budget.minimum >= budget.largest else "below its smallest size"


def isoflop_document(found: Sequence[tuple[Curve, IsoFlop]], at: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {
            "curve": curve.name,
            "of": curve.what,
            "budgets": [
                {
                    "compute": b.compute,
                    "best_size": b.best_size,
                    "interval": pair(b.interval),
                    "value": b.best_value,
                    "at_edge": b.at_edge,
                    "sizes": [b.smallest, b.largest],
                }
                for b in one.budgets
            ],
            "a": one.a,
            "k": one.k,
            "a_interval": pair(one.interval),
            "forecasts": [{"at": c, "best_size": one.best_size(c), "interval": pair(one.size_interval(c))} for c in at],
            "facts": [asdict(fact) for fact in (*curve.facts, *one.facts)],
        }
        for curve, one in found
    ]
