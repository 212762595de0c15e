from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import Fault, FileServer, file_server
from small_sets import encoded, foreign, packed, write_tar
from vitscale.data import indexing, remote
from vitscale.data.indexing import build
from vitscale.data.shards import open_shards
from vitscale.errors import VitscaleError
from vitscale.locations import locate
from vitscale.study.datasets import describe


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(remote, "_given_up", {})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    with file_server(foreign(tmp_path / "served", shards=6)) as server:
        yield server


def test_an_interrupted_index_goes_on(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "THREADS", 1)
    location = locate(server.url + "/s-{0000..0005}.tar")
    good = [Fault("short", 10**9)] * 3  # longer than any answer: no fault at all
    server.faults = [*good, Fault("status", 404)]
    with pytest.raises(VitscaleError, match=r"s-0003\.tar: there is no such file"):
        build(location)
    assert location.described is None
    shutil.rmtree(tmp_path / "cache" / "shards")
    server.requests.clear()
    seen: list[tuple[int, int]] = []
    folder = build(location, progress=lambda done, total: seen.append((done, total)))
    assert [path for path, _ in server.requests] == ["s-0003.tar", "s-0004.tar", "s-0005.tar"]
    assert seen == [(i, 6) for i in range(1, 7)]
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "index.parquet"]
    assert open_shards(location.text).fingerprint == open_shards(foreign(tmp_path / "local", shards=6)).fingerprint


def test_a_shard_that_changed_since_the_interruption_is_read_again(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "THREADS", 1)
    location = locate(server.url + "/s-{0000..0001}.tar")
    server.faults = [Fault("short", 10**9), Fault("status", 404)]
    with pytest.raises(VitscaleError):
        build(location)
    foreign(tmp_path / "other", shards=3)
    shutil.copy(tmp_path / "other" / "s-0002.tar", server.folder / "s-0000.tar")
    build(location)
    assert open_shards(location.text).keys[0] == "00012"


def test_the_index_of_a_packed_set_is_taken(tmp_path: Path) -> None:
    with file_server(packed(tmp_path).folder) as server:
        build(locate(server.url))
        assert sorted(path for path, _ in server.requests) == ["classes.json", "dataset.json", "index.parquet"]
        assert open_shards(server.url).fingerprint == open_shards(server.folder).fingerprint
        shutil.rmtree(tmp_path / "cache" / "shards", ignore_errors=True)
        server.requests.clear()
        build(locate(server.url), again=True)
        assert {path for path, _ in server.requests} == {f"set-00000{i}.tar" for i in range(3)}


def test_another_index_beside_the_shards_may_be_older_than_they_are(server: FileServer) -> None:
    open_shards(server.folder)
    write_tar(server.folder / "s-0000.tar", {"new.jpg": b"x", "new.cls": b"0"})
    build(locate(server.url))
    assert open_shards(server.url).keys[0] == "new"


def test_planning_reads_the_index_of_remote_shards(server: FileServer, tmp_path: Path) -> None:
    place = server.url + "/s-{0000..0005}.tar"
    with pytest.raises(VitscaleError, match="its shards have no index yet") as error:
        describe(place, base=tmp_path)
    assert error.value.problems[0].hint == f"vitscale data index {place} reads them once"
    build(locate(place))
    requests = len(server.requests) + server.probes
    dataset = describe(place, base=tmp_path)
    assert (dataset.samples, dataset.num_classes) == (36, 3)
    assert dataset.fingerprint == open_shards(place).fingerprint
    assert len(server.requests) + server.probes == requests


def test_a_wrong_location_makes_the_study_invalid(tmp_path: Path) -> None:
    with pytest.raises(VitscaleError, match="unknown scheme 's4://'") as error:
        describe("s4://b/a.tar", base=tmp_path)
    assert error.value.exit_code == 3


def test_the_index_of_a_folder_that_cannot_be_written_to_is_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = foreign(tmp_path / "set")
    before = sorted(path.name for path in folder.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        shards = open_shards(folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert locate(str(folder)).described == locate(str(folder)).kept
    monkeypatch.setattr(indexing, "_build", None)  # it is not made again
    assert open_shards(folder).fingerprint == shards.fingerprint
    assert describe("set", base=tmp_path).samples == 18


def test_a_remote_index_and_a_cache_that_cannot_be_written_to(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "file"))
    with pytest.raises(VitscaleError, match=r"/file is a file, where a folder is needed") as error:
        build(locate(server.url))
    assert error.value.exit_code == 5


def test_what_was_packed_is_not_indexed_again(tmp_path: Path) -> None:
    folder = packed(tmp_path).folder
    before = (folder / "dataset.json").read_bytes()
    with pytest.raises(VitscaleError, match="was packed, and its index with it"):
        build(locate(str(folder)), again=True)
    assert (folder / "dataset.json").read_bytes() == before


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VitscaleError, match=f"{tmp_path}/nofolder: no such folder of shards") as error:
        build(locate("nofolder", base=tmp_path))
    assert error.value.exit_code == 5
    assert not list(tmp_path.iterdir())


def test_a_missing_shard_of_a_pattern(tmp_path: Path) -> None:
    foreign(tmp_path, shards=2)
    with pytest.raises(VitscaleError, match=r"s-0002\.tar: No such file or directory") as error:
        build(locate("s-{0000..0002}.tar", base=tmp_path))
    assert error.value.exit_code == 5


def test_nothing_is_ever_written_where_names_point(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "deep" / "set"
    names = ["../../evil", f"{tmp_path}/evil", "ok"]
    write_tar(
        folder / "a.tar",
        {f"{name}{ext}": encoded(0) if ext == ".png" else b"0" for name in names for ext in (".png", ".cls")},
    )
    shards = open_shards(folder)
    assert shards.keys.tolist() == names
    assert [shards.read(i) for i in range(3)] == [encoded(0)] * 3
    left = subprocess.run(["find", tmp_path, "-name", "evil*"], capture_output=True, text=True, check=True)
    assert left.stdout == ""
