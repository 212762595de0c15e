import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from vitscale.cli.report import report
from vitscale.errors import MISSING, USAGE
from vitscale.report import figures
from vitscale.results.store import Held, write_part, write_plan
from vitscale.wording import NOT_HELD


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(report)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder of two studies with one cell each; the current folder is its parent."""
    for study in ("one", "two"):
        row = {"status": "done", "role": "cell", "family": "vit", "model": "ViT-nano/4", "protocol": "pretrain"}
        row |= {"task": "upstream_test", "metric": "accuracy", "examples": 1000, "examples_seen": 8000}
        rows = [{**row, "study": study, "seed": seed, "value": 0.8} for seed in (0, 1)]
        write_part(rows, tmp_path / "results" / study, run_id="a", attempt=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def test_stdout_names_the_page_and_the_figures_and_stderr_what_to_doubt(small: Path) -> None:
    result = run("one")
    assert result.exit_code == 0
    paths = result.stdout.splitlines()
    assert paths[0] == "results/one/_report/report.html"
    assert [Path(path).suffix for path in paths[1:]] == [".png", ".svg", ".pdf"]
    assert all(Path(path).is_file() for path in paths)
    assert "one: Not drawn: accuracy against training compute" in result.stderr
    assert not (small / "two" / "_report").exists()


def test_without_a_study_every_one_is_drawn(small: Path) -> None:
    result = run("--out", "drawn")
    assert result.exit_code == 0
    assert sorted(path.parent.name for path in Path("drawn").glob("*/report.html")) == ["one", "two"]
    assert not list(small.glob("*/_report"))


@pytest.mark.usefixtures("small")
def test_a_study_file_gives_the_page_its_title_and_its_name_finds_it_too() -> None:
    Path("studies").mkdir()
    Path("studies/one.toml").write_text('title = "How much <data>?"\n')
    for study in ("studies/one.toml", "one"):
        assert run(study, "--out", "drawn").exit_code == 0
        assert "<h1>How much &lt;data&gt;?</h1>" in Path("drawn/report.html").read_text()


def test_json_is_one_document_with_notes_and_table(small: Path) -> None:
    result = run(small / "one", "--json")
    document = json.loads(result.stdout)
    assert document["schema"] == 1
    (one,) = document["reports"]
    assert one["study"] == "one"
    assert one["table"][0]["Upstream, test set"] == "80.0 ± 0.0"
    assert any("Not drawn" in note["text"] for note in one["notes"])
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["oen"], "error: results/oen: no such results folder\nhint: did you mean 'one'?\n"),
        (["studies/none.toml"], "error: studies/none.toml: no such study file\nhint: "),
        (["--results", "nowhere"], "error: nowhere: no results of any study here\nhint: "),
    ],
)
def test_what_is_missing_is_named_in_two_lines(small: Path, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert small.is_dir()
    assert result.exit_code == MISSING
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 2
    assert result.stdout == ""


@pytest.mark.parametrize("module", ["report", "results"])
def test_the_command_loads_nothing_heavy_before_it_is_called(module: str) -> None:
    heavy = "('torch', 'numpy', 'pandas', 'matplotlib', 'pyarrow')"
    script = f"import sys, vitscale.cli.{module}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


def test_drawing_does_not_load_torch(small: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from vitscale.cli.report import report\n"
        "report(['one'], Path('results')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=small.parent, capture_output=True).returncode == 0


def test_a_plan_leaves_out_the_runs_that_it_does_not_hold(small: Path) -> None:
    row = {"status": "done", "role": "cell", "family": "vit", "model": "ViT-nano/4", "protocol": "pretrain"}
    row |= {"task": "upstream_test", "metric": "accuracy", "examples": 1000, "examples_seen": 8000}
    write_part([{**row, "seed": 0, "value": 0.2}], small / "one", run_id="old", attempt=1)
    refused = run("one")
    assert refused.exit_code == MISSING
    assert refused.stderr.startswith("error: runs a and old are both ViT-nano/4 on 1,000 images, seed 0")
    assert refused.stderr.count("\n") == 2
    assert not (small / "one" / "_report").exists()
    write_plan(small / "one", Held(frozenset(["a"])))
    result = run("one", "--json")
    (one,) = json.loads(result.stdout)["reports"]
    assert one["table"][0]["Upstream, test set"] == "80.0 ± 0.0"
    assert f"1 run left out: recorded here, but {NOT_HELD}." in [note["text"] for note in one["notes"]]


@pytest.mark.usefixtures("small")
def test_an_overlay_that_has_no_task_in_common_says_so() -> None:
    (one,) = json.loads(run("one", "--overlay", "paper", "--json").stdout)["reports"]
    assert one["notes"][0]["text"].startswith("Nothing of the paper's tables is drawn")


def test_paper_draws_table_6_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure_5 = {"accuracy_by_flops": figures.accuracy_by_flops}
    monkeypatch.setattr("vitscale.report.page.FIGURES", figure_5)  # the others are tested where they are drawn
    result = run("--paper", "--out", tmp_path, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["source"] == "arXiv 2010.11929v2, Table 6"
    (paper,) = document["reports"]
    assert str(tmp_path / "accuracy_by_flops.pdf") in paper["figures"]
    assert paper["notes"][0]["text"].startswith("These numbers are the paper's")
    assert "vitscale sweep" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("arguments", [("one", "--paper"), ("--paper", "--overlay", "paper")])
def test_paper_with_a_study_is_refused(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == USAGE
    assert result.stderr.count("\n") == 2


OTHERS = ("table.csv", "report.html", "accuracy_by_set_size.png", "frontier_by_flops.svg")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("arguments", [("one",), ("--paper",)])
@pytest.mark.parametrize("name", OTHERS)
def test_a_named_folder_with_files_of_others_is_refused_and_nothing_written(
    arguments: tuple[str, ...], name: str
) -> None:
    theirs = Path("out") / name
    theirs.parent.mkdir()
    theirs.write_text("theirs")
    result = run(*arguments, "--out", "out")
    assert result.exit_code == MISSING
    message = f"error: {theirs} is there, and no report of vitscale made it\nhint: name an empty folder with --out\n"
    assert result.stderr == message
    assert [path.read_text() for path in Path("out").iterdir()] == ["theirs"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("out", ["mine.md", "mine.md/drawn"])
def test_a_file_for_a_folder_is_called_what_it_is(out: str) -> None:
    Path("mine.md").write_text("mine")
    Path("nowhere").symlink_to("gone")
    assert run("one", "--out", "nowhere").stderr.startswith("error: nowhere is a link to nothing, where a folder is")
    result = run("one", "--out", out)
    assert result.exit_code == MISSING
    assert result.stderr.startswith("error: mine.md is a file, where a folder is needed\nhint: move it away")
    assert Path("mine.md").read_text() == "mine"


@pytest.mark.usefixtures("small")
def test_a_named_folder_that_holds_other_names_alone_takes_a_report_and_the_next_one() -> None:
    Path("out").mkdir()
    Path("out/mine.csv").write_text("mine")
    assert [run("one", "--out", "out").exit_code for _ in range(2)] == [0, 0]
    page = Path("out/report.html")
    assert '<meta name="generator" content="vitscale' in page.read_text()
    page.write_text(page.read_text().replace('<meta name="generator" content="vitscale">\n', ""))  # an older one
    assert run("one", "--out", "out").exit_code == 0
    assert Path("out/mine.csv").read_text() == "mine"


@pytest.mark.usefixtures("small")
def test_a_first_report_that_was_interrupted_does_not_refuse_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("vitscale.report.page.html", lambda *_: 1 / 0)
        assert run("one", "--out", "out").exit_code != 0
    assert Path("out/table.csv").is_file()
    assert "interrupted" in Path("out/report.html").read_text()
    assert run("one", "--out", "out").exit_code == 0


def test_the_default_folder_is_the_report_s_whatever_is_in_it(small: Path) -> None:
    theirs = small / "one" / "_report" / "table.csv"
    theirs.parent.mkdir()
    theirs.write_text("of a report whose page is gone")
    assert run("one").exit_code == 0
    assert "ViT-nano/4" in theirs.read_text()


def test_a_figure_that_is_not_drawn_again_goes_and_files_of_like_names_stay(small: Path) -> None:
    folder = small / "one" / "_report"
    folder.mkdir()
    of_figure = {kind: folder / f"accuracy_by_flops.{kind}" for kind in ("png", "svg", "pdf", "csv", "tex")}
    for path in of_figure.values():
        path.write_text("earlier")
    assert run("one").exit_code == 0
    assert [kind for kind, path in of_figure.items() if path.exists()] == ["csv", "tex"]
