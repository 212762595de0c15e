"""What `vitscale fit --form parametric` answers about a budget: the best size of the model and of its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vitscale.analysis.assess import Assessed
from vitscale.analysis.optimum import DECIDES, SIX, Optimum, measured_cost, optimum
from vitscale.cli.fit_screen import Table, ends, number, pair

Found = Sequence[tuple[Assessed, Optimum]]


def optima(found: Sequence[Assessed], budgets: np.ndarray) -> Found:
    """By the runs' own FLOPs where the curve has them, else 6 N D."""
    best = []
    for a in found:
        own = None if a.curve.flops is None else measured_cost(a.curve.observations.inputs, a.curve.flops)
        best.append((a, optimum(a.sample, budgets, own or SIX)))
    return best


def tables(found: Found) -> list[Table]:
    splits, exponents = [], []
    for a, one in found:
        sure = _identified(a)
        note = "" if sure else "not identified"
        exponents.append([a.curve.name, number(one.exponent) if sure else "", *ends(one.interval), note])
        for split in one.splits:
            n, d, value = split.intervals or (None, None, None)
            best = [number(v) if sure else "" for v in (split.n, split.d, split.value)]
            row = [best[0], *ends(n), best[1], *ends(d), best[2], *ends(value), note or _beyond(a, split.n, split.d)]
            splits.append([a.curve.name, number(split.budget), *row])
    both = ["95% low", "95% high"]
    return [
        (["curve", "budget", "best N", *both, "best D", *both, "law there", *both, ""], splits),
        (["curve", "a of best N ~ FLOPs^a", *both, ""], exponents),
    ]


def document(found: Found) -> list[dict[str, Any]]:
    return [
        {
            "curve": a.curve.name,
            "identified": _identified(a),
            "flops": {"k": one.cost.k, "g": one.cost.g, "miss": one.cost.miss, "rule": one.cost.rule},
            "a": one.exponent,
            "a_interval": pair(one.interval),
            "budgets": [
                {
                    "flops": split.budget,
                    **{
                        name: {"value": value, "interval": pair(split.intervals[i] if split.intervals else None)}
                        for i, (name, value) in enumerate((("n", split.n), ("d", split.d), ("law", split.value)))
                    },
                }
                for split in one.splits
            ],
            "facts": [asdict(fact) for fact in one.facts],
        }
        for a, one in found
    ]


def _identified(a: Assessed) -> bool:
    return all(a.profiles[name].identified for name in DECIDES)


def _beyond(a: Assessed, *best: float) -> str:
    inputs = a.curve.observations.inputs
    outside = [
        name for name, value, own in zip("ND", best, inputs.T, strict=True) if not own.min() <= value <= own.max()
    ]
    return f"{' and '.join(outside)} outside the measured" if outside else ""
