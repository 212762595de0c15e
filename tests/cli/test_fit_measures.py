"""What columns of a table measure: shares and percents, accuracies, errors and losses, and their means."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fit_tables import Run, answer

from vitscale.errors import MISSING, USAGE


def percents(folder: Path) -> str:
    """Exact law, errors from 90 % to 0.28 %."""
    x = np.geomspace(1, 1e9, 12)
    path = folder / "percent.csv"
    pd.DataFrame({"x": x, "error": 90 * x ** (-np.log10(90 / 0.28) / 9)}).to_csv(path, index=False)
    return str(path)


@pytest.mark.parametrize("choice", [[], ["--from", "1.5e7"], ["--where", "error < 1"]])
def test_the_unit_is_that_of_the_whole_table(fit: Run, tmp_path: Path, choice: list[str]) -> None:
    found = answer(
        fit(percents(tmp_path), "--x", "x", "--y", "error", "--form", "power", "--at", "1e10", "--json", *choice)
    )
    assert found["curves"][0]["of"] == "error = error/100"
    assert found["curves"][0]["forecasts"][0]["value"] == pytest.approx(0.0028 * (0.28 / 90) ** (1 / 9), rel=1e-6)


def test_points_on_a_law_are_no_outliers(fit: Run, tmp_path: Path) -> None:
    found = answer(fit(percents(tmp_path), "--x", "x", "--y", "error", "--form", "power", "--json"))
    assert {fact["kind"] for fact in found["curves"][0]["facts"]} == {"unweighted"}


@pytest.fixture
def measures(tmp_path: Path) -> str:
    """Exact laws: of one accuracy a share and in percent, of its error, and of a loss."""
    x = np.geomspace(1e3, 1e9, 12)
    error = 0.5 * (x / 1e3) ** -0.2
    rows = {
        "flops": x,
        "cifar_acc": 1 - error,
        "pets_acc": 100 * (1 - error),
        "cifar_err": error,
        "pets_err": 100 * error,
        "val_loss": 3 * error,
    }
    pd.DataFrame({**rows, "seed": 0, "good": 1 - error, "best": 1 - error}).to_csv(tmp_path / "m.csv", index=False)
    return str(tmp_path / "m.csv")


@pytest.mark.parametrize("choice", [[], ["--where", "pets_acc < 101"]])
def test_a_mean_is_of_shares_also_where_a_column_is_in_percent(fit: Run, measures: str, choice: list[str]) -> None:
    found = fit(measures, "--x", "flops", "--y", "cifar_acc,pets_acc", "--form", "power", "--json", *choice)
    (curve,) = answer(found)["curves"]
    assert [fact["kind"] for fact in answer(found)["facts"]] == ["percent"]
    assert curve["of"] == "error = 1 - mean of cifar_acc, pets_acc/100"
    assert curve["parameters"]["c"]["value"] == pytest.approx(0.2, rel=1e-6)
    assert curve["places"] == [] or curve["places"][0]["mean"] == pytest.approx(0.5)


def test_a_mean_of_errors_is_an_error_and_of_unnamed_shares_an_accuracy(fit: Run, measures: str) -> None:
    for y, of in (
        ("cifar_err,pets_err", "error = mean of cifar_err, pets_err/100"),
        ("good,best", "error = 1 - mean of good, best"),
    ):
        (curve,) = answer(fit(measures, "--x", "flops", "--y", y, "--form", "power", "--json"))["curves"]
        assert curve["of"] == of
        assert curve["parameters"]["c"]["value"] == pytest.approx(0.2, rel=1e-6)


@pytest.mark.parametrize(
    ("y", "code", "message"),
    [
        ("cifar_acc,val_loss", MISSING, "'cifar_acc' is an accuracy, 'val_loss' is a loss"),
        ("cifar_acc,cifar_err", MISSING, "'cifar_acc' is an accuracy, 'cifar_err' is an error"),
        ("cifar_acc,seed", MISSING, "'cifar_acc' is an accuracy, 'seed' does not say what it is"),
        ("good,flops", USAGE, "'flops' does not say what they are"),
    ],
)
def test_columns_of_different_measures_have_no_mean(fit: Run, measures: str, y: str, code: int, message: str) -> None:
    found = fit(measures, "--x", "flops", "--y", y)
    assert found.exit_code == code
    assert message in found.stderr
    assert "--y-is" in found.stderr
    assert len(found.stderr.splitlines()) == 2
