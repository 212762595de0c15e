"""What a fit depends on: the loss function, its outliers, the range, and whether it foresees the dearest points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vitscale.analysis.fits import Fit, Observations, fit
from vitscale.analysis.forms import FORMS, Form
from vitscale.analysis.residuals import LogLoss

OUTLIERS = 0.05  # of the points, and at least one
TAIL = 0.2  # of the distinct computes that are held out, or left out at the cheap end

SAME = 1e-3  # of a miss: less is no gain
ROUNDING = 1e-9  # misses of points that lie on the curve
AUTO = ("power", "saturating", "zhai", "m4", "broken")


@dataclass(frozen=True, slots=True)
class Variant:
    """The same form fitted another way. `points`: how many it used."""

    name: str
    fit: Fit
    points: int


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How a fit to the cheaper points foresees the dearest."""

    fit: Fit
    points: int
    above: float
    """The largest compute that was fitted."""
    misses: Float[np.ndarray, " points"]
    """Absolute residuals of the held-out points, in the loss's own unit: what forms are chosen by."""
    error: float
    """Mean absolute miss: of losses relative, of errors in their own unit."""
    relative: bool

    @property
    def missed(self) -> str:
        error = self.error if self.error > ROUNDING else 0.0
        return f"{100 * error:.3g} {'%' if self.relative else 'points'}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What `auto` compared: the forms from best to worst on the held-out points, and those that have too few points."""

    form: Form
    ranking: tuple[tuple[str, HeldOut], ...]
    too_few: tuple[str, ...]

    @property
    def margin(self) -> str:
        """By how much the chosen form won, or why it was chosen all the same."""
        if not self.ranking:
            return "no form has points enough to hold some out"
        chosen = dict(self.ranking)[self.form.name]
        if len(self.ranking) == 1:
            return "the only form with points enough"
        first, held = self.ranking[0]
        if first != self.form.name:
            return f"misses by {chosen.missed}; {first} by {held.missed}, no clear gain for its further parameters"
        second, held = self.ranking[1]
        return f"misses by {chosen.missed}; next is {second} by {held.missed}"


def variants(found: Fit) -> list[Variant]:
    """Huber and least squares, and Huber without outliers and without the cheapest points, where enough are left."""
    form, points = found.form, found.observations
    squares = fit(form, points, least_squares=True)
    result = [Variant("Huber", found, len(points)), Variant("least squares", squares, len(points))]
    for name, kept in (("without outliers", _without_outliers(found)), ("without the cheapest", _dear(points))):
        if _enough(form, points.only(kept)):
            result.append(Variant(f"{name} ({int((~kept).sum())})", fit(form, points.only(kept)), int(kept.sum())))
    return result


def held_out(form: Form, points: Observations) -> HeldOut | None:
    """The dearest fifth of the distinct computes, foreseen from the rest; None if the rest has too few points."""
    computes = np.unique(points.compute)
    count = math.ceil(TAIL * len(computes))
    if count >= len(computes):
        return None
    above = float(computes[-count - 1])
    kept = points.compute <= above
    if not _enough(form, points.only(kept)):
        return None
    found = fit(form, points.only(kept))
    rest = points.only(~kept)
    foreseen = found.predict(rest.inputs)
    misses = np.abs(rest.residuals.alone(foreseen[None])[0])
    relative = isinstance(rest.residuals, LogLoss)
    error = float(np.mean(np.abs(foreseen - rest.y) / (rest.y if relative else 1.0)))
    return HeldOut(found, len(rest), above, misses, error, relative)


def choose(points: Observations, names: Sequence[str] = AUTO) -> Choice:
    """The form that foresees the held-out points best.

    A form with fewer parameters stands as long as the better one's gain is within its standard error over the points.
    """
    judged, too_few = [], []
    for name in names:
        result = held_out(FORMS[name], points)
        if result is None or not np.isfinite(result.misses).all():
            too_few.append(name)
        else:
            judged.append((name, result))
    if not judged:
        return Choice(FORMS[names[0]], (), tuple(too_few))
    ranking = sorted(judged, key=lambda pair: max(float(pair[1].misses.mean()), ROUNDING))  # equals: simpler first
    best = ranking[0]
    simpler = [pair for pair in judged if len(FORMS[pair[0]].parameters) < len(FORMS[best[0]].parameters)]
    equal = [pair for pair in simpler if _no_clear_gain(pair[1], best[1])]
    chosen = min(equal, key=lambda pair: len(FORMS[pair[0]].parameters)) if equal else best
    return Choice(FORMS[chosen[0]], tuple(ranking), tuple(too_few))


def _without_outliers(found: Fit) -> np.ndarray:
    size = np.abs(found.r)
    count = max(1, round(OUTLIERS * len(size)))
    kept = np.ones(len(size), dtype=bool)
    kept[np.argsort(size)[-count:]] = False
    return kept


def _dear(points: Observations) -> np.ndarray:
    computes = np.unique(points.compute)
    return points.compute >= computes[min(max(1, round(TAIL * len(computes))), len(computes) - 1)]


def _enough(form: Form, points: Observations) -> bool:
    """More distinct points than parameters, and more than one value of every input."""
    distinct = np.unique(points.inputs, axis=0)
    several = all(len(np.unique(column)) > 1 for column in points.inputs.T)
    return several and len(distinct) > len(form.parameters)


def _no_clear_gain(simple: HeldOut, best: HeldOut) -> bool:
    gain = simple.misses - best.misses
    if len(gain) < 2:  # no standard error to be had from one
        return float(simple.misses[0]) <= 2 * float(best.misses[0]) + ROUNDING
    equal = ROUNDING + SAME * float(best.misses.mean())
    return float(gain.mean()) <= float(gain.std(ddof=1)) / math.sqrt(len(gain)) + equal
