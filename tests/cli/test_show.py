"""`vitscale show` and `vitscale diff` on run folders of a real sweep's making."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from vitscale.errors import INVALID_STUDY
from vitscale.launch import folders
from vitscale.results.store import write_part
from vitscale.study.load import load
from vitscale.study.plan import plan


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, list[str]]:
    tiny.write(tmp_path)
    ids = []
    for rate in ("0.01", "0.02"):
        job = plan(load(tmp_path / "study.toml", base=tmp_path, settings=[f"recipe.lr={rate}"]), {}).jobs[0]
        folders.prepare(job, tmp_path / "runs", base=tmp_path, machine={"threads": 1})
        ids.append(job.id)
    return tmp_path, ids


def vitscale(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitscale", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_show_ends_with_the_command_that_makes_the_run_again(runs: tuple[Path, list[str]]) -> None:
    folder, (one, _) = runs
    done = vitscale(folder, "show", one[:8])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("vitscale pretrain --model ViT-Ti/7 --data ")
    assert "settings\trecipe.lr\t0.01" in lines
    assert "run\tstate\tto do" in lines
    document = json.loads(vitscale(folder, "show", one, "--json").stdout)
    assert document["command"] == lines[-1]
    assert document["settings"]["recipe.lr"] == 0.01


def test_show_gives_results_as_means_over_draws(runs: tuple[Path, list[str]]) -> None:
    folder, (one, _) = runs
    row = {"task": "digits", "protocol": "fewshot", "metric": "accuracy", "shots": 5, "flops_eval": 2e9}
    rows = [{**row, "draw": draw, "value": value} for draw, value in enumerate((0.25, 0.75))]
    outcome = {"status": "done", "attempt": 1, "score": None, "rows": rows}
    (folder / "runs" / one / "result.json").write_text(json.dumps(outcome))
    lines = vitscale(folder, "show", one).stdout.splitlines()
    assert "task\tprotocol\tmetric\tshots\tmean\tsd\tdraws" in lines
    assert "digits\tfewshot\taccuracy\t5\t0.5\t0.353553\t2" in lines
    assert "outcome\tflops_eval\t2e+09" in lines


def test_show_says_what_a_setting_was_chosen_from(runs: tuple[Path, list[str]]) -> None:
    folder, (one, _) = runs
    told = {"study": "mine", "role": "cell", "settings": {"recipe.lr": 0.01}, "lr": 0.01, "lr_at_edge": True}
    tried = [{"recipe.lr": 0.001, "score": 0.25}, {"recipe.lr": 0.01, "score": 0.5}, {"recipe.lr": 1e-4, "score": None}]
    write_part([{**told, "lr_at_edge": False}], folder / "results" / "mine", run_id=one, attempt=1)
    write_part([{**told, "tried": tried}] * 2, folder / "results" / "mine", run_id=one, attempt=2)
    write_part([{**told, "study": "other", "role": "tuning"}], folder / "results" / "other", run_id=one, attempt=1)
    lines = [line for line in vitscale(folder, "show", one).stdout.splitlines() if line.startswith("study ")]
    assert lines[:5] == [
        "study mine\trole\tcell",
        "study mine\ttried recipe.lr 0.001\t0.25",
        "study mine\ttried recipe.lr 0.01\t0.5 (chosen)",
        "study mine\ttried recipe.lr 0.0001\tfailed",
        "study mine\tnote\tat the edge of what was tried: lr 0.01; better may lie beyond",
    ]
    assert lines[5] == "study other\trole\ttuning"
    document = json.loads(vitscale(folder, "show", one, "--json").stdout)
    assert [(study["study"], study["tried"]) for study in document["studies"]] == [("mine", tried), ("other", None)]


def test_diff_names_the_settings_that_differ(runs: tuple[Path, list[str]]) -> None:
    folder, (one, other) = runs
    assert vitscale(folder, "diff", one, other).stdout.splitlines() == [
        f"setting\t{one}\t{other}",
        "recipe.lr\t0.01\t0.02",
    ]
    same = vitscale(folder, "diff", one, one)
    assert (same.stdout, same.stderr.strip()) == ("", f"{one} and {one} differ in nothing that makes a run")


def test_diff_refuses_a_folder_that_holds_another_run_than_its_name_says(runs: tuple[Path, list[str]]) -> None:
    folder, (one, other) = runs
    config = json.loads((folder / "runs" / one / "run.json").read_text())["config"]
    config["recipe"]["weight_decay"] = 0.5
    tiny.edit(folder / "runs" / one / "run.json", config=config)
    for pair in ((one, other), (other, one)):
        done = vitscale(folder, "diff", *pair)
        assert (done.returncode, done.stdout) == (INVALID_STUDY, "")
        assert done.stderr.startswith(f"error: runs/{one} does not hold the run that its name says\nhint: ")


def test_a_run_that_is_not_there_is_two_lines(runs: tuple[Path, list[str]]) -> None:
    done = vitscale(runs[0], "show", "ffff")
    assert done.returncode == 5
    assert done.stderr.splitlines() == [
        "error: there is no run 'ffff' in runs",
        "hint: vitscale status STUDY lists the runs of a study",
    ]


def test_show_tells_which_other_code_had_a_part_in_a_run(runs: tuple[Path, list[str]]) -> None:
    folder, (one, _) = runs
    before = {"code_hash": "b" * 64, "git_commit": "c" * 40, "git_dirty": True}
    tiny.edit(folder / "runs" / one / "run.json", trained_by=[before])
    done = vitscale(folder, "show", one)
    assert f"trained before by\tcode {'b' * 12}\tcommit {'c' * 40}, with changes" in done.stdout.splitlines()
