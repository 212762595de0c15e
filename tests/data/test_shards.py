from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from small_sets import encoded, packed, write_tar
from vitscale.data.shards import open_shards
from vitscale.errors import VitscaleError


def foreign(folder: Path, count: int = 6) -> Path:
    members = {}
    for i in range(count):
        members |= {f"train/{i:04d}.jpg": encoded(i, "JPEG"), f"train/{i:04d}.cls": str(i % 3).encode()}
    write_tar(folder / "train-0000.tar", members)
    by_json = {"b.png": encoded(7), "b.json": b'{"label": 1}', "c.webp": encoded(8, "WEBP"), "c.json": b'{"cls": 2}'}
    write_tar(folder / "train-0001.tar", by_json)
    return folder


def test_reads_what_was_packed_from_many_threads(tmp_path: Path) -> None:
    out = packed(tmp_path).folder
    with open_shards(out) as shards:
        assert len(shards) == 24
        assert shards.num_classes == 3
        assert shards.classes == ("class0", "class1", "class2")
        assert shards.image_size == (12, 10)
        with ThreadPoolExecutor(4) as pool:
            images = list(pool.map(shards.read, range(24)))
        for i, data in enumerate(images):
            folder, name = str(shards.keys[i]).split("/")
            assert data == (tmp_path / "set-images" / folder / f"{name}.png").read_bytes()
            assert shards.classes[shards.labels[i]] == folder


def test_description_is_readable_without_numpy(tmp_path: Path) -> None:
    done = packed(tmp_path)
    document = json.loads((done.folder / "dataset.json").read_text())
    assert document["schema"] == 1
    assert document["samples"] == 24
    assert document["class_counts"] == [8, 8, 8]
    assert document["image_size"] == [12, 10]
    assert document["fingerprint"] == open_shards(done.folder).fingerprint
    assert sum(shard["samples"] for shard in document["shards"]) == 24
    assert document["bytes"] == sum(path.stat().st_size for path in done.folder.glob("*.tar"))


def test_foreign_tars_are_indexed_once(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "wds")
    first = open_shards(folder)
    assert first.keys.tolist()[:2] == ["train/0000", "train/0001"]
    assert first.labels.tolist() == [0, 1, 2, 0, 1, 2, 1, 2]
    assert first.read(6) == encoded(7)
    assert (folder / "index.parquet").exists()
    again = open_shards(folder)
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.keys, first.keys)


def test_fingerprint_depends_on_keys_and_labels_and_not_on_the_cut(tmp_path: Path) -> None:
    samples = {f"{i}.png": encoded(i) for i in range(4)} | {f"{i}.cls": b"0" for i in range(4)}
    members = {name: samples[name] for i in range(4) for name in (f"{i}.png", f"{i}.cls")}
    write_tar(tmp_path / "one" / "a.tar", members)
    half = dict(list(members.items())[:4])
    write_tar(tmp_path / "two" / "a.tar", half)
    write_tar(tmp_path / "two" / "b.tar", {k: v for k, v in members.items() if k not in half})
    write_tar(tmp_path / "other" / "a.tar", members | {"3.cls": b"1"})
    prints = [open_shards(tmp_path / name).fingerprint for name in ("one", "two", "other")]
    assert prints[0] == prints[1] != prints[2]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(VitscaleError, match="no such folder") as error:
        open_shards(tmp_path / "nowhere")
    assert error.value.exit_code == 5


def test_empty_shard_folder(tmp_path: Path) -> None:
    with pytest.raises(VitscaleError, match="no shards in this folder"):
        open_shards(tmp_path)


def test_shards_without_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"readme.txt": b"nothing"})
    with pytest.raises(VitscaleError, match="no images in its shard\\n"):
        open_shards(tmp_path)


@pytest.mark.parametrize("cut", [1, 512, 1024, 1500, 4000])
def test_truncated_packed_shard_is_named(tmp_path: Path, cut: int) -> None:
    out = packed(tmp_path).folder
    shard = out / "set-000001.tar"
    os.truncate(shard, shard.stat().st_size - cut)
    with pytest.raises(VitscaleError, match=r"set-000001\.tar: the shard is truncated"):
        open_shards(out)


def test_truncated_foreign_shard_is_named_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = foreign(tmp_path / "wds") / "train-0000.tar"
    data = whole.read_bytes()
    end = len(data.rstrip(b"\0"))
    for size in range(0, end, 700):
        cut = tmp_path / f"cut{size}"
        cut.mkdir()
        (cut / "train-0000.tar").write_bytes(data[:size])
        with pytest.raises(VitscaleError, match=r"train-0000\.tar: ") as error:
            open_shards(cut)
        assert error.value.exit_code == 5
        shutil.rmtree(cut)


def test_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    shard = foreign(tmp_path / "wds") / "train-0000.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(b"train/0003.jpg") + 150] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(VitscaleError, match="the shard is damaged at byte"):
        open_shards(shard.parent)


@pytest.mark.parametrize(
    ("label", "message"),
    [(None, "has no label"), (b"cat", "is no number: 'cat'"), (b"-1", "outside the range: -1"), (b"", "has no label")],
)
def test_bad_labels_name_shard_and_key(tmp_path: Path, label: bytes | None, message: str) -> None:
    members = {"x/7.png": encoded(0)} | ({} if label is None else {"x/7.cls": label})
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(VitscaleError, match=message) as error:
        open_shards(tmp_path)
    assert "a.tar: " in str(error.value)
    assert "'x/7'" in str(error.value)


@pytest.mark.parametrize("label", [b"2000000000", b"1000000"])
def test_a_time_or_an_id_is_no_label(tmp_path: Path, label: bytes) -> None:
    write_tar(tmp_path / "a.tar", {"x/6.png": encoded(0), "x/6.cls": b"0"})
    write_tar(tmp_path / "b.tar", {"x/7.png": encoded(0), "x/7.cls": label})
    with pytest.raises(
        VitscaleError, match=rf"b\.tar: the label of sample 'x/7' is no number .*{label.decode()}"
    ) as error:
        open_shards(tmp_path)
    assert error.value.exit_code == 5


def test_a_shard_that_goes_away_while_reading(tmp_path: Path) -> None:
    out = packed(tmp_path).folder
    shards = open_shards(out)
    (out / "set-000000.tar").unlink()
    with pytest.raises(VitscaleError, match=r"set-000000\.tar: No such file"):
        shards.read(0)
    os.truncate(out / "set-000001.tar", 600)
    with pytest.raises(VitscaleError, match=r"set-000001\.tar: the shard is truncated: sample 'class"):
        shards.read(15)


def test_unfinished_pack_is_not_taken_for_a_data_set(tmp_path: Path) -> None:
    out = packed(tmp_path).folder
    (out / "dataset.json").unlink()
    (out / ".packing.json").write_text("{}")
    with pytest.raises(VitscaleError, match="the pack is unfinished"):
        open_shards(out)
