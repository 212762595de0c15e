"""`vitscale fit` called, and a table for it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from click.testing import Result
from fit_tables import Run
from typer.testing import CliRunner

from vitscale.cli.fit import fit as fit_verb


@pytest.fixture
def fit(results_root: Path) -> Run:
    app = typer.Typer()
    app.command()(fit_verb)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--results", str(results_root)])

    return invoke


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    x = np.geomspace(1e3, 1e9, 12)
    rows = pd.DataFrame({"flops": x, "accuracy": 1 - (0.08 + 3 * x**-0.22), "n_test": 10_000, "kind": "a"})
    path = tmp_path / "t.csv"
    rows.to_csv(path, index=False)
    return path
