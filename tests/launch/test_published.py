"""Published checkpoints: out of a run, in again, and as a row of a study."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tiny
from vitscale.errors import DONE, INVALID_STUDY, MISSING, USAGE
from vitscale.results.store import read


def vitscale(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitscale.cli.main", *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def answer(folder: Path, *words: object) -> str:
    done = vitscale(folder, *words)
    assert done.returncode == DONE, done.stderr
    return done.stdout.strip()


def refused(done: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    assert done.returncode == code, done.stderr
    error, hint = done.stderr.strip().splitlines()[-2:]
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith("hint: ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pre-trained ViT, its weights in every format, and their runs."""
    folder = tmp_path_factory.mktemp("published")
    tiny.write(folder)
    settings = [f"--set={s}" for s in ("data.resolution=28", "recipe.steps=4", "recipe.batch_size=16",
                                       "recipe.warmup_steps=1", "model.pre_logits=false")]  # fmt: skip
    run = answer(folder, "pretrain", "--model", "ViT-mu/7", "--data", "train", *settings)
    for kind, name in (
        ("npz", "a.npz"),
        ("timm", "timm.safetensors"),
        ("safetensors", "own.safetensors"),
        ("hf", "hf"),
    ):
        assert answer(folder, "checkpoint", "export", run, name, "--format", kind) == name
    (folder / "run").write_text(run)
    return folder


def test_what_comes_in_again_has_the_same_features(folder: Path) -> None:
    run = (folder / "run").read_text()
    accuracies = {}
    for file in ("a.npz", "timm.safetensors", "own.safetensors", None):
        id_ = run if file is None else answer(folder, "checkpoint", "import", file, "--model", "ViT-mu/7",
                                              "--resolution", 28)  # fmt: skip
        few = answer(folder, "fewshot", id_, "--task", "digits", "--shots", 2, "--results", f"results-{file}")
        rows = read(folder / f"results-{file}" / "single")
        accuracies[file] = rows.loc[rows["run_id"] == few, "value"].tolist()
    assert len(accuracies[None]) == 20
    assert all(found == pytest.approx(accuracies[None], abs=2 / 797) for found in accuracies.values())


def test_a_published_checkpoint_is_a_row_of_a_study(folder: Path) -> None:
    """Converted, never pre-trained or tuned; its transfers stand beside ours, at their own resolution too."""
    text = tiny.STUDY.replace("steps = 12", "steps = 4").replace("steps = 4\nbatch_size = 16\nseeds = 2", "steps = 2")
    text += (
        "resolution = 42\n"
        + """
[[axes]]
"data.examples" = [20, 40]
[[axes]]
"model.name" = "ViT-mu/7"
"model.checkpoint" = "a.npz"
[select]
over = { "recipe.lr" = [1e-3, 1e-2] }
per = ["data.examples"]
"""
    )
    (folder / "beside.toml").write_text(text)
    answer(folder, "sweep", "beside.toml", "--threads", 1)
    rows = read(folder / "results" / "beside")
    published = rows[rows["settings"].str.contains("a.npz") & (rows["init"] == "pretrained")]
    assert set(published["protocol"]) == {"fewshot", "finetune"}
    assert published[["examples", "examples_seen", "flops_standalone"]].isna().all(axis=None)
    assert published["dataset"].isna().all()
    assert published["value"].notna().all()
    assert published["parent_id"].nunique() == 1
    assert not rows["run_id"].isin(published["parent_id"]).any()
    plan = json.loads((folder / "results" / "beside" / "_plan.json").read_text())
    assert set(plan["runs"]) == set(rows["run_id"])
    table = answer(folder, "results", "beside")
    assert sum("checkpoint=a.npz" in line for line in table.splitlines()) == 3
    assert "published" in answer(folder, "plan", "beside.toml")
    answer(folder, "report", "beside")
    page = (folder / "results" / "beside" / "_report" / "report.html").read_text()
    assert "checkpoint=a.npz" in page
    assert "missing or incomplete" not in page


def test_another_file_in_its_place_is_another_run(folder: Path, tmp_path: Path) -> None:
    tiny.write(tmp_path)
    arrays = dict(np.load(folder / "a.npz"))
    ids = set()
    for change in (0, 1):
        np.savez(tmp_path / "a.npz", **{**arrays, "cls": arrays["cls"] + change})
        ids.add(answer(tmp_path, "checkpoint", "import", "a.npz", "--model", "ViT-mu/7", "--resolution", 28))
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("import", "gone.npz", "--model", "ViT-mu/7"), MISSING, "no checkpoint at gone.npz"),
        (("import", "a.npz", "--model", "ViT-mo/7"), USAGE, "unknown model 'ViT-mo/7'"),
        (("import", "a.npz", "--model", "ViT-mu/7", "--resolution", "56"), MISSING, "trained with 4 x 4 tokens"),
        (("import", "a.npz", "--model", "ViT-Ti/7", "--resolution", "28"), MISSING, "a.npz does not fit"),
        (("import", "study.toml", "--model", "ViT-mu/7", "--resolution", "28"), MISSING, "cannot be read"),
        (("export", "RUN", "a.npz", "--format", "npz"), USAGE, "a.npz is there already"),
        (("export", "RUN", "b.timm", "--format", "timm"), USAGE, "would not be read as what it is"),
        (("export", "nothing", "b.npz", "--format", "npz"), MISSING, "no run 'nothing'"),
        (("export", "RUN", "b.npz", "--format", "onnx"), USAGE, "onnx"),
    ],
)
def test_mistakes(folder: Path, words: tuple[str, ...], code: int, message: str) -> None:
    run = (folder / "run").read_text()
    refused(vitscale(folder, "checkpoint", *(word.replace("RUN", run) for word in words)), code, message)
    assert not (folder / "b.npz").exists()


def test_a_missing_checkpoint_is_a_mistake_of_the_study(tmp_path: Path) -> None:
    text = tiny.STUDY.replace('stem = "small"', 'stem = "small"\ncheckpoint = "gone.npz"')
    tiny.write(tmp_path, text)
    refused(vitscale(tmp_path, "plan", "study.toml"), INVALID_STUDY, "study.toml:13: no checkpoint at gone.npz")


def test_single_runs_are_told_apart_by_what_was_asked_for(folder: Path) -> None:
    settings = ["--set=data.resolution=28", "--set=recipe.steps=3", "--set=recipe.batch_size=16",
                "--set=recipe.warmup_steps=1"]  # fmt: skip
    for lr in (1e-3, 1e-2):
        answer(folder, "pretrain", "--model", "ViT-mu/7", "--data", "train", *settings, f"--set=recipe.lr={lr}",
               "--results", "several")  # fmt: skip
    run = (folder / "run").read_text()
    for lr in (0.01, 0.1):
        answer(folder, "finetune", run, "--task", "digits", "--lr", lr, "--steps", 2, "--results", "several")
    table = answer(folder, "results", "single", "--results", "several")
    assert "lr=0.001" in table
    assert "lr=[0.01]" in table
    answer(folder, "report", "--results", "several")
