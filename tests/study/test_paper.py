"""`studies/vit_paper.toml` against Table 6 of arXiv 2010.11929v2."""

import csv
import json
from importlib.resources import files
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitscale.cli.main import app
from vitscale.study.load import load

STUDY = Path(__file__).parents[2] / "studies" / "vit_paper.toml"
TABLE = list(csv.DictReader(files("vitscale.reference").joinpath("vit_table6.csv").read_text().splitlines()))
OUTLIER = ("R50+ViT-L/16", 7)  # 859 in the table, 834 by its own row at 14 epochs


def name(row: dict[str, str]) -> str:
    return row["name"].replace("ResNet", "R").replace("R50x1+", "R50+")


@pytest.fixture(scope="module")
def planned() -> dict[tuple[str, int], float]:
    """exaFLOPs by model and epochs, as printed."""
    done = CliRunner().invoke(app, ["plan", str(STUDY), "--counting", "valid"])
    assert done.exit_code == 0, done.output
    lines = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    return {
        (row["model"], round(int(row["seen"].replace(",", "")) / 303e6)): float(row["exaFLOPs"].replace(",", ""))
        for row in rows
    }


def test_the_runs_are_those_of_the_table(planned: dict[tuple[str, int], float]) -> None:
    assert sorted(planned) == sorted((name(row), int(row["epochs"])) for row in TABLE)
    assert len(TABLE) == 18


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row['name']}-{row['epochs']}")
def test_exaflops_are_those_of_the_table(planned: dict[tuple[str, int], float], row: dict[str, str]) -> None:
    key = (name(row), int(row["epochs"]))
    published = 833 if key == OUTLIER else float(row["exaflops"])
    tolerance = {"vit": 0.005, "hybrid": 0.015, "resnet": 0.015}[row["family"]]
    assert planned[key] == pytest.approx(published, rel=0.025 if key[0] == "ViT-B/32" else tolerance)


def test_dense_counting_says_what_a_device_computes() -> None:
    dense, valid = (
        json.loads(CliRunner().invoke(app, ["plan", str(STUDY), "--json", "--counting", counting]).stdout)
        for counting in ("dense", "valid")
    )
    assert dense["counting"] == "dense"
    for one, other in zip(dense["jobs"], valid["jobs"], strict=True):
        if one["family"] == "vit":
            assert one["macs"] == other["macs"]
        else:
            assert one["macs"] > other["macs"]
        assert one["flops"] == 6 * one["macs"] * one["examples_seen"]
        assert other["flops"] == 6 * other["macs"] * other["examples_seen"]


def test_hyper_parameters_are_those_of_table_3() -> None:
    rows = csv.DictReader(files("vitscale.reference").joinpath("vit_table3_pretrain.csv").read_text().splitlines())
    published = {}
    for row in rows:
        if row["dataset"] == "JFT-300M":
            before, _, choices = row["model"].partition("{")
            for choice in choices.rstrip("}").split(",") if choices else [""]:
                published[before + choice] = row
    assert len(published) == 14
    for cell in load(STUDY, base=STUDY.parent).cells:
        model, recipe = cell.run.model.name, cell.run.recipe
        row = published.get(model, published["R152x2"])
        assert model in published or model == "R200x3"
        assert recipe.lr == float(row["base_lr"])
        assert recipe.schedule == row["lr_decay"]
        assert recipe.weight_decay == float(row["weight_decay"])
        assert recipe.dropout == float(row["dropout"])
        assert (recipe.batch_size, recipe.warmup_steps) == (4096, 10_000)
