from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from small_sets import class_folders, encoded, packed
from vitscale.data.decode import decode
from vitscale.data.pack import Plan, pack
from vitscale.data.shards import open_shards
from vitscale.data.sources import open_source
from vitscale.errors import VitscaleError


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_pack_is_shuffled_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    source = open_source(class_folders(tmp_path / "in"))
    one = pack(source, tmp_path / "one", Plan(name="a", shard_samples=7), workers=1)
    pack(source, tmp_path / "two", Plan(name="a", shard_samples=7), workers=3)
    pack(source, tmp_path / "three", Plan(name="a", shard_samples=7, seed=1))
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert [shard["samples"] for shard in one.description["shards"]] == [7, 7, 7, 3]
    labels = open_shards(tmp_path / "one").labels.tolist()
    assert labels != sorted(labels)
    assert labels != open_shards(tmp_path / "three").labels.tolist()
    assert sorted(content(tmp_path / "one")) == [
        *(f"a-{i:06d}.tar" for i in range(4)),
        "classes.json",
        "dataset.json",
        "index.parquet",
    ]


READER = """
import json, sys, webdataset
samples = webdataset.WebDataset(sys.argv[1:], shardshuffle=False).decode("rgb8").to_tuple("__key__", "png", "cls")
print(json.dumps([[key, image.tolist(), label] for key, image, label in samples]))
"""


def test_shards_are_what_webdataset_reads(tmp_path: Path) -> None:
    out = packed(tmp_path).folder
    urls = sorted(str(path) for path in out.glob("*.tar"))
    # In a process of its own: its reader leaves files open, which is an error here.
    answer = subprocess.run([sys.executable, "-c", READER, *urls], capture_output=True, check=True)
    samples = json.loads(answer.stdout)
    shards = open_shards(out)
    assert [key for key, _, _ in samples] == shards.keys.tolist()
    assert [label for _, _, label in samples] == shards.labels.tolist()
    for i, (_, image, _) in enumerate(samples):
        np.testing.assert_array_equal(np.array(image), decode(shards.read(i)))


def test_shard_size_in_bytes(tmp_path: Path) -> None:
    source = open_source(class_folders(tmp_path / "in"))
    done = pack(source, tmp_path / "out", Plan(name="a", shard_samples=1, shard_bytes=2000))
    sizes = [shard["samples"] for shard in done.description["shards"]]
    assert len(sizes) > 2
    assert sum(sizes) == 24
    assert min(sizes[:-1]) > 1


def test_file_formats_keep_their_bytes_or_become_png(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    for fmt, name in (("JPEG", "1.jpeg"), ("PNG", "2.png"), ("WEBP", "3.webp"), ("BMP", "4.bmp"), ("GIF", "5.gif")):
        (folder / name).write_bytes(encoded(1, fmt))
    (folder / "6.jpg").write_bytes(encoded(2))  # a PNG by its content
    pack(open_source(tmp_path / "in"), tmp_path / "out", Plan(name="x"))
    shards = open_shards(tmp_path / "out")
    found = {str(key): shards.read(i) for i, key in enumerate(shards.keys)}
    assert found["a/1"] == (folder / "1.jpeg").read_bytes()
    assert found["a/6"] == (folder / "6.jpg").read_bytes()
    assert found["a/4"].startswith(b"\x89PNG")
    assert found["a/5"].startswith(b"\x89PNG")


def test_rerun_on_a_finished_pack_says_so_and_touches_nothing(tmp_path: Path) -> None:
    source = open_source(class_folders(tmp_path / "in"))
    plan = Plan(name="a", shard_samples=7)
    pack(source, tmp_path / "out", plan)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert pack(source, tmp_path / "out", plan).was_there
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_another_data_set_is_never_overwritten(tmp_path: Path) -> None:
    done = packed(tmp_path)
    other = open_source(class_folders(tmp_path / "other", classes=2))
    before = content(done.folder)
    with pytest.raises(VitscaleError, match="holds another data set"):
        pack(other, done.folder, Plan(name="b"))
    assert content(done.folder) == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(VitscaleError, match=r"not an empty folder \(thesis\.tex\)"):
        pack(other, mine, Plan(name="b"))
    assert (mine / "thesis.tex").read_text() == "years of work"


SCRIPT = """
import sys, time
from pathlib import Path
from vitscale.data.pack import Plan, pack
from vitscale.data.sources import open_source
def slow(done, total):
    print(done, flush=True)
    time.sleep(0.05)
pack(open_source(Path(sys.argv[1])), Path(sys.argv[2]), Plan(name="a", shard_samples=5, max_bad=0.2), progress=slow)
"""


def test_a_killed_pack_goes_on_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    images = class_folders(tmp_path / "in")
    for name in ("class0/000.png", "class1/003.png", "class2/005.png"):
        (images / name).write_bytes(b"broken")
    plan = Plan(name="a", shard_samples=5, max_bad=0.2)
    whole = pack(open_source(images), tmp_path / "whole", plan)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(images), str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 14:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert list((tmp_path / "out").glob(".*.partial"))
    with pytest.raises(VitscaleError, match="unfinished"):
        open_shards(tmp_path / "out")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert kept
    resumed = pack(open_source(images), tmp_path / "out", plan)
    assert resumed.resumed_at >= 5
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert sorted(resumed.bad) == sorted(whole.bad)


def test_a_full_disk_leaves_whole_shards_only_and_is_gone_on_with(tmp_path: Path) -> None:
    images = class_folders(tmp_path / "in", per_class=30, size=(40, 40))
    source, plan = open_source(images), Plan(name="a", shard_samples=10)
    pack(source, tmp_path / "whole", plan)
    sizes = [path.stat().st_size for path in (tmp_path / "whole").glob("*.tar")]
    assert min(sizes) > 40_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file may not grow beyond this: what a write to a full disk does, at a place that the test chooses.
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(VitscaleError, match="no space left") as error:
            pack(source, tmp_path / "out", plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.exit_code == 5
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".packing.json"]
    pack(source, tmp_path / "out", plan)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_unreadable_images_are_skipped_counted_and_named(tmp_path: Path) -> None:
    images = class_folders(tmp_path / "in")
    cut = images / "class1" / "002.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (images / "class2" / "001.png").write_bytes(b"")
    done = pack(open_source(images), tmp_path / "out", Plan(name="a", max_bad=0.1))
    assert done.description["samples"] == 22
    assert done.description["class_counts"] == [8, 7, 7]
    assert sorted(Path(file).name for file, _ in done.bad) == ["001.png", "002.png"]
    with pytest.raises(VitscaleError, match=r"above --max-bad 0\.05") as error:
        pack(open_source(images), tmp_path / "strict", Plan(name="a", max_bad=0.05))
    assert ".png: cannot be read (" in str(error.value)
    assert not list((tmp_path / "strict").glob("*.tar"))


def test_a_class_that_loses_all_its_images_is_an_error(tmp_path: Path) -> None:
    images = class_folders(tmp_path / "in", per_class=2)
    for path in (images / "class1").iterdir():
        path.write_bytes(b"no")
    with pytest.raises(VitscaleError, match="class 'class1' has no readable image"):
        pack(open_source(images), tmp_path / "out", Plan(name="a", max_bad=0.5))


def test_images_of_several_sizes_have_no_common_one(tmp_path: Path) -> None:
    images = class_folders(tmp_path / "in")
    (images / "class0" / "000.png").write_bytes(encoded(1, width=30))
    done = pack(open_source(images), tmp_path / "out", Plan(name="a", shard_samples=5))
    assert done.description["image_size"] is None


def test_long_and_foreign_names_survive(tmp_path: Path) -> None:
    images = class_folders(tmp_path / "in", classes=1, per_class=1)
    name = "ein Bäcker.v1.2 " + "x" * 180
    (images / "class0" / f"{name}.png").write_bytes(encoded(5))
    pack(open_source(images), tmp_path / "out", Plan(name="größe"))
    shards = open_shards(tmp_path / "out")
    i = next(i for i, key in enumerate(shards.keys) if "Bäcker" in key)
    assert shards.keys[i] == "class0/" + name.replace(".", "%2E")
    assert shards.read(i) == encoded(5)


def test_classes_are_written_by_name(tmp_path: Path) -> None:
    assert json.loads((packed(tmp_path).folder / "classes.json").read_text()) == ["class0", "class1", "class2"]


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    source = open_source(class_folders(tmp_path / "in"))
    pack(source, tmp_path / "out", Plan(name="a"), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (24, 24)


def test_grey_arrays_stay_lossless(tmp_path: Path) -> None:
    from small_sets import idx_folder

    grey = np.random.default_rng(0).integers(0, 256, (20, 9, 7), dtype=np.uint8)
    folder = idx_folder(tmp_path / "idx", grey, np.arange(20) % 2)
    pack(open_source(folder), tmp_path / "out", Plan(name="a"))
    shards = open_shards(tmp_path / "out")
    for i, key in enumerate(shards.keys):
        (tmp_path / "x.png").write_bytes(shards.read(i))
        with Image.open(tmp_path / "x.png") as image:
            np.testing.assert_array_equal(np.asarray(image), grey[int(str(key).split("-")[1])])
