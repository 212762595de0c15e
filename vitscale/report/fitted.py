"""What figures and the page draw as fitted: laws of error in compute at one set size, and isoFLOP profiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vitscale.analysis.checks import choose
from vitscale.analysis.curves import Curves, compute_axis
from vitscale.analysis.fits import Fit, fit
from vitscale.analysis.forms import FORMS
from vitscale.analysis.intervals import Sample, sample
from vitscale.analysis.isoflop import FEWEST_SIZES, IsoFlop, isoflop
from vitscale.analysis.measured import CLUSTER, by_run
from vitscale.analysis.profiles import Profile, agreed, profiles
from vitscale.analysis.tables import Columns, curves_of
from vitscale.errors import VitscaleError
from vitscale.report.panels import SERIES, accuracy, measures, of_measure, undominated

Measured = tuple[str, str, int | None]
Line = tuple[str, ...]

LAWS = ("power", "saturating")  # what few points can tell apart
FEWEST = 3  # places in x of a law
CHOICE = 5  # places from which on the dearest can be held out to choose a form
RESAMPLES = 200  # enough for the eye; `vitscale fit` takes more
BEYOND = 10.0  # times the largest compute: further a forecast is a guess


@dataclass(frozen=True, slots=True)
class Law:
    fit: Fit
    low: float
    high: float
    """The computes between which it was fitted."""
    drawn: Sample
    profiles: dict[str, Profile]
    """Which the intervals agree with."""

    @property
    def open(self) -> list[str]:
        """The parameters that the data do not identify."""
        return [name for name, end in self.profiles.items() if not end.identified]

    @property
    def end(self) -> float:
        """As far beyond the data as the data reach, up to `BEYOND` times."""
        return self.high * min(self.high / self.low, BEYOND)


@dataclass(frozen=True, slots=True)
class Fitted:
    laws: Mapping[Measured, Mapping[Line, Law]]
    """Of the set size whose cells differ in compute; only measures and lines that have one."""
    profiles: Mapping[Measured, Mapping[Line, IsoFlop]]
    """At `profiled_size`; only measures and lines that have one: four sizes at a compute."""


def fitted(found: Curves) -> Fitted:
    """What can be fitted; seconds, unless `found` holds it already."""
    if isinstance(found.fitted, Fitted):
        return found.fitted
    return Fitted(_laws(found), _profiles(found))


def _laws(found: Curves) -> dict[Measured, dict[Line, Law]]:
    _, examples = compute_axis(accuracy(found.points))
    if examples is None:
        return {}
    runs = accuracy(by_run(found))
    runs = runs[(runs["examples"] == examples).fillna(False)]
    laws = {
        key: {line: law for line, rows in lines_of(of_measure(runs, key)) if (law := law_of(rows)) is not None}
        for key in measures(runs)
    }
    return {key: of_lines for key, of_lines in laws.items() if of_lines}


def law_of(rows: pd.DataFrame) -> Law | None:
    """Of one line's runs in one measure: the law of error in compute, if enough places tell one that falls.

    Of several models it is that of the best: of what nothing cheaper equals.
    """
    rows = _frontier(rows)
    columns = Columns(inputs=("flops",), y="value", cluster=CLUSTER, measure="accuracy")
    if rows["flops"].nunique() < FEWEST:
        return None
    try:
        (curve,), _ = curves_of(rows, columns)
    except VitscaleError:  # equal values, or versions that are not compared: there is no law to draw
        return None
    points = curve.observations
    several = len(np.unique(points.compute)) >= CHOICE
    found = fit(choose(points, LAWS).form if several else FORMS["power"], points)
    low, high = float(points.inputs.min()), float(points.inputs.max())
    falls = found.predict(np.array([[high]]))[0] < 0.999 * found.predict(np.array([[low]]))[0]
    if not falls:
        return None
    drawn = sample(found, resamples=RESAMPLES)
    return Law(found, low, high, drawn, agreed(profiles(found), drawn))


def _frontier(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs of those configurations of a line of several models that nothing cheaper equals, by their means."""
    if rows["model"].nunique() < 2:
        return rows
    cells = rows.groupby(["flops", "model"])["value"].mean().reset_index()
    cells = cells.sort_values(["flops", "value"], ascending=[True, False])
    return rows.merge(cells.loc[undominated(cells), ["flops", "model"]])


def profiled_size(found: Curves) -> int | None:
    """The unique images of the runs whose sizes are compared: the ones that most networks were trained on."""
    points = accuracy(found.points).dropna(subset=["examples", "flops", "params"])
    sizes = points.groupby("examples")["params"].nunique()
    return None if sizes.empty else int(sizes[sizes == sizes.max()].index.max())


def _profiles(found: Curves) -> dict[Measured, dict[Line, IsoFlop]]:
    runs, examples = accuracy(by_run(found)).dropna(subset=["params"]), profiled_size(found)
    runs = runs[runs["examples"].isna() if examples is None else (runs["examples"] == examples).fillna(False)]
    of_measures = {
        key: {line: one for line, rows in lines_of(of_measure(runs, key)) if (one := _profile(rows)) is not None}
        for key in measures(runs)
    }
    return {key: of_lines for key, of_lines in of_measures.items() if of_lines}


def _profile(rows: pd.DataFrame) -> IsoFlop | None:
    if rows["params"].nunique() < FEWEST_SIZES:
        return None
    columns = Columns(inputs=("flops", "params"), y="value", cluster=CLUSTER, measure="accuracy")
    try:
        (curve,), _ = curves_of(rows.dropna(subset=["flops"]), columns)
    except VitscaleError:
        return None
    found = isoflop(curve.observations, resamples=RESAMPLES)
    return found if found.budgets else None


def lines_of(rows: pd.DataFrame) -> Iterator[tuple[Line, pd.DataFrame]]:
    for line, group in rows.assign(variant=rows["variant"].fillna("")).groupby(SERIES, sort=True):
        yield tuple(map(str, line)), group
