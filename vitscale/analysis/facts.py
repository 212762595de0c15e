"""What to know before believing a fit, as data: the command prints it, and a report can show it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vitscale.analysis.fits import Fit
from vitscale.analysis.residuals import EXACT, scale
from vitscale.wording import count

FEW_POINTS = 4
FAR = 10.0  # times the largest compute
ROUNDING = 1e-9  # of a ratio: ten times a compute, divided by it, may be a little more
OUTLYING = 3.0  # times the residuals' scale
MANY_OUTLYING = 0.2  # of the points


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing to know before believing the curve. `kind` is a word that programs can look for."""

    kind: str
    text: str
    details: tuple[str, ...] = ()


def of_fit(found: Fit, at: Float[np.ndarray, "points inputs"]) -> list[Fact]:
    """What the points and the forecasts alone give cause for."""
    return [
        *_few_points(found),
        *_exact(found),
        *_rising(found),
        *_outlying(found),
        *far(found, at),
        *_unfinished(found),
    ]


def outlying(found: Fit) -> np.ndarray:
    """Which points lie further off than `OUTLYING` times the scale of the residuals."""
    spread = scale(found.r, len(found.theta))
    return np.abs(found.r) > OUTLYING * spread if spread > EXACT else np.zeros(len(found.r), dtype=bool)


def _few_points(found: Fit) -> list[Fact]:
    distinct = found.observations.place_count
    if distinct >= FEW_POINTS:
        return []
    return [Fact("few_points", f"Only {count(distinct, 'distinct point')}; a curve through so few says little.")]


def _exact(found: Fit) -> list[Fact]:
    distinct, parameters = found.observations.place_count, len(found.theta)
    if distinct > parameters:
        return []
    return [
        Fact(
            "no_freedom",
            f"{parameters} parameters and {distinct} distinct points: the curve cannot miss, and proves nothing.",
        )
    ]


def _rising(found: Fit) -> list[Fact]:
    """Only of x: of N and D one may rise while the other falls."""
    logs, y = np.log(found.observations.inputs), found.observations.y
    if logs.shape[1] > 1 or found.form.name == "parabola":
        return []
    slope = float((logs[:, 0] - logs.mean()) @ (y - y.mean()))
    text = "What is fitted rises with x on the whole, and a law here can only fall: is y what you take it for?"
    return [Fact("rising", text)] if slope > 0 else []


def _outlying(found: Fit) -> list[Fact]:
    far = outlying(found)
    if not far.any():
        return []
    inputs, y = found.observations.inputs[far], found.observations.y[far]
    details = tuple(f"{', '.join(f'{v:.4g}' for v in x)}: {value:.4g}" for x, value in zip(inputs, y, strict=True))
    text = f"{count(int(far.sum()), 'point')} further off than {OUTLYING:g} times the usual miss."
    if far.sum() > max(1, MANY_OUTLYING * len(far)):
        whole = f"{far.sum():,} of {count(len(far), 'point')} lie further off than {OUTLYING:g} times the usual miss"
        text = f"{whole}: the law follows the others, and does not describe these."
    return [Fact("outliers", text, details)]


def far(found: Fit, at: Float[np.ndarray, "points inputs"]) -> list[Fact]:
    """Forecasts further than `FAR` times outside of what was measured, and errors that no run can have."""
    if not len(at):
        return []
    told = beyond(found.observations.compute, at.prod(1))
    highest, value = found.observations.residuals.highest, float(found.predict(at).max())
    if value > highest:
        text = f"The law passes {highest:g} at a forecast ({value:.4g}), and no error can: it does not hold there."
        told.append(Fact("impossible", text))
    return told


def beyond(computes: np.ndarray, asked: np.ndarray, of: str = "measured point") -> list[Fact]:
    """Forecasts further than `FAR` times outside of these computes; `of`: what each of them is."""
    if not len(asked):
        return []
    with np.errstate(over="ignore"):
        above, below = asked.max() / computes.max(), computes.min() / asked.min()
    return [
        Fact(
            "extrapolation",
            f"A forecast {_times(ratio)} times {where} {of}: further than {FAR:g} times is a guess.",
        )
        for ratio, where in ((above, "beyond the largest"), (below, "below the smallest"))
        if ratio > FAR * (1 + ROUNDING)
    ]


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio < 1e6 else f"{ratio:.1e}" if ratio < np.inf else "more than 1e308"


def _unfinished(found: Fit) -> list[Fact]:
    return [] if found.converged else [Fact("not_converged", "The fit did not settle within its steps.")]
