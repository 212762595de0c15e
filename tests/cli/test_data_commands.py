from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vitscale.cli.data import app


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for c in range(2):
        folder = tmp_path / "images" / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(6):
            out = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), 20 * c + i, dtype=np.uint8)).save(out, format="PNG")
            (folder / f"{i}.png").write_bytes(out.getvalue())
    return tmp_path / "images"


def assert_refused(result: Result, code: int, message: str) -> None:
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"]
    assert message in lines[0]
    assert result.stdout == ""


def test_pack_info_and_verify(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "my set"
    first = run("pack", images, out, "--shard-size", "5")
    assert first.exit_code == 0, first.output
    assert first.stdout.startswith(f"{out}: 12 images, 2 classes, 3 shards, ")
    assert min(path.name for path in out.glob("*.tar")) == "my-set-000000.tar"
    again = run("pack", images, out, "--shard-size", "5")
    assert again.stdout == f"{out} is already there: 12 images, 2 classes\n"
    assert "images a class: 6 to 6" in run("info", out).stdout
    document = json.loads(run("info", out, "--json").stdout)
    assert document["schema"] == 1
    assert document["class_counts"] == [6, 6]
    assert run("verify", out).stdout == f"{out}: 12 images in 3 shards: all whole\n"
    assert json.loads(run("verify", out, "--json").stdout)["samples"] == 12


def test_pack_says_what_it_skipped(images: Path, tmp_path: Path) -> None:
    (images / "class0" / "3.png").write_bytes(b"oops")
    assert_refused(run("pack", images, tmp_path / "a"), 5, "3.png: cannot be read (not an image)")
    result = run("pack", images, tmp_path / "b", "--max-bad", "0.1", "--json")
    assert result.exit_code == 0
    assert "3.png: not an image" in result.stderr
    packed = json.loads(result.stdout)["packed"][0]
    assert packed["samples"] == 11
    assert packed["skipped"][0]["reason"] == "not an image"


def test_fractals(tmp_path: Path) -> None:
    out = tmp_path / "fractals"
    result = run("fractals", out, "--classes", "3", "--per-class", "4", "--resolution", "16", "--workers", "1")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{out}: 12 images, 3 classes, 1 shard, ")
    assert "is already there" in run("fractals", out, "--classes", 3, "--per-class", 4, "--resolution", 16).stdout
    assert_refused(run("fractals", out, "--seed", 1), 5, "holds another data set")


@pytest.mark.parametrize("command", ["info", "verify"])
def test_missing_and_empty_folders(command: str, tmp_path: Path) -> None:
    assert_refused(run(command, tmp_path / "gone"), 5, "gone: no such folder of shards")
    assert_refused(run(command, tmp_path), 5, "no shards in this folder")


def test_verify_names_a_truncated_tar(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    run("pack", images, out)
    shard = out / "set-000000.tar"
    os.truncate(shard, shard.stat().st_size - 2000)
    assert_refused(run("verify", out), 5, "set-000000.tar: the shard is truncated")


def test_index_says_what_it_found_and_where_it_lies(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "cache"))
    run("pack", images, tmp_path / "set", "--shard-size", "5")
    pattern = f"{tmp_path}/set/set-{{000000..000001}}.tar"
    result = run("index", pattern)
    kept = next((tmp_path / "cache" / "index").iterdir())
    assert result.stdout == f"{pattern}: 10 images, 2 classes, 2 shards; index in {kept}\n"
    assert result.stderr == ""
    assert json.loads(run("index", pattern, "--json").stdout)["index"] == str(kept)
    assert run("verify", pattern).stdout == f"{pattern}: 10 images in 2 shards: all whole\n"
    os.truncate(tmp_path / "set" / "set-000001.tar", 5700)
    again = run("index", pattern, "--again")
    assert again.exit_code == 0
    assert [line.split(":")[0] for line in again.stderr.splitlines()] == ["warning", "warning"]
    assert "set-000001.tar: the shard is truncated after 5,700 bytes" in again.stderr
    assert "1 sample of " in again.stderr
    assert_refused(run("index", tmp_path / "set", "--again"), 5, "was packed, and its index with it")
    assert_refused(run("index", "s4://bucket/"), 2, "unknown scheme 's4://'")


def test_wrong_words(images: Path, tmp_path: Path) -> None:
    assert_refused(run("fetch", "imagenet"), 2, "unknown data set 'imagenet'")
    assert_refused(run("pack", images, tmp_path / "a", "--shard-size", "many"), 2, "'many' is not understood")
    assert_refused(run("pack", tmp_path / "gone", tmp_path / "a"), 5, "gone: no such file or folder")
    assert_refused(run("pack", images, tmp_path / "a", "--kind", "film"), 2, "'film' is no kind of source")
    (tmp_path / "file").write_text("")
    assert_refused(run("pack", images, tmp_path / "file"), 5, "file is a file, where a folder is needed")


@pytest.mark.parametrize(("text", "shards"), [("4", 3), ("200B", 4), ("1.5 GB", 1)])
def test_shard_sizes(images: Path, tmp_path: Path, text: str, shards: int) -> None:
    run("pack", images, tmp_path / "out", "--shard-size", text)
    assert len(list((tmp_path / "out").glob("*.tar"))) == shards


def test_the_verbs_load_nothing_heavy_before_they_run() -> None:
    heavy = ("torch", "numpy", "pandas", "pyarrow", "PIL")
    code = f"import sys, vitscale.cli.data; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
