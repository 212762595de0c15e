"""Does the optimiser find what is known? Noise-free data of every form, and a published fit of a ladder of models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vitscale.analysis.fits import Fit, Observations, fit
from vitscale.analysis.forms import FORMS, Form
from vitscale.analysis.residuals import Binomial, LogLoss, Residuals

LADDER = Path(__file__).parent.parent / "reference" / "olmo_ladder.csv"
RECOVERED = 1e-6  # relative
TRIALS = 10_000.0

# Parameters of laws with every part in play over X: none of them is left open by the data.
X = np.geomspace(1e4, 1e12, 40)[:, None]
KNOWN = {
    "power": {"b": 3.0, "c": 0.2},
    "saturating": {"a": 0.08, "b": 5.0, "c": 0.22},
    "zhai": {"a": 0.05, "b": 100.0, "c": 0.4, "d": 2e5},
    "m4": {"floor": 0.05, "start": 0.9, "alpha": 0.6, "beta": 1e3, "c": 0.45},
    "broken": {"a": 0.02, "b": 1.5, "c0": 0.05, "c1": 0.3, "d": 1e8, "f": 0.4},
    "parabola": {"m": 0.1, "h": 0.002, "p": 1e8},
}
# Of 70 M to 10 G parameters and 1 G to 1 T tokens, as rounded in arXiv 2203.15556, appendix D.3.
CHINCHILLA = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
SIZES = np.stack(np.meshgrid(np.geomspace(7e7, 1e10, 6), np.geomspace(1e9, 1e12, 6)), -1).reshape(-1, 2)

# Huber with delta 1e-3 on log loss, bounds at 0, and the loss at the larger held-out run.
PUBLISHED = {
    "log A": 2.52435,
    "log B": 3.51085,
    "alpha": 0.103603,
    "beta": 0.161969,
    "E": 0.934375,
    "loss at N = 13,202,396,160, D = 5,000,088,518,656": 2.34439,
}
HELD_OUT = np.array([[13_202_396_160.0, 5_000_088_518_656.0]])


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    quantity: str
    expected: float
    found: float
    tolerance: float
    """Absolute."""

    @property
    def passed(self) -> bool:
        return abs(self.found - self.expected) <= self.tolerance


def selftest() -> list[Check]:
    checks = [check for name, known in KNOWN.items() for check in _recovered(FORMS[name], X, known)]
    checks += _recovered(FORMS["parametric"], SIZES, CHINCHILLA)
    return [*checks, *_ladder()]


def theta_of(form: Form, parameters: dict[str, float]) -> np.ndarray:
    """A form's theta for x0 = 1, a batch of one."""
    values = [np.log(parameters[name]) if name in form.logs else parameters[name] for name in form.parameters]
    return np.array([values])


def ladder() -> pd.DataFrame:
    """OLMo's ladder: n, d, loss, held_out."""
    return pd.read_csv(LADDER, comment="#")


def ladder_fit() -> Fit:
    runs = ladder()
    runs = runs[runs["held_out"] == 0]
    losses = LogLoss(runs["loss"].to_numpy())
    return fit(FORMS["parametric"], Observations(runs[["n", "d"]].to_numpy(float), losses, np.arange(len(runs))))


def _recovered(form: Form, inputs: np.ndarray, known: dict[str, float]) -> list[Check]:
    y = form.value(theta_of(form, known), np.log(inputs))[0]
    kinds: list[tuple[str, Residuals]] = [("loss", LogLoss(y))]
    if y.max() < 1:
        kinds.append(("error", Binomial(y, np.full(len(y), TRIALS))))
    checks = []
    for kind, residuals in kinds:
        found = fit(form, Observations(inputs, residuals, np.arange(len(y)))).parameters
        for name, value in known.items():
            checks.append(Check(f"{form.name} ({kind})", name, value, found[name], RECOVERED * value))
    return checks


def _ladder() -> list[Check]:
    found = ladder_fit()
    values = found.parameters
    values |= {"log A": float(np.log(values["A"])), "log B": float(np.log(values["B"]))}
    values |= {name: float(found.predict(HELD_OUT)[0]) for name in PUBLISHED if name.startswith("loss at")}
    return [
        Check("OLMo ladder", name, expected, values[name], 0.5000001 * _last_digit(expected))
        for name, expected in PUBLISHED.items()
    ]


def _last_digit(value: float) -> float:
    """What the last written digit of a number counts."""
    return 10.0 ** -len(repr(value).partition(".")[2])
