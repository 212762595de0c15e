"""What to doubt of the laws that a report draws, for its honesty box: what `vitscale fit` would say of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vitscale.analysis import facts
from vitscale.analysis.assess import range_of
from vitscale.analysis.curves import Curves, compute_axis
from vitscale.analysis.facts import FAR, FEW_POINTS
from vitscale.report.fitted import Law, fitted, lines_of
from vitscale.report.lines import line_name, measure_title
from vitscale.report.notes import Note
from vitscale.report.panels import accuracy, measures, of_measure
from vitscale.wording import count

# What spoils isoFLOP profiles, by the kind of fact.
OF_PROFILES = {
    "edge": "Best sizes at equal compute that lie at the edge of those measured.",
    "no_budget": "Computes without gaps between them: no sizes are compared there.",
}
NOWHERE = np.empty((0, 1))  # at which nothing is forecast


def doubts(found: Curves) -> list[Note]:
    """Of the laws that are drawn, of the best sizes, and of errors that a logarithmic axis cannot hold."""
    return [*_of_laws(list(_named(found))), *_lawless(found), *_of_profiles(found), *_zeros(found)]


def _named(found: Curves) -> Iterator[tuple[str, Law]]:
    for key, of_lines in fitted(found).laws.items():
        for line, law in of_lines.items():
            yield f"{measure_title(*key)}, {line_name(line)}", law


def _of_laws(laws: Sequence[tuple[str, Law]]) -> list[Note]:
    if not laws:
        return []
    places = [(name, law.fit.observations.place_count) for name, law in laws]
    few = [f"{name}: {count(computes, 'compute')}" for name, computes in places if computes < FEW_POINTS]
    unsure = [
        f"{name}: {', '.join(f'{one} ({range_of(law.profiles[one])})' for one in law.open)}"
        for name, law in laws
        if law.open
    ]
    alone = [
        f"{name}: {count(law.fit.observations.cluster_count, 'independent run')}"
        for name, law in laws
        if law.drawn.method != "bootstrap"
    ]
    told = [(f"{name}: {fact.text}", fact) for name, law in laws for fact in facts.of_fit(law.fit, NOWHERE)]
    outliers = [
        f"{text.removesuffix('.')} ({'; '.join(fact.details)})" for text, fact in told if fact.kind == "outliers"
    ]
    total = len(laws)
    lines = [
        (few, f"{len(few)} of the {total} laws drawn go through fewer than four computes, and say little."),
        (unsure, f"{len(unsure)} of the {total} laws drawn have parameters that the data do not identify."),
        (alone, f"{len(alone)} of the {total} laws drawn have too few independent runs for a bootstrap: their bands"
         " are Student's, if there are any."),
        (outliers, f"{len(outliers)} of the {total} laws drawn have outliers."),
    ]  # fmt: skip
    reach = max(law.end / law.high for _, law in laws)
    far = Note(f"Laws are dashed beyond the largest run, here up to {reach:.3g} times (never beyond {FAR:g}): a guess.")
    return [*(Note(text, tuple(details)) for details, text in lines if details), far]


def _lawless(found: Curves) -> list[Note]:
    """The lines that have no law beside others that have one."""
    laws = fitted(found).laws
    points, _ = compute_axis(accuracy(found.points))
    without = [
        f"{measure_title(*key)}, {line_name(line)}"
        for key in laws
        for line, _ in lines_of(of_measure(points, key))
        if line not in laws[key]
    ]
    what = f"{count(len(without), 'line')} without a law"
    text = f"{what}: fewer than three computes at which nothing cheaper is as good, or errors that do not fall."
    return [Note(text, tuple(without))] if without else []


def _of_profiles(found: Curves) -> list[Note]:
    told = [
        (fact.kind, f"{measure_title(*key)}, {line_name(line)}: {fact.text} {'; '.join(fact.details)}".strip())
        for key, of_lines in fitted(found).profiles.items()
        for line, profile in of_lines.items()
        for fact in profile.facts
    ]
    of_kind = {kind: tuple(text for one, text in told if one == kind) for kind in OF_PROFILES}
    return [Note(OF_PROFILES[kind], details) for kind, details in of_kind.items() if details]


def _zeros(found: Curves) -> list[Note]:
    """Errors of exactly 0, which a logarithmic axis cannot hold."""
    points = accuracy(found.points)
    perfect = points[points["value"] >= 1]
    details = {
        f"{model}, {measure_title(*key)}"
        for key in measures(perfect)
        for model in of_measure(perfect, key)["model"].astype(str)
    }
    what = count(len(perfect), "point")
    where = "figures have them as triangles at the bottom of logarithmic axes, the chart has no place for them there"
    text = f"{what} without any error: {where}."
    return [Note(text, tuple(sorted(details)))] if len(perfect) else []
