"""One curve, all that is to be said about it: the fit, its intervals, its checks, its forecasts and its doubts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from vitscale.analysis import facts
from vitscale.analysis.checks import Choice, HeldOut, Variant, choose, held_out, variants
from vitscale.analysis.facts import Fact
from vitscale.analysis.fits import Fit, Observations, fit
from vitscale.analysis.forms import FORMS
from vitscale.analysis.frontier import envelope, envelope_sample, optimism
from vitscale.analysis.intervals import LEVEL, Interval, Sample, fewest_clusters, sample
from vitscale.analysis.profiles import Profile, agreed, profiles
from vitscale.analysis.tables import SURPASSED, Curve
from vitscale.wording import count


@dataclass(frozen=True, slots=True)
class Forecast:
    inputs: tuple[float, ...]
    value: float
    law: Interval | None
    """Of the law; None where too few points are independent."""
    run: Interval | None
    """Of one more run."""


@dataclass(frozen=True, slots=True)
class Place:
    """The points at one place: the mean over their clusters, with a t-interval where there are several."""

    inputs: tuple[float, ...]
    mean: float
    n: int
    """Independent ones: points of one cluster count once."""
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Assessed:
    curve: Curve
    fit: Fit
    choice: Choice | None
    """What `auto` compared; None where the form was given."""
    variants: tuple[Variant, ...]
    held_out: HeldOut | None
    sample: Sample
    profiles: dict[str, Profile]
    places: tuple[Place, ...]
    forecasts: tuple[Forecast, ...]
    facts: tuple[Fact, ...]


def assess(
    curve: Curve,
    form: str,
    at: Float[np.ndarray, "points inputs"],
    *,
    resamples: int,
    seed: int = 0,
    of_envelope: bool = False,
) -> Assessed:
    """`form`: a name in FORMS, or auto. `of_envelope`: of the lower envelope of the curve's points."""
    points = curve.observations
    if of_envelope:
        points = points.only(envelope(points)[0])
    choice = choose(points) if form == "auto" else None
    found = fit(choice.form if choice else FORMS[form], points)
    drawn = envelope_sample(found, curve.observations, resamples=resamples, seed=seed) if of_envelope else None
    drawn = drawn or sample(found, resamples=resamples, seed=seed)
    ends = agreed(profiles(found), drawn)
    chosen = dict(choice.ranking).get(choice.form.name) if choice else None
    return Assessed(
        curve=curve,
        fit=found,
        choice=choice,
        variants=tuple(variants(found)),
        held_out=chosen or held_out(found.form, points),
        sample=drawn,
        profiles=ends,
        places=places(points),
        forecasts=_forecasts(found, drawn, at),
        facts=(
            *(fact for fact in curve.facts if not (of_envelope and fact.kind == SURPASSED)),
            *([optimism(curve.observations)] if of_envelope else []),
            *facts.of_fit(found, at),
            *_unsure(found, drawn, ends),
        ),
    )


def places(points: Observations) -> tuple[Place, ...]:
    distinct, which = np.unique(points.inputs, axis=0, return_inverse=True)
    highest = points.residuals.highest
    return tuple(
        _place(at, points.y[here], points.clusters[here], highest)
        for at, here in ((at, which.ravel() == i) for i, at in enumerate(distinct))
    )


def _place(at: np.ndarray, y: np.ndarray, clusters: np.ndarray, highest: float) -> Place:
    _, cluster, count = np.unique(clusters, return_inverse=True, return_counts=True)
    means = np.bincount(cluster, y) / count
    mean, interval = float(means.mean()), None
    if len(means) > 1:
        reach = float(stdtrit(len(means) - 1, (1 + LEVEL) / 2) * means.std(ddof=1) / np.sqrt(len(means)))
        interval = Interval(max(mean - reach, 0.0), min(mean + reach, highest))
    return Place(tuple(at.tolist()), mean, len(means), interval)


def _forecasts(found: Fit, drawn: Sample, at: np.ndarray) -> tuple[Forecast, ...]:
    if not len(at):
        return ()
    values, intervals = found.predict(at).tolist(), drawn.predictions(at)
    laws, runs = intervals if intervals else ([None] * len(at), [None] * len(at))
    return tuple(Forecast(tuple(x), *rest) for x, *rest in zip(at.tolist(), values, laws, runs, strict=True))


def _unsure(found: Fit, drawn: Sample, ends: dict[str, Profile]) -> list[Fact]:
    result = []
    clusters = found.observations.cluster_count
    if drawn.method != "bootstrap":
        instead = (
            f"a t-interval with {count(drawn.freedom, 'degree')} of freedom" if drawn.method == "t" else "no interval"
        )
        needed = fewest_clusters(len(found.theta))
        text = f"{count(clusters, 'independent run')}, and a bootstrap needs {needed}: {instead}."
        if found.observations.place_count <= len(found.theta) < clusters:
            text = "A law that cannot miss its points has no interval."
        result.append(Fact("no_bootstrap", text))
    open_ends = [name for name, end in ends.items() if not end.identified]
    if open_ends:
        details = tuple(f"{name}: {range_of(ends[name])}" for name in open_ends)
        result.append(Fact("not_identified", "The data do not identify " + ", ".join(open_ends) + ".", details))
    if drawn.method != "none" and (joint := drawn.joint()):
        pairs = [(one, other, by) for one, other, by in joint.trade_offs() if _both(ends, one, other)]
        if pairs:
            details = tuple(f"{one} and {other}: correlation {by:.3f}" for one, other, by in pairs)
            text = (
                "Parameters that trade off against each other: read their intervals together (--json has the region)."
            )
            result.append(Fact("trade_off", text, details))
    return result


def _both(ends: dict[str, Profile], *names: str) -> bool:
    return all(ends[name.removeprefix("log ")].identified for name in names)


def range_of(end: Profile) -> str:
    """The values that fit as well as the best."""
    low, high = end.low, None if end.high == math.inf else end.high  # beyond any number is no end
    if low is None and high is None:
        return "any value fits as well"
    if low is None:
        return f"anything up to {high:.4g} fits as well"
    return f"anything from {low:.4g} fits as well" if high is None else f"{low:.4g} to {high:.4g}"
