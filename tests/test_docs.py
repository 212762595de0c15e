"""The studies that ship, the README and the verbs agree with the code."""

import re
from pathlib import Path

import pytest
import typer.main

from vitscale.cli.main import app
from vitscale.study.load import load
from vitscale.study.plan import plan

ROOT = Path(__file__).parent.parent
SMALL = [ROOT / "studies" / name for name in ("quickstart.toml", "data_size.toml")]
README = (ROOT / "README.md").read_text()


def describe(folder: Path, samples: int, classes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(
        f'{{"name": "{folder.name}", "samples": {samples}, "num_classes": {classes}, "fingerprint": "f"}}'
    )


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_a_small_study_is_valid_and_compares_three_families_of_equal_cost(path: Path, tmp_path: Path) -> None:
    describe(tmp_path / "data" / "fashion-mnist-train", 60_000, 10)
    describe(tmp_path / "data" / "fashion-mnist-test", 10_000, 10)
    describe(tmp_path / "data" / "fractals", 6_000, 50)
    study = load(path, base=tmp_path)
    result = plan(study, {})
    jobs = [job for job in [*result.jobs, *result.waiting] if job.kind == "pretrain"]
    assert {job.arch.family for job in jobs} == {"vit", "hybrid", "resnet"}
    macs = {job.macs for job in jobs}
    assert max(macs) <= 1.1 * min(macs)
    assert len({job.examples for job in jobs}) >= 3
    assert path.read_text().startswith("# Question: ")


def test_the_masked_study_compares_labels_patches_and_scratch_on_one_network(tmp_path: Path) -> None:
    describe(tmp_path / "data" / "fractals", 6_000, 20)
    result = plan(load(ROOT / "studies" / "masked.toml", base=tmp_path), {})
    jobs = [job for job in result.jobs if job.kind == "pretrain"]
    assert [(job.run.recipe.objective, job.run.recipe.masked_target) for job in jobs] == [
        ("classification", "mean-colour"),
        ("masked-patch", "mean-colour"),
        ("masked-patch", "pixels"),
    ]
    assert len({job.arch for job in jobs}) == 1
    inits = sorted(
        (job.run.transfer.protocol, job.run.transfer.init)
        for job in result.jobs
        if job.role == "baseline" and job.run.transfer
    )
    assert inits == [("fewshot", "pixels"), ("fewshot", "untrained"), ("finetune", "untrained")]
    assert not result.waiting


STUDIES = sorted((ROOT / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_that_ships_says_what_it_asks_expects_and_costs_and_can_be_planned(path: Path, tmp_path: Path) -> None:
    comment = path.read_text().split("\n\n")[0]
    assert comment.startswith("# Question: ")
    assert "\n# Expected: " in comment
    assert "Cost: " in comment or "planned, not run" in comment
    for name, samples, classes in (
        ("fashion-mnist-train", 60_000, 10),
        ("fashion-mnist-test", 10_000, 10),
        ("fractals", 6_000, 20),
    ):
        describe(tmp_path / "data" / name, samples, classes)
    jobs = [job for job in plan(load(path, base=tmp_path), {}).jobs if job.kind == "pretrain"]
    assert jobs
    if path.stem in ("compute", "patch_size", "model_size", "hybrid_vs_vit"):
        branches = [job.branch.trunk for job in jobs if job.branch]
        assert len(branches) + len(set(branches)) == len(jobs)  # all of its runs share trunks
    if path.stem == "compute":
        assert len({job.steps for job in jobs if job.branch}) >= 6


def test_data_size_is_the_study_that_the_readme_describes(tmp_path: Path) -> None:
    describe(tmp_path / "data" / "fashion-mnist-train", 60_000, 10)
    describe(tmp_path / "data" / "fashion-mnist-test", 10_000, 10)
    study = load(ROOT / "studies" / "data_size.toml", base=tmp_path)
    cells = [(c.run.model.name, c.run.data.examples, c.run.recipe.examples, c.run.seed) for c in study.cells]
    assert len(cells) == len(set(cells)) == 3 * (4 + 2) * 3
    assert {examples for _, examples, _, _ in cells} == {1_000, 4_000, 16_000, 55_000}
    assert {c.run.data.val_examples for c in study.cells} == {5_000}
    assert {c.run.recipe.keep for c in study.cells} == {"best"}
    assert study.select is not None
    assert study.select.at == {"data.examples": (1_000, 55_000)}


def test_the_readme_names_only_verbs_and_options_that_exist() -> None:
    group = typer.main.get_command(app)
    named = re.findall(r"`vitscale ([a-z]+(?: [a-z]+)?)((?: [^`]*)?)`", README)
    assert len(named) >= 10
    for words, rest in named:
        command = group
        for word in words.split():
            if not hasattr(command, "commands"):
                break
            assert word in command.commands, f"vitscale {words}"
            command = command.commands[word]
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= options, f"vitscale {words}{rest}"


def test_the_readme_s_make_targets_and_files_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", README)) <= targets
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    assert len(README.splitlines()) < 120
