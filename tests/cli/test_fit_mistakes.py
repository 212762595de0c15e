"""Tables and options that `vitscale fit` cannot take, or that lie at the ends of what it can."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fit_tables import Run

from vitscale.errors import DONE, MISSING, USAGE


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        ([], USAGE, "nothing to fit", "vitscale fit STUDY|FILE"),
        (["T"], USAGE, "nothing to fit against", "--x COL, or --n COL --d COL"),
        (["T", "--x", "flop"], USAGE, "no column 'flop' in this table", "did you mean 'flops'? there are: flops, accuracy"),
        (["T", "--x", "flops", "--d", "flops"], USAGE, "the form auto needs --x COL, not --x COL --d COL", "give --x COL"),
        (["T", "--x", "flops", "--form", "parametric"], USAGE, "the form parametric needs --n COL --d COL", "give --n COL --d COL"),
        (["T", "--x", "flops", "--y", "accuracy", "--at", "soon"], USAGE, "--at soon: not a positive number", "--at 1e21"),
        (["T", "--n", "flops", "--d", "flops", "--y", "accuracy"], USAGE, "'flops' is given twice", "another column"),
        (["T", "--x", "accuracy", "--y", "accuracy"], USAGE, "'accuracy' is given twice", "another column"),
        (["T", "--n", "flops", "--d", "n_test", "--y", "accuracy", "--relative-to", "a"], USAGE, "and parametric is none", "--x COL"),
        (["T", "--n", "flops", "--d", "n_test", "--y", "accuracy", "--at", "1,2,3"], USAGE, "--at 1,2,3: neither N,D nor a budget", "--at 1e9,1e12 or --at 1e21"),
        (["T", "--n", "flops", "--d", "n_test", "--y", "accuracy", "--at", "-1"], USAGE, "--at -1: neither N,D nor a budget", "--at 1e9,1e12"),
        (["T", "--n", "flops", "--d", "n_test", "--y", "accuracy", "--flops", "cost"], USAGE, "no column 'cost'", "there are: flops"),
        (["T", "--x", "kind", "--y", "accuracy"], MISSING, "column 'kind' is not numeric: row 1 holds 'a'", "--where"),
        (["T", "--x", "flops", "--y", "accuracy", "--where", "flops <"], USAGE, "--where 'flops <'", "a condition"),
        (["T", "--x", "flops", "--y", "accuracy", "--from", "1e12"], MISSING, "none of the table's 12 rows is left", "--where, --from and --to"),
        (["W", "--x", "flops", "--y", "accuracy"], MISSING, "its rows have more fields than its header has names", "columns' names"),
        (["gone.csv", "--x", "flops"], MISSING, "gone.csv: no such file", "a study or a .csv"),
        (["gone", "--x", "flops"], MISSING, "gone: no such results folder", "synthetic"),
        (["B", "--x", "flops"], MISSING, "not a readable table", ""),
    ],
)  # fmt: skip
def test_a_mistake_is_two_lines(
    fit: Run, csv_file: Path, arguments: list[str], code: int, error: str, hint: str
) -> None:
    broken = csv_file.parent / "broken.parquet"
    broken.write_bytes(b"not a table")
    wide = csv_file.parent / "wide.csv"
    wide.write_text("flops,accuracy\n1,0.1,7\n2,0.2,8\n3,0.3,9\n")
    names = {"T": str(csv_file), "B": str(broken), "W": str(wide)}
    result = fit(*(names.get(argument, argument) for argument in arguments))
    assert result.exit_code == code
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert error in first
    assert hint in second


@pytest.mark.parametrize(
    ("text", "arguments", "code", "message"),
    [
        ("x,acc\n1,.2\n2,.3\n", ["--x", "x"], USAGE, "error: t.csv: no column 'value' in this table\nhint: say what is fitted with --y"),
        ("x,acc\n1,.2\n2,.3\n", ["--x", "x", "--y", "acc", "--where", "x + 1"], USAGE, "error: --where 'x + 1': not a condition"),
        ("x,acc\n1,.2\n2,.3\n", ["--x", "x", "--y", "acc", "--where", "x - 1"], USAGE, "error: --where 'x - 1': not a condition"),
        ("x,acc\n1,.2\n2,.3\n", ["--x", "x", "--y", "acc", "--from", "nan"], USAGE, "error: --from nan: not a positive number"),
        ("x,acc\n1,.2\n2,.3\n", ["--x", "x", "--y", "acc", "--from", "5", "--to", "2"], USAGE, "error: --from 5 is above --to 2"),
        ("x,acc\nTrue,.2\nFalse,.3\n", ["--x", "x", "--y", "acc"], MISSING, "error: column 'x' holds true and false"),
    ],
)  # fmt: skip
def test_more_mistakes_are_two_lines(
    fit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(text)
    found = fit("t.csv", *arguments)
    assert found.exit_code == code
    assert found.stderr.startswith(message)
    assert len(found.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("t.parquet", b"not one", "write it again as Parquet, or as .csv"),
        ("t.csv", "x,größe\n1,2\n".encode("latin-1"), "save it with the encoding UTF-8"),
        ("t.xlsx", b"PK", "save it as .csv, .tsv or .parquet"),
        ("t.csv", b"x;y\n1;2\n", "save it with commas as .csv, or with tabs as .tsv"),
        ("t.csv", b"# of a sheet\nx,y, x\n1,2,3\n", "a .csv or .tsv has its columns' names in its first line"),
    ],
)
def test_a_file_that_is_no_table_says_what_to_do(
    fit: Run, tmp_path: Path, name: str, content: bytes, hint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    found = fit(str(tmp_path / name), "--x", "x", "--y", "y")
    assert found.exit_code == MISSING
    assert f"\nhint: {hint}" in found.stderr


def test_resamples_have_a_limit_before_memory_has(fit: Run, csv_file: Path) -> None:
    found = fit(str(csv_file), "--x", "flops", "--y", "accuracy", "--resamples", "1000000000")
    assert found.exit_code == USAGE
    assert "--resamples" in found.stderr
    assert "100000" in found.stderr


def test_extreme_values_of_x_warn_of_nothing(fit: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,acc\n1e-300,.2\n1,.4\n3e300,.6\n")
    found = fit(str(path), "--x", "x", "--y", "acc", "--form", "saturating")
    assert found.exit_code == DONE, found.stderr
    assert "Warning" not in found.stderr


@pytest.mark.parametrize("size", [1e-50, 1e10, 1e49])
def test_losses_at_the_ends_of_what_is_fitted_warn_of_nothing(fit: Run, tmp_path: Path, size: float) -> None:
    x = np.geomspace(1e3, 1e9, 12)
    loss = size * (1 + 8 * x**-0.2) * np.exp(0.01 * np.random.default_rng(0).standard_normal(12))
    pd.DataFrame({"x": x, "loss": loss}).to_csv(tmp_path / "t.csv", index=False)
    found = fit(str(tmp_path / "t.csv"), "--x", "x", "--y", "loss", "--form", "power", "--resamples", "100")
    assert found.exit_code == DONE, found.stderr
    assert "Warning" not in found.stderr
