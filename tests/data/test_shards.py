from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from small_sets import encoded, packed, write_tar
from vitscale.data import access
from vitscale.data.pack import Plan
from vitscale.data.shards import open_shards
from vitscale.data.tars import index_shard
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


def test_a_truncated_foreign_shard_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = foreign(tmp_path / "wds") / "train-0000.tar"
    sizes = [entry.offset + entry.size for entry in index_shard(whole)]
    data = whole.read_bytes()
    for size in range(sizes[0] + 2000, len(data.rstrip(b"\0")), 700):
        cut = tmp_path / f"cut{size}"
        cut.mkdir()
        (cut / "train-0000.tar").write_bytes(data[:size])
        with open_shards(cut) as shards:
            assert "truncated" in shards.damaged["train-0000.tar"]
            good = np.flatnonzero(shards.labels >= 0).tolist()
            assert len(good) >= sum(end + 1536 <= size for end in sizes)
            assert [shards.read(i) for i in good] == [encoded(i, "JPEG") for i in good]
            assert list(shards.problems) in ([], [len(good)])  # at most the sample at the cut, which is the last
        shutil.rmtree(cut)


def test_what_follows_a_damaged_header_is_lost_and_said_so(tmp_path: Path) -> None:
    shard = foreign(tmp_path / "wds") / "train-0000.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(b"train/0003.cls") + 150] ^= 0xFF
    shard.write_bytes(data)
    shards = open_shards(shard.parent)
    assert "the shard is damaged at byte" in shards.damaged["train-0000.tar"]
    assert shards.labels.tolist() == [0, 1, 2, -1, 1, 2]
    assert shards.problems == {3: "the shard is cut off or damaged in it"}
    assert shards.num_classes == 3


def test_shards_with_nothing_to_read_are_an_error_only_where_all_are(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": encoded(0), "0.cls": b"0"})
    (tmp_path / "b.tar").write_bytes(b"")
    (tmp_path / "c.tar").write_bytes(b"no tar at all" * 100)
    shards = open_shards(tmp_path)
    assert len(shards) == 1
    assert shards.damaged == {"b.tar": "the shard is empty (0 bytes)", "c.tar": "the shard is damaged at byte 0"}
    (tmp_path / "none").mkdir()
    (tmp_path / "b.tar").rename(tmp_path / "none" / "b.tar")
    with pytest.raises(VitscaleError, match=r"no images in its shard \(b\.tar: the shard is empty") as error:
        open_shards(tmp_path / "none")
    assert error.value.exit_code == 5


BAD_LABELS = [
    (None, "it has no label"),
    (b"cat", "its label is no number: 'cat'"),
    (b"-1", "its label is outside the range: -1"),
    (b"", "it has no label"),
    (b"1_0", "its label is no number"),
    (b"nan", "its label is no number"),
    (b"2000000000", "its label is no number of a class: 2000000000"),
    (b"1000000", "its label is no number of a class: 1000000"),
    (b"9" * 5000, "its cls has more than 4,096 bytes"),
]


@pytest.mark.parametrize(("label", "problem"), BAD_LABELS)
def test_a_bad_label_keeps_the_place_of_its_sample(tmp_path: Path, label: bytes | None, problem: str) -> None:
    write_tar(tmp_path / "a.tar", {"x/6.png": encoded(0), "x/6.cls": b"1"})
    write_tar(tmp_path / "b.tar", {"x/7.png": encoded(1)} | ({} if label is None else {"x/7.cls": label}))
    for _ in range(2):  # made, then read
        shards = open_shards(tmp_path)
        assert shards.labels.tolist() == [1, -1]
        assert shards.num_classes == 2
        assert list(shards.problems) == [1]
        assert shards.problems[1].startswith(problem)
        assert shards.read(1) == encoded(1)


def test_a_set_without_any_label_is_an_error(tmp_path: Path) -> None:
    """As img2dataset writes it."""
    caption = b'{"key": "000000000", "caption": "a cat", "url": "http://x", "width": 12}'
    write_tar(
        tmp_path / "00000.tar", {"000000000.jpg": encoded(0), "000000000.txt": b"a cat", "000000000.json": caption}
    )
    with pytest.raises(
        VitscaleError, match=r"no label in its shard \(sample '000000000' of 00000\.tar: it has no label"
    ) as error:
        open_shards(tmp_path)
    assert "images and captions have none" in error.value.problems[0].hint


def test_one_very_long_key_does_not_make_all_of_them_long(tmp_path: Path) -> None:
    names = [f"{'d' * 200}/{'k' * 200}{i}" for i in (1, 2)] + ["short"]
    members = {name: data for key in names for name, data in ((f"{key}.png", encoded(0)), (f"{key}.cls", b"0"))}
    write_tar(tmp_path / "a.tar", members)
    shards = open_shards(tmp_path)
    assert [len(key) for key in shards.keys] == [256, 256, 5]
    assert len(set(shards.keys.tolist())) == 3
    assert shards.keys.itemsize == 4 * 256


def test_repeated_keys_do_not_tell_how_the_set_was_cut(tmp_path: Path) -> None:
    samples = [(key, {f"{key}.png": encoded(i), f"{key}.cls": b"0"}) for i, key in enumerate("abcabcabc")]
    for name, cuts in (("thirds", (0, 3, 6, 9)), ("others", (0, 2, 4, 5, 7, 9))):
        for number, (start, end) in enumerate(itertools.pairwise(cuts)):
            members = {name: data for _, parts in samples[start:end] for name, data in parts.items()}
            write_tar(tmp_path / name / f"{name}-{number}.tar", members)
    thirds, others = (open_shards(tmp_path / name) for name in ("thirds", "others"))
    assert thirds.keys.tolist() == ["a", "b", "c", "a%2", "b%2", "c%2", "a%3", "b%3", "c%3"]
    assert others.keys.tolist() == thirds.keys.tolist()
    assert others.fingerprint == thirds.fingerprint
    assert [others.read(i) for i in range(9)] == [thirds.read(i) for i in range(9)] == [encoded(i) for i in range(9)]


def test_keys_that_begin_anew_in_each_shard_stay_apart(tmp_path: Path) -> None:
    for name in ("00000", "00001"):
        write_tar(tmp_path / f"{name}.tar", {"0.png": encoded(0), "0.cls": b"0", "1.png": encoded(1), "1.cls": b"1"})
    shards = open_shards(tmp_path)
    assert shards.keys.tolist() == ["0", "1", "0%2", "1%2"]
    assert not shards.problems


def test_the_second_sample_of_a_key_in_one_shard_is_bad(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": encoded(0), "0.cls": b"0", "1.png": encoded(1), "1.cls": b"1"})
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for name, data in {"0.png": encoded(2), "0.cls": b"1"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    shards = open_shards(tmp_path)
    assert shards.labels.tolist() == [0, 1, -1]
    assert shards.problems == {2: "its key names an earlier sample of the shard"}
    assert len(set(shards.keys.tolist())) == 3


def test_a_shard_that_goes_away_while_reading(tmp_path: Path) -> None:
    out = packed(tmp_path).folder
    shards = open_shards(out)
    (out / "set-000000.tar").unlink()
    with pytest.raises(VitscaleError, match=r"set-000000\.tar: No such file"):
        shards.read(0)
    os.truncate(out / "set-000001.tar", 600)
    with pytest.raises(VitscaleError, match=r"set-000001\.tar: the shard is truncated: 600 bytes, and the index says"):
        shards.read(15)


def test_a_shard_that_is_replaced_while_reading(tmp_path: Path) -> None:
    out = packed(tmp_path).folder
    shards = open_shards(out)
    shards.read(0)
    path = out / "set-000000.tar"
    shutil.copy(path, tmp_path / "copy.tar")
    (tmp_path / "copy.tar").replace(path)
    shards.close()  # as when many others were read meanwhile
    with pytest.raises(VitscaleError, match=r"set-000000\.tar: the shard was replaced while it was read"):
        shards.read(0)
    data = bytearray(path.read_bytes())
    again = open_shards(out)
    again.read(0)
    data[2000] ^= 1
    path.write_bytes(data)  # into the file that is open
    os.utime(path, ns=(1, 1))  # however coarse the clock of the file system is
    with pytest.raises(VitscaleError, match="was replaced while"):
        again.read(0)


def test_more_shards_than_a_process_may_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = packed(tmp_path, plan=Plan(name="set", shard_samples=1)).folder
    shards = open_shards(out)
    monkeypatch.setattr(shards.access._descriptors, "most", 4)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(shards.read, list(range(24)) * 20))
    assert images[:24] * 20 == images
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 4


def test_one_tar_a_pattern_and_a_list_are_sets_too(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "wds")
    whole = open_shards(folder)
    (tmp_path / "list.txt").write_text("# both\nwds/train-0000.tar\n\nwds/train-0001.tar  # the second\n")
    for place in (
        folder / "train-{0000..0001}.tar",
        f"{folder}/train-0000.tar::{folder}/train-0001.tar",
        tmp_path / "list.txt",
    ):
        shards = open_shards(str(place))
        assert shards.fingerprint == whole.fingerprint
        assert shards.read(7) == whole.read(7)
    assert len(open_shards(folder / "train-0001.tar")) == 2
    backwards = open_shards(f"{folder}/train-0001.tar::{folder}/train-0000.tar")
    assert backwards.keys.tolist()[:2] == ["b", "c"]


COMPRESSED = {".tar.gz": gzip.compress, ".tgz": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress}


@pytest.mark.parametrize("suffix", [*COMPRESSED, ".tar.zst"])
def test_compressed_tars_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(access, "PIECE", 1000)
    whole = open_shards(foreign(tmp_path / "wds"))
    pack = COMPRESSED.get(suffix, lambda data: pa.compress(data, "zstd", asbytes=True))
    (tmp_path / "packed").mkdir()
    for path in (tmp_path / "wds").glob("*.tar"):
        (tmp_path / "packed" / (path.stem + suffix)).write_bytes(pack(path.read_bytes()))
    shards = open_shards(tmp_path / "packed")
    assert shards.fingerprint == whole.fingerprint
    assert [shards.read(i) for i in range(8)] == [whole.read(i) for i in range(8)]
    for path in (tmp_path / "cache" / "shards").glob("*/[0-9]*"):
        path.unlink()  # evicted
    shards.close()
    assert [shards.read(i) for i in range(8)] == [whole.read(i) for i in range(8)]


def test_a_compressed_tar_that_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "cache"))
    data = (foreign(tmp_path / "wds") / "train-0000.tar").read_bytes()
    (tmp_path / "packed").mkdir()
    packed = gzip.compress(data)
    (tmp_path / "packed" / "a.tar.gz").write_bytes(packed[: len(packed) // 2])
    shards = open_shards(tmp_path / "packed")
    assert "its compression is cut off or damaged" in shards.damaged["a.tar.gz"]
    assert 0 < (shards.labels >= 0).sum() < 6
    assert shards.read(0) == encoded(0, "JPEG")


def test_an_index_without_problems_has_the_columns_it_always_had(tmp_path: Path) -> None:
    packed(tmp_path)
    assert pq.read_table(tmp_path / "set" / "index.parquet").column_names == [
        "shard", "offset", "size", "ext", "key", "label",
    ]  # fmt: skip
    assert "problems" not in json.loads((tmp_path / "set" / "dataset.json").read_text())


def test_unfinished_pack_is_not_taken_for_a_data_set(tmp_path: Path) -> None:
    out = packed(tmp_path).folder
    (out / "dataset.json").unlink()
    (out / ".packing.json").write_text("{}")
    with pytest.raises(VitscaleError, match="the pack is unfinished"):
        open_shards(out)


def test_a_shard_replaced_after_opening_and_before_its_first_read_is_refused(tmp_path: Path) -> None:
    members = {name: data for i in range(4) for name, data in ((f"{i}.png", encoded(i)), (f"{i}.cls", b"0"))}
    path = write_tar(tmp_path / "a.tar", members)
    open_shards(tmp_path).close()
    shards, before = open_shards(tmp_path), path.stat()
    write_tar(path, {**members, "2.cls": b"1"})
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    with pytest.raises(VitscaleError, match=r"a\.tar: the shard was replaced") as error:
        shards.read(0)
    assert error.value.exit_code == 5
