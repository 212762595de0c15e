from __future__ import annotations

import numpy as np
import pytest

from vitscale.analysis.forms import FORMS, Form
from vitscale.analysis.selftest import CHINCHILLA, KNOWN, SIZES, X, theta_of

LAWS = {**KNOWN, "parametric": CHINCHILLA}


def inputs_of(form: Form) -> np.ndarray:
    return SIZES if len(form.inputs) == 2 else X


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_jacobian_is_the_derivative(form: Form) -> None:
    theta, z = theta_of(form, LAWS[form.name]), np.log(inputs_of(form))
    _, jacobian = form.value_and_jacobian(theta, z)
    for i, size in enumerate(np.abs(theta[0])):
        step = 1e-6 * size * np.eye(theta.shape[1])[i]
        numeric = (form.value(theta + step, z) - form.value(theta - step, z)) / (2e-6 * size)
        assert np.allclose(jacobian[..., i], numeric, rtol=1e-6, atol=1e-8 * np.abs(numeric).max())


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("power", [16.0], 3.0 * 16**-0.2),
        ("saturating", [16.0], 0.08 + 5.0 * 16**-0.22),
        ("zhai", [3e5], 0.05 + 100.0 * 5e5**-0.4),
        ("broken", [1e8], 0.02 + 1.5 * 1e8**-0.05 * 2 ** (-0.3 * 0.4)),
        ("parabola", [1e6], 0.1 + 0.002 * np.log(100) ** 2),
        ("parametric", [1e8, 1e10], 1.69 + 406.4 / 1e8**0.34 + 410.7 / 1e10**0.28),
    ],
)
def test_a_form_is_its_equation(name: str, x: list[float], expected: float) -> None:
    assert FORMS[name].value(theta_of(FORMS[name], LAWS[name]), np.log([x]))[0, 0] == pytest.approx(expected)


def test_m4_meets_its_implicit_equation() -> None:
    law = KNOWN["m4"]
    x = np.geomspace(1.0, 1e15, 50)
    y = FORMS["m4"].value(theta_of(FORMS["m4"], law), np.log(x[:, None]))[0]
    left = (y - law["floor"]) / (law["start"] - y) ** law["alpha"]
    inside = (y - law["floor"] > 1e-9) & (law["start"] - y > 1e-9)
    assert inside.sum() > 30
    assert np.allclose(left[inside], (law["beta"] * x ** -law["c"])[inside], rtol=1e-5)
    assert np.all(np.diff(y) <= 0)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_units_of_the_equation_do_not_depend_on_where_x0_lies(form: Form) -> None:
    """A curve scaled to x0 is the same curve, and its parameters come back as they were."""
    log_x0 = np.log(inputs_of(form)).mean(0)
    law = np.array([list(LAWS[form.name].values())])
    scaled = form.moved(theta_of(form, LAWS[form.name]), -log_x0)
    assert np.allclose(form.natural(scaled, log_x0), law, rtol=1e-9)
    there = np.log(inputs_of(form))
    assert np.allclose(form.value(scaled, there - log_x0), form.value(theta_of(form, LAWS[form.name]), there))
