from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from servers import Fault, file_server
from small_sets import encoded, foreign, packed, source_of, write_tar
from vitscale.cli.data import app
from vitscale.data import remote
from vitscale.data.indexing import build
from vitscale.data.inspect import info, verify
from vitscale.data.pack import Packed, Plan, pack
from vitscale.data.shards import open_shards
from vitscale.data.sources import open_source
from vitscale.errors import VitscaleError
from vitscale.locations import cache_folder, locate


def test_info(tmp_path: Path) -> None:
    facts = info(packed(tmp_path).folder)
    assert facts["samples"] == 24
    assert (facts["smallest_class"], facts["largest_class"]) == (8, 8)
    assert facts["classes"] == ["class0", "class1", "class2"]
    assert facts["shards"] == 3


def test_a_whole_set_verifies(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    facts = verify(packed(tmp_path).folder, progress=lambda done, total: seen.append((done, total)))
    assert facts["samples"] == 24
    assert seen[-1] == (24, 24)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    out = packed(tmp_path).folder
    shards = open_shards(out)
    _, offset, size = (int(x) for x in shards.places[12])
    path = Path(shards.shard(12))
    data = bytearray(path.read_bytes())
    data[offset + size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(VitscaleError) as error:
        verify(out)
    assert error.value.exit_code == 5
    assert f"{path}: its bytes are not those that were packed" in str(error.value)
    # What the hint says: the shard has its size, so that `pack` alone takes it for whole.
    assert "delete it and run the `vitscale data` command" in str(error.value)
    path.unlink()
    assert packed_again(tmp_path).mended == (path.name,)
    verify(out)


def packed_again(tmp_path: Path) -> Packed:
    return pack(open_source(tmp_path / "set-images"), tmp_path / "set", Plan(name="set", shard_samples=10))


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    members = {f"{i}.png": encoded(i) for i in range(6)}
    members["2.png"] = members["2.png"][:50]
    members["4.png"] = b""
    samples = [(f"{i}.png", members[f"{i}.png"]) for i in range(6)]
    write_tar(tmp_path / "a.tar", {n: d for name, data in samples for n, d in ((name, data), (name[0] + ".cls", b"1"))})
    write_tar(tmp_path / "b.tar", {"5.png": encoded(5), "5.cls": b"0"})
    with pytest.raises(VitscaleError) as error:
        verify(tmp_path)
    problems = [problem.message for problem in error.value.problems]
    assert len(problems) == 3
    assert "key '5' names several samples" in problems[0]
    assert "sample '2' cannot be decoded" in problems[1]
    assert "sample '4' cannot be decoded (the file is empty)" in problems[2]


def test_many_problems_are_counted(tmp_path: Path) -> None:
    members = {}
    for i in range(40):
        members |= {f"{i}.png": b"broken", f"{i}.cls": b"0"}
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(VitscaleError) as error:
        verify(tmp_path)
    assert len(error.value.problems) == 21
    assert "20 problems more" in error.value.problems[-1].message


def test_another_shard_of_the_same_size_is_found(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": encoded(0), "0.cls": b"0"})
    open_shards(tmp_path)
    before = (tmp_path / "a.tar").stat().st_mtime_ns
    write_tar(tmp_path / "a.tar", {"1.png": encoded(0), "1.cls": b"1"})
    os.utime(tmp_path / "a.tar", ns=(before, before))  # or it would not even be opened
    with pytest.raises(VitscaleError, match="not those of the index") as error:
        verify(tmp_path)
    assert "they are made again from the shards" in str(error.value)
    for name in ("index.parquet", "dataset.json"):
        (tmp_path / name).unlink()
    assert verify(tmp_path)["samples"] == 1


def test_verify_finds_what_the_index_found_and_more(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_tar(
        folder / "a.tar",
        {"0.png": encoded(0), "0.cls": b"0", "1.png": encoded(1), "2.png": encoded(2), "2.cls": b"cat"},
    )
    whole = write_tar(folder / "b.tar", {"3.png": encoded(3), "3.cls": b"0", "4.png": encoded(4), "4.cls": b"1"})
    os.truncate(whole, 2700)
    (folder / "c.tar").write_bytes(b"")
    with pytest.raises(VitscaleError) as error:
        verify(folder)
    assert error.value.exit_code == 5
    assert [problem.message.removeprefix(f"{folder}/") for problem in error.value.problems] == [
        "b.tar: the shard is truncated after 2,700 bytes",
        "c.tar: the shard is empty (0 bytes)",
        "a.tar: sample '1': it has no label (neither cls nor a label in its json)",
        "a.tar: sample '2': its label is no number: 'cat'",
        "b.tar: sample '4': its bytes are cut off by the end of the shard",
    ]
    assert "copy this shard again, then `vitscale data index" in error.value.problems[0].hint
    facts = info(folder)
    assert [problem["key"] for problem in facts["problems"]] == ["1", "2", "4"]
    assert sorted(facts["damaged"]) == ["b.tar", "c.tar"]
    assert facts["class_counts"] == [2]


def test_a_remote_set_is_verified_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "cache"))
    out = packed(tmp_path).folder
    with file_server(out) as server:
        build(locate(server.url))
        assert verify(server.url)["samples"] == 24
        data = bytearray((out / "set-000001.tar").read_bytes())
        data[-2000] ^= 1
        (out / "set-000001.tar").write_bytes(data)
        for path in (tmp_path / "cache" / "shards").glob("*/*"):
            path.unlink()
        with pytest.raises(VitscaleError, match=r"set-000001\.tar: the shard was replaced") as error:
            verify(server.url)
        assert len(error.value.problems) == 1


def test_keys_that_lead_out_of_the_folder_are_found(tmp_path: Path) -> None:
    keys = ["ok", "../../evil", "/etc/evil", "a/../../evil", "a..b"]
    write_tar(
        tmp_path / "a.tar", {f"{key}.{ext}": d for key in keys for ext, d in (("png", encoded(0)), ("cls", b"0"))}
    )
    with pytest.raises(VitscaleError) as error:
        verify(tmp_path)
    assert [problem.message.partition(" leads out")[0] for problem in error.value.problems] == [
        f"{tmp_path}/a.tar: the key {key!r}" for key in keys[1:4]
    ]
    assert "never writes there" in error.value.problems[0].hint


def labelled(folder: Path, labels: list[int]) -> Path:
    members: dict[str, bytes] = {}
    for i, label in enumerate(labels):
        members |= {f"{i}.png": encoded(i), f"{i}.cls": b"%d" % label}
    write_tar(folder / "a.tar", members)
    return folder


def test_a_label_far_above_all_others_is_found(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "set", [0, 999, 1, 2])
    reason = "its label 999 leaves 996 of 1,000 classes without images"
    with pytest.raises(VitscaleError) as error:
        verify(folder)
    assert [problem.message for problem in error.value.problems] == [f"{folder}/a.tar: sample '1': {reason}"]
    for command in ("info", "index"):
        assert f"sample '1': {reason}" in CliRunner().invoke(app, [command, str(folder)]).stderr


@pytest.mark.parametrize("labels", [[0, 99], [*range(0, 100), 199]])
def test_some_classes_without_images_are_nothing_special(tmp_path: Path, labels: list[int]) -> None:
    folder = labelled(tmp_path / "set", labels)
    assert verify(folder)["samples"] == len(labels)
    assert "label" not in CliRunner().invoke(app, ["info", str(folder)]).stderr


def test_a_packed_set_may_have_empty_classes(tmp_path: Path) -> None:
    labelled(tmp_path / "in", [0, 999])
    folder = pack(source_of(tmp_path / "in", allow_empty=True), tmp_path / "out", Plan(name="out")).folder
    assert info(folder)["suspect"] is None


def test_what_concerns_all_shards_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "cache"))
    with file_server(foreign(tmp_path / "set")) as server:
        build(locate(server.url))
        shutil.rmtree(tmp_path / "cache" / "shards")
        with monkeypatch.context() as patched:
            patched.setenv("VITSCALE_CACHE_SIZE", "1kB")
            with pytest.raises(VitscaleError) as error:
                verify(server.url)
        assert [problem.message.partition(": ")[2] for problem in error.value.problems] == [
            "1,000 bytes are too few for the pieces that are read at once"
        ]
        monkeypatch.setattr(remote, "_clients", {})
        monkeypatch.setenv("VITSCALE_TIMEOUT", "x")
        with pytest.raises(VitscaleError, match="VITSCALE_TIMEOUT='x' is no number") as error:
            verify(server.url)
        assert (error.value.exit_code, len(error.value.problems)) == (2, 1)


def test_a_server_that_does_not_answer_is_not_asked_for_every_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    for i in range(9):
        write_tar(tmp_path / f"s-{i}.tar", {f"{i}.png": encoded(i), f"{i}.cls": b"0"})
    with file_server(tmp_path) as server:
        place = server.url + "/s-{0..8}.tar"
        build(locate(place))
        for piece in (cache_folder() / "shards").glob("*/*"):
            piece.unlink()
        server.requests.clear()
        server.always = Fault("status", 503)
        with pytest.raises(VitscaleError, match=r"503") as error:
            verify(place)
    assert len(server.requests) == 3 * remote.TRIES
    assert error.value.problems[-1].message.endswith("6 further shards were not looked at")
