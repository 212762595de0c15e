"""The laws that are fitted: each a sum of non-negative coefficients times curves, or M4, which is implicit.

A form works in scaled logarithms, z = log(x / x0) with x0 the geometric mean of the fitted x: coefficients are then
of the size of y, whatever the unit of x. `Form.natural` has them in the units of the equation.
`B` is a batch of parameter vectors throughout: starts of a search or resamples of a bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy.special import expit, log_expit

Theta = Float[np.ndarray, "B parameters"]
Inputs = Float[np.ndarray, "points inputs"]
Curve = Float[np.ndarray, "B points"]
Gradient = Float[np.ndarray, "B points parameters"]


@dataclass(frozen=True, slots=True)
class Span:
    """Where a non-linear parameter may lie, in scaled units, and the values a search begins at."""

    lower: float
    upper: float
    grid: tuple[float, ...]


# One curve for each coefficient, and the derivatives that are not zero: (curve, non-linear parameter, derivative).
Basis = tuple[Float[np.ndarray, "B points linear"], list[tuple[int, int, Curve]]]


@dataclass(frozen=True, slots=True)
class Form:
    name: str
    equation: str
    source: str
    inputs: tuple[str, ...]
    linear: tuple[str, ...]
    """Coefficients; each is 0 or more."""
    nonlinear: tuple[str, ...]
    logged: tuple[str, ...]
    """Parameters whose logarithm is what varies evenly: intervals that hold jointly are of that."""
    spans: Callable[[Inputs, Float[np.ndarray, " points"], float], tuple[Span, ...]]
    """Of the non-linear parameters, given scaled logarithms of the inputs, y, and the highest that y could be."""
    basis: Callable[[Theta, Inputs], Basis]
    moved: Callable[[Theta, Float[np.ndarray, " inputs"]], Theta]
    """The same curve with x0 = 1, given the logarithms of x0."""
    exponents: Mapping[str, str] = field(default_factory=dict)
    """Of each coefficient the exponent of x that its unit comes from."""
    logs: tuple[str, ...] = ()
    """Parameters that theta holds as their logarithms."""
    places: tuple[str, ...] = ()
    """Parameters that are values of x."""

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.linear + self.nonlinear

    def natural(self, theta: Theta, log_x0: Float[np.ndarray, " inputs"]) -> Theta:
        """Parameters in the units of the equation."""
        result = self.moved(theta, log_x0)
        for name in self.logs:
            place = self.parameters.index(name)
            with np.errstate(over="ignore"):
                result[:, place] = np.exp(result[:, place])
        return result

    def value(self, theta: Theta, z: Inputs) -> Curve:
        curves, _ = self.basis(theta[:, len(self.linear) :], z)
        return np.einsum("bnl,bl->bn", curves, theta[:, : len(self.linear)])

    def value_and_jacobian(self, theta: Theta, z: Inputs) -> tuple[Curve, Gradient]:
        linear = len(self.linear)
        curves, slopes = self.basis(theta[:, linear:], z)
        jacobian = np.zeros((*curves.shape[:2], len(self.parameters)))
        jacobian[..., :linear] = curves
        for curve, parameter, slope in slopes:
            jacobian[..., linear + parameter] += theta[:, curve, None] * slope
        return np.einsum("bnl,bl->bn", curves, theta[:, :linear]), jacobian

    def bounds(self, z: Inputs, y: Float[np.ndarray, " points"], highest: float) -> tuple[np.ndarray, np.ndarray]:
        spans = self.spans(z, y, highest)
        lower = [0.0] * len(self.linear) + [span.lower for span in spans]
        upper = [np.inf] * len(self.linear) + [span.upper for span in spans]
        return np.array(lower), np.array(upper)


@dataclass(frozen=True, slots=True, kw_only=True)
class Implicit(Form):
    """A form without linear part: `solve` gives the curve and its Jacobian."""

    solve: Callable[[Theta, Inputs], tuple[Curve, Gradient]]

    def value(self, theta: Theta, z: Inputs) -> Curve:
        return self.solve(theta, z)[0]

    def value_and_jacobian(self, theta: Theta, z: Inputs) -> tuple[Curve, Gradient]:
        return self.solve(theta, z)


FAR_ABOVE = 100.0  # times the highest y: losses have no highest value of their own
EXPONENTS = tuple(np.geomspace(0.02, 4.0, 24).tolist())
EXPONENT = Span(0.0, 20.0, EXPONENTS)


def _decay(rate: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """exp(-rate z) and its derivative with respect to the rate."""
    curve = np.exp(np.clip(-rate[:, None] * z, -700, 700))
    return curve, -z * curve


def _power(theta: Theta, z: Inputs) -> Basis:
    curve, slope = _decay(theta[:, 0], z[:, 0])
    return curve[..., None], [(0, 0, slope)]


def _saturating(theta: Theta, z: Inputs) -> Basis:
    curve, slope = _decay(theta[:, 0], z[:, 0])
    return np.stack([np.ones_like(curve), curve], -1), [(1, 0, slope)]


def _zhai(theta: Theta, z: Inputs) -> Basis:
    rate, shift = theta[:, 0], theta[:, 1]
    moved = np.exp(z[:, 0]) + shift[:, None]
    logs = np.log(moved)
    curve = np.exp(np.clip(-rate[:, None] * logs, -700, 700))
    slopes = [(1, 0, -logs * curve), (1, 1, -rate[:, None] / moved * curve)]
    return np.stack([np.ones_like(curve), curve], -1), slopes


def _broken(theta: Theta, z: Inputs) -> Basis:
    before, change, at, width = (theta[:, i, None] for i in range(4))
    w = (z[:, 0] - at) / width
    soft = -log_expit(-w)  # log(1 + exp(w))
    curve = np.exp(np.clip(-before * z[:, 0] - change * width * soft, -700, 700))
    past = expit(w)
    slopes = [-z[:, 0], -width * soft, change * past, -change * (soft - w * past)]
    return np.stack([np.ones_like(curve), curve], -1), [(1, i, slope * curve) for i, slope in enumerate(slopes)]


def _parametric(theta: Theta, z: Inputs) -> Basis:
    of_n, slope_n = _decay(theta[:, 0], z[:, 0])
    of_d, slope_d = _decay(theta[:, 1], z[:, 1])
    return np.stack([np.ones_like(of_n), of_n, of_d], -1), [(1, 0, slope_n), (2, 1, slope_d)]


def _parabola(theta: Theta, z: Inputs) -> Basis:
    away = z[:, 0] - theta[:, 0, None]
    return np.stack([np.ones_like(away), away**2], -1), [(1, 0, -2 * away)]


def _m4(theta: Theta, z: Inputs) -> tuple[Curve, Gradient]:
    """(y - floor) / (start - y)^alpha = beta exp(-c z), solved for y by Newton's method in the logit of y's place.

    With u the share of the way from floor to start and v its logit, log u - alpha log(1 - u) rises in v from slope 1
    to slope alpha, so Newton's steps do not pass the solution after the first.
    """
    floor, start, alpha, log_beta, rate = (theta[:, i, None] for i in range(5))
    reach = start - floor
    target = log_beta - rate * z[:, 0] - (1 - alpha) * np.log(reach)
    v = np.where(target < 0, target, target / alpha)
    for _ in range(60):
        u, rest, log_u, log_rest = _logistic(v)
        step = (target - log_u + alpha * log_rest) / (rest + alpha * u)
        v = v + step
        if np.abs(step).max(initial=0.0) < 1e-13:
            break
    u, rest, _, log_rest = _logistic(v)
    swing = u * rest / (rest + alpha * u)  # du / dtarget
    slopes = [
        rest + swing * (1 - alpha),
        u - swing * (1 - alpha),
        reach * swing * (log_rest + np.log(reach)),
        reach * swing,
        -reach * swing * z[:, 0],
    ]
    return floor + reach * u, np.stack(slopes, -1)


def _logistic(v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """expit of v and of -v, and their logarithms, from one exponential and one logarithm."""
    small = np.exp(-np.abs(v))
    large = 1 / (1 + small)
    log_large = -np.log1p(small)
    up = v >= 0
    log_small = log_large - np.abs(v)
    return (
        np.where(up, large, small * large),
        np.where(up, small * large, large),
        np.where(up, log_large, log_small),
        np.where(up, log_small, log_large),
    )


def _m4_spans(_z: Inputs, y: np.ndarray, highest: float) -> tuple[Span, ...]:
    low, high = float(y.min()), float(y.max())
    ceiling = min(highest, FAR_ABOVE * high)
    middle = float(np.clip(np.median(y), 1e-6 * ceiling, 0.99 * ceiling))
    floors = (0.0, 0.5 * low, 0.9 * low)
    starts = tuple(
        sorted(
            {
                min(start, ceiling)
                for start in (1.01 * high, 1.2 * high, 2 * high, highest if highest < np.inf else 6 * high)
            }
        )
    )
    return (
        Span(0.0, 0.999 * middle, floors),
        Span(1.001 * middle, ceiling * (1 + 1e-9), starts),
        Span(0.01, 5.0, (0.1, 0.5, 1.0)),
        Span(-30.0, 30.0, ()),  # a search takes the value that meets the middle of the data
        Span(0.0, 20.0, (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)),
    )


def _broken_spans(z: Inputs, _y: np.ndarray, _highest: float) -> tuple[Span, ...]:
    low, high = float(z.min()), float(z.max())
    breaks = tuple(np.linspace(low, high, 9)[1:-1].tolist())
    return (
        Span(0.0, 10.0, (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)),
        Span(-10.0, 10.0, (-0.8, -0.3, -0.1, 0.1, 0.3, 0.8)),
        Span(low, high, breaks),
        Span(0.02, 10.0, (0.1, 0.3, 1.0)),
    )


def _parabola_spans(z: Inputs, _y: np.ndarray, _highest: float) -> tuple[Span, ...]:
    low, high = float(z.min()), float(z.max())
    reach = high - low
    return (Span(low - 2 * reach, high + 2 * reach, tuple(np.linspace(low - reach, high + reach, 61).tolist())),)


def _exponent(_z: Inputs, _y: np.ndarray, _highest: float) -> tuple[Span, ...]:
    return (EXPONENT,)


def _exponent_and_shift(_z: Inputs, _y: np.ndarray, _highest: float) -> tuple[Span, ...]:
    return EXPONENT, Span(0.0, 1e4, (0.0, *np.geomspace(1e-3, 1e2, 16).tolist()))


def _two_exponents(_z: Inputs, _y: np.ndarray, _highest: float) -> tuple[Span, ...]:
    return EXPONENT, EXPONENT


def _raised(coefficient: np.ndarray, power: np.ndarray) -> np.ndarray:
    """coefficient exp(power), infinite where that is too large for a number; 0 stays 0."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.exp(np.log(coefficient) + power)


def _moved_power(theta: Theta, log_x0: np.ndarray) -> Theta:
    result = theta.copy()
    result[:, 0] = _raised(theta[:, 0], theta[:, 1] * log_x0[0])
    return result


def _moved_second(theta: Theta, log_x0: np.ndarray) -> Theta:
    result = theta.copy()
    result[:, 1] = _raised(theta[:, 1], theta[:, 2] * log_x0[0])
    return result


def _moved_parametric(theta: Theta, log_x0: np.ndarray) -> Theta:
    result = theta.copy()
    result[:, 1:3] = _raised(theta[:, 1:3], theta[:, 3:5] * log_x0)
    return result


def _moved_zhai(theta: Theta, log_x0: np.ndarray) -> Theta:
    result = _moved_second(theta, log_x0)
    result[:, 3] *= np.exp(log_x0[0])
    return result


def _moved_broken(theta: Theta, log_x0: np.ndarray) -> Theta:
    result = _moved_second(theta, log_x0)
    result[:, 4] += log_x0[0]
    return result


def _moved_m4(theta: Theta, log_x0: np.ndarray) -> Theta:
    result = theta.copy()
    result[:, 3] += theta[:, 4] * log_x0[0]
    return result


def _moved_parabola(theta: Theta, log_x0: np.ndarray) -> Theta:
    result = theta.copy()
    result[:, 2] += log_x0[0]
    return result


def _no_basis(_theta: Theta, _z: Inputs) -> Basis:
    raise TypeError("an implicit form has no linear part")


FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Form(
            name="power",
            equation="y = b x^-c",
            source="Hestness et al., arXiv 1712.00409",
            inputs=("x",),
            linear=("b",),
            nonlinear=("c",),
            logged=("b",),
            exponents={"b": "c"},
            spans=_exponent,
            basis=_power,
            moved=_moved_power,
        ),
        Form(
            name="saturating",
            equation="y = a + b x^-c",
            source="Hestness et al., arXiv 1712.00409; M2 of Alabdulmohsin et al., arXiv 2209.06640",
            inputs=("x",),
            linear=("a", "b"),
            nonlinear=("c",),
            logged=("b",),
            exponents={"b": "c"},
            spans=_exponent,
            basis=_saturating,
            moved=_moved_second,
        ),
        Form(
            name="zhai",
            equation="y = a + b (x + d)^-c",
            source="Zhai et al., arXiv 2106.04560",
            inputs=("x",),
            linear=("a", "b"),
            nonlinear=("c", "d"),
            logged=("b",),
            exponents={"b": "c"},
            spans=_exponent_and_shift,
            basis=_zhai,
            moved=_moved_zhai,
            places=("d",),
        ),
        Implicit(
            name="m4",
            equation="(y - floor) / (start - y)^alpha = beta x^-c",
            source="Alabdulmohsin et al., arXiv 2209.06640",
            inputs=("x",),
            linear=(),
            nonlinear=("floor", "start", "alpha", "beta", "c"),
            logged=("beta",),
            exponents={"beta": "c"},
            spans=_m4_spans,
            basis=_no_basis,
            moved=_moved_m4,
            logs=("beta",),
            solve=_m4,
        ),
        Form(
            name="broken",
            equation="y = a + b x^-c0 (1 + (x/d)^(1/f))^(-c1 f)",
            source="Caballero et al., arXiv 2210.14891, with one break",
            inputs=("x",),
            linear=("a", "b"),
            nonlinear=("c0", "c1", "d", "f"),
            logged=("b", "d"),
            exponents={"b": "c0"},
            spans=_broken_spans,
            basis=_broken,
            moved=_moved_broken,
            logs=("d",),
            places=("d",),
        ),
        Form(
            name="parametric",
            equation="y = E + A/N^alpha + B/D^beta",
            source="Hoffmann et al., arXiv 2203.15556, equation 2",
            inputs=("n", "d"),
            linear=("E", "A", "B"),
            nonlinear=("alpha", "beta"),
            logged=("A", "B"),
            exponents={"A": "alpha", "B": "beta"},
            spans=_two_exponents,
            basis=_parametric,
            moved=_moved_parametric,
        ),
        Form(
            name="parabola",
            equation="y = m + h (log x - log p)^2",
            source="isoFLOP profiles of Hoffmann et al., arXiv 2203.15556, section 3.2",
            inputs=("x",),
            linear=("m", "h"),
            nonlinear=("p",),
            logged=("p",),
            spans=_parabola_spans,
            basis=_parabola,
            moved=_moved_parabola,
            logs=("p",),
            places=("p",),
        ),
    )
}
