from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from vitscale.cli.data import app
from vitscale.data.pack import Plan, pack
from vitscale.data.sources import open_source


def mixed_set(folder: Path) -> Path:
    """Three images of one class and one of another, in two sizes and two formats."""
    rng = np.random.default_rng(0)
    for i, (name, width, form) in enumerate(
        (("cat", 8, "png"), ("cat", 8, "png"), ("cat", 200, "jpg"), ("dog", 20, "png"))
    ):
        (folder / "in" / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "in" / name / f"{i}.{form}")
    return pack(open_source(folder / "in"), folder / "set", Plan(name="set")).folder


def test_sizes_balance_and_formats_are_said(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["info", str(mixed_set(tmp_path))])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "set: 4 images, 2 classes"
    assert lines[1] == "images a class: 1 to 3; as varied as 1.6 classes of one size"  # 1 / (0.75^2 + 0.25^2)
    assert lines[2].startswith("image size: width 8 to 200 (median 20), height 8 pixels, 75% PNG, 25% JPEG, ")
    assert lines[2].endswith(" KB each; of 4 images looked at")


def test_a_contact_sheet_has_a_row_for_each_class(tmp_path: Path) -> None:
    out = mixed_set(tmp_path)
    result = CliRunner().invoke(app, ["info", str(out), "--sheet", str(tmp_path / "sheet.png"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sampled"]["images"] == 4
    assert f"contact sheet: {tmp_path / 'sheet.png'}" in result.stderr
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert sheet.shape == (2 * 100 + 4, 160 + 10 * 100, 3)
    tiles = [
        (sheet[4 + 100 * row : 100 + 100 * row, 160 + 100 * i : 256 + 100 * i] != 255).any()
        for row in (0, 1)
        for i in range(4)
    ]
    assert tiles == [True, True, True, False, True, False, False, False]  # three cats, one dog
    assert (sheet[:, :160] < 100).any()  # their names


def test_a_sheet_that_cannot_be_written_is_told_in_two_lines(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["info", str(mixed_set(tmp_path)), "--sheet", str(tmp_path / "no" / "sheet.png")])
    assert result.exit_code == 5
    assert [line[:6] for line in result.stderr.splitlines()] == ["error:", "hint: "]
