"""How a budget of compute is best split between model and data, where the law is E + A/N^alpha + B/D^beta.

Approach 3 of Hoffmann et al., arXiv 2203.15556, section 3.3; what a run costs may be as measured, k N^g D.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vitscale.analysis.facts import FAR, Fact
from vitscale.analysis.intervals import LEVEL, Interval, Sample

LOOSE = 0.1  # of a logarithm: FLOPs that miss by more are no function of N and D
DECIDES = ("A", "B", "alpha", "beta")  # parameters that the split hangs on


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs of a run: k N^g D."""

    k: float
    g: float
    miss: float
    """Standard deviation of the logarithm; 0 where the rule was not fitted."""

    @property
    def rule(self) -> str:
        return f"{self.k:.4g} N{'' if self.g == 1 else f'^{self.g:.3f}'} D"

    def of(self, inputs: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, " points"]:
        return self.k * inputs[:, 0] ** self.g * inputs[:, 1]


SIX = Cost(6.0, 1.0, 0.0)  # of a dense network: 2 N forward and 4 N backward for each token or patch


@dataclass(frozen=True, slots=True)
class Split:
    """The best N and D of one budget. No interval: too few points are independent."""

    budget: float
    n: float
    d: float
    value: float
    intervals: tuple[Interval, Interval, Interval] | None
    """Of n, d and the law's value there."""


@dataclass(frozen=True, slots=True)
class Optimum:
    cost: Cost
    exponent: float
    """a of N = const C^a."""
    interval: Interval | None
    splits: tuple[Split, ...]
    facts: tuple[Fact, ...]


def measured_cost(inputs: Float[np.ndarray, "points 2"], flops: Float[np.ndarray, " points"]) -> Cost | None:
    """The rule that the runs' own FLOPs follow, by least squares of logarithms; None where N does not vary."""
    known = np.isfinite(flops) & (flops > 0)
    if len(np.unique(inputs[known, 0])) < 2:
        return None
    log_n, per_example = np.log(inputs[known, 0]), np.log(flops[known] / inputs[known, 1])
    g, log_k = np.polyfit(log_n, per_example, 1)
    miss = per_example - g * log_n - log_k
    return Cost(float(np.exp(log_k)), float(g), float(np.sqrt((miss**2).mean())))


def optimum(drawn: Sample, budgets: Float[np.ndarray, " budgets"], cost: Cost) -> Optimum:
    """Of each budget the split that the law of `drawn`, a parametric one, is lowest at."""
    best = _parameters(drawn, drawn.fit.theta[None])
    sizes = _sizes(best, budgets, cost)
    columns = sizes[0], _data(sizes, budgets, cost)[0], _value(best, sizes, budgets, cost)[0]
    intervals = [None] * len(budgets) if drawn.method == "none" else _intervals(drawn, columns, budgets, cost)
    splits = [
        Split(c, n, d, value, interval)
        for c, n, d, value, interval in zip(budgets.tolist(), *map(np.ndarray.tolist, columns), intervals, strict=True)
    ]
    spread = None
    if drawn.method != "none":
        exponents = _exponent(_parameters(drawn, drawn.theta), cost)
        spread = _interval(drawn.widened(exponents, float(_exponent(best, cost)[0]), logged=True))
    return Optimum(cost, float(_exponent(best, cost)[0]), spread, tuple(splits), tuple(_facts(drawn, budgets, cost)))


def _parameters(drawn: Sample, theta: np.ndarray) -> dict[str, np.ndarray]:
    values = drawn.fit.form.natural(theta, drawn.fit.log_x0)
    return dict(zip(drawn.fit.form.parameters, values.T, strict=True))


def _exponent(of: dict[str, np.ndarray], cost: Cost) -> Float[np.ndarray, " B"]:
    with np.errstate(invalid="ignore"):
        return of["beta"] / (of["alpha"] + cost.g * of["beta"])


def _sizes(of: dict[str, np.ndarray], budgets: np.ndarray, cost: Cost) -> Float[np.ndarray, "B budgets"]:
    """Where the slopes of both terms over log N cancel, D being what the budget leaves."""
    alpha, beta = of["alpha"][:, None], of["beta"][:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        balance = np.log(alpha * of["A"][:, None]) - np.log(cost.g * beta * of["B"][:, None])
        return np.exp((balance + beta * np.log(budgets / cost.k)) / (alpha + cost.g * beta))


def _data(n: np.ndarray, budgets: np.ndarray, cost: Cost) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return budgets / (cost.k * n**cost.g)


def _value(of: dict[str, np.ndarray], n: np.ndarray, budgets: np.ndarray, cost: Cost) -> np.ndarray:
    e, a, b, alpha, beta = (of[name][:, None] for name in ("E", "A", "B", "alpha", "beta"))
    with np.errstate(divide="ignore", invalid="ignore"):
        return e + a * n**-alpha + b * _data(n, budgets, cost) ** -beta


def _intervals(
    drawn: Sample, best: tuple[np.ndarray, np.ndarray, np.ndarray], budgets: np.ndarray, cost: Cost
) -> list[tuple[Interval, Interval, Interval] | None]:
    of = _parameters(drawn, drawn.theta)
    sizes = _sizes(of, budgets, cost)
    values = sizes, _data(sizes, budgets, cost), _value(of, sizes, budgets, cost)
    three = [drawn.widened(each, at_best, logged=True) for each, at_best in zip(values, best, strict=True)]
    found = []
    for column in range(len(budgets)):
        n, d, value = (_interval(each[:, column]) for each in three)
        found.append(None if n is None or d is None or value is None else (n, d, value))
    return found


def _interval(values: np.ndarray) -> Interval | None:
    """Infinite at an end where resamples have no best size: one of the terms is 0 in them."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return Interval(float(low), float(high))


def _facts(drawn: Sample, budgets: np.ndarray, cost: Cost) -> list[Fact]:
    source = f"as the runs' own FLOPs say, within {cost.miss:.1%}" if cost.miss else "by the usual rule"
    found = [Fact("cost", f"A run is taken to cost {cost.rule} FLOPs, {source}.")]
    if cost.miss > LOOSE:
        found.append(
            Fact("loose_cost", "The runs' FLOPs do not follow from N and D: the split of a budget is a guess.")
        )
    largest = float(cost.of(drawn.fit.observations.inputs).max())
    if len(budgets) and budgets.max() > FAR * largest:
        text = f"A budget {budgets.max() / largest:,.0f} times beyond the largest run: further than {FAR:g} is a guess."
        found.append(Fact("extrapolation", text))
    return found
