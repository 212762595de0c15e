"""Local shards that are not, or not quite, the ones that were indexed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest

from small_sets import encoded, packed, write_tar
from vitscale.data import replaced
from vitscale.data.indexing import build
from vitscale.data.shards import open_shards
from vitscale.errors import VitscaleError
from vitscale.locations import locate


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "cache"))


def two_shards(folder: Path, label: bytes = b"1") -> Path:
    """Both count from 0, so that the second one's keys get its name before them."""
    for name in ("a", "b"):
        write_tar(folder / f"{name}.tar", {"0.png": encoded(0), "0.cls": b"0", "1.png": encoded(1), "1.cls": label})
    return folder


def touch(path: Path, time: int) -> None:
    """However coarse the clock of the file system is."""
    os.utime(path, ns=(time, time))


def versions(folder: Path) -> list[str]:
    return [shard["version"] for shard in json.loads((folder / "dataset.json").read_text())["shards"]]


def no_reading(*_: object) -> None:
    raise AssertionError("a shard was read again")


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_shard_of_the_same_size_and_other_labels_is_refused(tmp_path: Path, name: str) -> None:
    folder = two_shards(tmp_path / "set")
    open_shards(folder)
    shutil.copy(two_shards(tmp_path / "other", label=b"0") / f"{name}.tar", folder)
    touch(folder / f"{name}.tar", 1)
    with pytest.raises(VitscaleError, match=rf"{name}\.tar: the shard was replaced") as error:
        open_shards(folder)
    assert error.value.exit_code == 5
    assert "`vitscale data index LOCATION --again`" in error.value.problems[0].hint
    build(locate(str(folder)), again=True)
    assert sorted(open_shards(folder).labels.tolist()) == [0, 0, 0, 1]


def test_a_shard_of_the_same_size_and_more_samples_is_refused(tmp_path: Path) -> None:
    folder = two_shards(tmp_path / "set")
    size = (folder / "a.tar").stat().st_size
    open_shards(folder)
    write_tar(folder / "a.tar", {f"{i}.{ext}": b"0" for i in range(3) for ext in ("png", "cls")})
    assert (folder / "a.tar").stat().st_size == size
    touch(folder / "a.tar", 1)
    with pytest.raises(VitscaleError, match=r"a\.tar: the shard was replaced"):
        open_shards(folder)


def test_a_copied_set_is_read_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = two_shards(tmp_path / "set")
    before = open_shards(folder)
    for name in ("a.tar", "b.tar"):
        touch(folder / name, 1)
    assert open_shards(folder).fingerprint == before.fingerprint
    assert versions(folder) == ["1", "1"]
    monkeypatch.setattr(replaced, "contents_of", no_reading)
    assert open_shards(folder).read(3) == encoded(1)


def test_what_has_no_recorded_time_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed sets, and indexes from before the time was recorded."""
    monkeypatch.setattr(replaced, "contents_of", no_reading)
    old = two_shards(tmp_path / "old")
    open_shards(old)
    description = json.loads((old / "dataset.json").read_text())
    for shard in description["shards"]:
        del shard["version"]
    (old / "dataset.json").write_text(json.dumps(description))
    for folder in (old, packed(tmp_path).folder):
        for path in folder.glob("*.tar"):
            touch(path, 1)
        assert open_shards(folder).read(0)


def compressed(path: Path, image: int, label: bytes = b"0") -> Path:
    """Images of one size in a compression that changes no size either."""
    tar = write_tar(path.with_name("plain.tar"), {"0.png": encoded(image), "0.cls": label})
    path.write_bytes(gzip.compress(tar.read_bytes(), compresslevel=0, mtime=0))
    tar.unlink()
    return path


def test_a_compressed_shard_that_was_replaced_is_unpacked_again(tmp_path: Path) -> None:
    assert len(encoded(0)) == len(encoded(1))
    (tmp_path / "set").mkdir()
    path = compressed(tmp_path / "set" / "a.tar.gz", 0)
    assert open_shards(path.parent).read(0) == encoded(0)
    touch(compressed(path, 1), 1)
    assert open_shards(path.parent).read(0) == encoded(1)
    touch(compressed(path, 1, label=b"1"), 2)
    with pytest.raises(VitscaleError, match=r"a\.tar\.gz: the shard was replaced"):
        open_shards(path.parent)


def test_a_compressed_shard_that_is_replaced_after_opening_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    path = compressed(tmp_path / "set" / "a.tar.gz", 0)
    shards = open_shards(path.parent)
    touch(compressed(path, 1), 1)
    shutil.rmtree(tmp_path / "cache" / "shards")
    with pytest.raises(VitscaleError, match=r"a\.tar\.gz: the shard was replaced"):
        shards.read(0)
