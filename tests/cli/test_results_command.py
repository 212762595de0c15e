import csv
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from vitscale.cli.results import results
from vitscale.errors import MISSING, USAGE
from vitscale.results.store import Held, write_part, write_plan
from vitscale.wording import NOT_HELD

Run = Callable[..., Result]


@pytest.fixture
def run(results_root: Path) -> Run:
    app = typer.Typer()
    app.command()(results)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["synthetic", "--results", str(results_root), *arguments])

    return invoke


def rows(text: str, separator: str = "\t") -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text), delimiter=separator))


def test_the_summary_has_mean_spread_and_seeds_of_every_cell(run: Run, frame: pd.DataFrame) -> None:
    printed = rows(run("--format", "csv").stdout, ",")
    cell = next(
        row for row in printed if row["model"] == "R26x0.5" and row["examples"] == "4000" and row["shots"] == "5"
    )
    one = frame.query("model == 'R26x0.5' and examples == 4000 and shots == 5")
    seeds = one.groupby("seed")["value"].mean()
    assert float(cell["value"]) == pytest.approx(seeds.mean())
    assert float(cell["sd"]) == pytest.approx(seeds.std())
    assert cell["n"] == "3"


def test_columns_print_the_rows_as_written_tuning_and_failures_too(run: Run, frame: pd.DataFrame) -> None:
    printed = rows(run("--columns", "run_id,role,status,value").stdout)
    assert len(printed) == len(frame)
    assert list(printed[0]) == ["run_id", "role", "status", "value"]
    assert {row["status"] for row in printed} == {"done", "failed"}
    assert {row["role"] for row in printed} == {"cell", "baseline", "tuning"}


def test_all_columns_read_back_as_the_frame(run: Run, frame: pd.DataFrame) -> None:
    printed = pd.read_csv(StringIO(run("--columns", "all", "--format", "tsv").stdout), sep="\t")
    assert list(printed.columns) == list(frame.columns)
    assert printed["value"].to_numpy() == pytest.approx(frame["value"].to_numpy(), nan_ok=True)


def test_where_and_sort_choose_and_order_rows(run: Run) -> None:
    arguments = ("--where", "family == 'vit' and shots == 10 and draw == 0", "--columns", "seed,value")
    printed = rows(run(*arguments, "--sort", "seed,-value").stdout)
    assert [row["seed"] for row in printed] == sorted(row["seed"] for row in printed)
    first = [float(row["value"]) for row in printed if row["seed"] == "0"]
    assert first == sorted(first, reverse=True)
    assert len(first) == 7  # six cells and the untrained network


def test_json_is_one_document_with_nulls(run: Run) -> None:
    document = json.loads(run("--where", "status == 'failed'", "--columns", "value,reason,examples", "--json").stdout)
    assert document == {
        "schema": 1,
        "study": "synthetic",
        "rows": [{"value": None, "reason": "loss is not finite at step 120", "examples": 16000}],
    }


def test_markdown_is_a_table(run: Run) -> None:
    lines = run("--where", "init == 'pixels'", "--format", "md").stdout.splitlines()
    assert lines[1].replace("| --- ", "") == "|"
    assert len(lines) == 2 + 3


def test_a_filter_that_nothing_passes_prints_the_header_only(run: Run) -> None:
    result = run("--where", "seed == 99", "--columns", "seed,value")
    assert (result.exit_code, result.stdout) == (0, "seed\tvalue\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--columns", "vale"], "error: no column 'vale' in this table\nhint: did you mean 'value'?"),
        (["--sort", "-vale"], "error: no column 'vale' in this table\nhint: did you mean 'value'?"),
        (["--where", "shts == 5"], "error: --where 'shts == 5': name 'shts' is not defined\nhint: "),
        (["--where", "shots =="], "error: --where 'shots ==': invalid syntax"),
        (["--where", "shots"], "error: --where 'shots': not a condition\nhint: compare something"),
        (["--where", "value"], "error: --where 'value': not a condition\nhint: compare something"),
        (["--where", "model"], "error: --where 'model': not a condition\nhint: compare something"),
        (["--where", "seed + 1"], "error: --where 'seed + 1': not a condition\nhint: compare something"),
        (["--where", "seed = 1"], "error: --where 'seed = 1': "),
    ],
)
def test_a_wrong_question_is_answered_in_two_lines(run: Run, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == USAGE
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 2
    assert result.stdout == ""


def test_a_study_without_results_is_named(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(results)
    result = CliRunner().invoke(app, ["nothing", "--results", str(tmp_path)])
    assert result.exit_code == MISSING
    assert result.stderr.startswith(
        f"error: {tmp_path}/nothing: no such results folder\nhint: run `vitscale sweep STUDY`"
    )


@pytest.mark.parametrize("arguments", [[], ["--columns", "run_id,seed"]])
def test_runs_that_left_the_study_are_left_out_with_one_line(tmp_path: Path, arguments: list[str]) -> None:
    row = {"status": "done", "role": "cell", "family": "vit", "model": "ViT", "task": "upstream_test", "seed": 0}
    row |= {"protocol": "pretrain", "metric": "accuracy", "value": 0.5}
    for run_id in ("old", "older", "new"):
        write_part([row], tmp_path / "study", run_id=run_id, attempt=1)
    write_plan(tmp_path / "study", Held(frozenset(["new"])))
    app = typer.Typer()
    app.command()(results)
    result = CliRunner().invoke(app, ["study", "--results", str(tmp_path), *arguments])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr == f"2 runs left out: in {tmp_path}/study, but {NOT_HELD}\n"


def test_a_study_of_which_only_a_trunk_is_done_has_nothing_measured_and_says_so(tmp_path: Path) -> None:
    row = {"status": "done", "role": "trunk", "family": "vit", "model": "ViT", "protocol": "pretrain", "seed": 0}
    write_part([row], tmp_path / "study", run_id="trunk", attempt=1)
    app = typer.Typer()
    app.command()(results)
    result = CliRunner().invoke(app, ["study", "--results", str(tmp_path)])
    assert result.exit_code == 0
    assert result.stderr == "nothing measured yet in 1 row; --columns all prints them as they were written\n"
