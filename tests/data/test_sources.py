from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from small_sets import class_folders, encoded, idx_bytes, idx_folder, source_of
from vitscale.data.folder import unique_keys
from vitscale.data.pack import Plan, pack
from vitscale.data.shards import open_shards
from vitscale.data.sources import open_source
from vitscale.errors import VitscaleError

GREY = np.random.default_rng(0).integers(0, 256, (12, 6, 5), dtype=np.uint8)
LABELS = np.arange(12) % 3


def refused(path: Path, message: str, **options: object) -> None:
    """The path is refused with exit code 5 and a message that says why."""
    with pytest.raises(VitscaleError, match=message) as error:
        source_of(path, **options)
    assert error.value.exit_code == 5
    assert len(str(error.value).splitlines()) == 2


def test_class_folders(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "in")
    (root / "class0" / "deeper").mkdir()
    (root / "class0" / "deeper" / "a.b.jpg").write_bytes(encoded(1, "JPEG"))
    (root / "class0" / "notes.txt").write_text("no image")
    (root / ".cache").mkdir()
    source = source_of(root)
    assert source.kind == "folder"
    assert source.classes == ("class0", "class1", "class2")
    assert len(source) == 25
    assert "class0/deeper/a%2Eb" in source.keys


def test_keys_are_unique_and_hold_no_dot() -> None:
    names = ["a.jpg", "a.png", "a.jpg.png", "b.c.png", "b%2Ec.png", "x.y/a.png"]
    keys = unique_keys([Path(name) for name in names])
    assert len(set(keys)) == len(names)
    assert all("." not in key.rsplit("/", 1)[-1] for key in keys)


def test_empty_class_is_named(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "in")
    (root / "dodo").mkdir()
    refused(root, r"in/dodo: class 'dodo' has no images")
    assert source_of(root, allow_empty=True).classes[-1] == "dodo"


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files(tmp_path: Path, zipped: bool) -> None:
    folder = idx_folder(tmp_path / "idx", GREY, LABELS, zipped=zipped)
    source = source_of(folder)
    assert source.kind == "idx"
    assert source.labels.tolist() == LABELS.tolist()
    assert source.classes == ("0", "1", "2")
    assert source_of(folder / f"train-images-idx3-ubyte{'.gz' if zipped else ''}").keys == source.keys
    other = idx_folder(tmp_path / "other", GREY ^ 1, LABELS)
    assert not set(source_of(other).keys) & set(source.keys)


def test_idx_mistakes_name_the_file(tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "idx", GREY, LABELS, zipped=False)
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    refused(folder, "'dev' is no split", split="dev")
    refused(folder, r"label 2 is outside the range 0 to 1", num_classes=2)
    labels.write_bytes(idx_bytes(LABELS[:5]))
    refused(folder, r"train-labels-idx1-ubyte: labels of shape \(5,\) for 12 images")
    labels.unlink()
    refused(folder, r"train-labels-idx1-ubyte: no such file")
    images.write_bytes(images.read_bytes()[:-1])
    refused(folder, r"train-images-idx3-ubyte: 375 bytes, and its header says 376")
    (folder / "t10k-images-idx3-ubyte").write_bytes(b"\x1f\x8b\x08 not gzip")
    refused(folder, r"t10k-images-idx3-ubyte: cannot be read", split="test")


def cifar10(folder: Path, protocol: int = 2, labels: list[int] | None = None) -> Path:
    folder.mkdir(parents=True)
    names = [b"airplane", b"cat", b"frog"]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol))
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = np.random.default_rng(number).integers(0, 256, (3, 3072), dtype=np.uint8)
        batch = {b"data": data, b"labels": labels or [0, 1, 2], b"filenames": [b"x"] * 3}
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    return folder


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar_10(tmp_path: Path, protocol: int) -> None:
    folder = cifar10(tmp_path / "cifar-10-batches-py", protocol)
    source = source_of(folder)
    assert source.kind == "cifar"
    assert source.classes == ("airplane", "cat", "frog")
    assert len(source) == 15
    assert len(source_of(folder, split="test")) == 3
    pack(source, tmp_path / "out", Plan(name="c"))
    shards = open_shards(tmp_path / "out")
    i = next(i for i, key in enumerate(shards.keys) if key.endswith("-000004"))
    (tmp_path / "x.png").write_bytes(shards.read(i))
    planes = pickle.loads((folder / "data_batch_2").read_bytes())[b"data"][1].reshape(3, 32, 32)
    with Image.open(tmp_path / "x.png") as image:
        np.testing.assert_array_equal(np.asarray(image), planes.transpose(1, 2, 0))


def test_cifar_100_has_two_kinds_of_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    meta = {"fine_label_names": ["apple", "pear", "oak"], "coarse_label_names": ["fruit", "tree"]}
    (folder / "meta").write_bytes(pickle.dumps(meta))
    batch = {"data": np.zeros((3, 3072), np.uint8), "fine_labels": [0, 1, 2], "coarse_labels": [0, 0, 1]}
    for split in ("train", "test"):
        (folder / split).write_bytes(pickle.dumps(batch))
    assert source_of(folder).classes == ("apple", "pear", "oak")
    assert source_of(folder, label_column="coarse_labels").labels.tolist() == [0, 0, 1]
    refused(folder, "no labels 'hue'", label_column="hue")


class Evil:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, (f"touch {self.proof}",)


def test_a_pickle_that_asks_for_more_is_refused_and_not_run(tmp_path: Path) -> None:
    folder = cifar10(tmp_path / "cifar")
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Evil(tmp_path / "proof")}))
    refused(folder, r"data_batch_3: not a CIFAR file \(it asks for (posix|nt)\.system")
    assert not (tmp_path / "proof").exists()
    (folder / "data_batch_3").write_bytes(b"\x80\x04garbage")
    refused(folder, r"data_batch_3: not a CIFAR file")
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": np.zeros((3, 10), np.uint8), b"labels": [0, 1, 2]}))
    refused(folder, r"data_batch_3: not a CIFAR batch")


def test_cifar_label_outside_the_names(tmp_path: Path) -> None:
    refused(cifar10(tmp_path / "cifar", labels=[0, 1, 7]), "label 7 is outside the range 0 to 2")


def listed(tmp_path: Path, rows: list[tuple[str, str]], suffix: str = ".csv") -> Path:
    for i, (name, _) in enumerate(rows):
        if name and not (tmp_path / name).exists():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(encoded(i))
    path = tmp_path / f"list{suffix}"
    frame = pd.DataFrame(rows, columns=["path", "label"])
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    path = listed(tmp_path, [("a/1.png", "dog"), ("a/2.png", "cat"), ("b/1.png", "dog")], suffix)
    source = source_of(path)
    assert source.kind == "table"
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [1, 0, 1]
    pack(source, tmp_path / "out", Plan(name="t"))
    shards = open_shards(tmp_path / "out")
    found = {str(key): shards.read(i) for i, key in enumerate(shards.keys)}
    assert found["b/1"] == (tmp_path / "b" / "1.png").read_bytes()


def test_table_mistakes_name_the_line(tmp_path: Path) -> None:
    refused(listed(tmp_path, [("1.png", "0"), ("2.png", "-1")]), r"list\.csv:3: .*label -1 is outside the range 0 to 0")
    refused(listed(tmp_path, [("1.png", "0"), ("2.png", "2")]), r"class '1' has no images")
    refused(listed(tmp_path, [("1.png", "0"), ("2.png", "5")]), r":3: .*label 5 is outside", num_classes=2)
    refused(listed(tmp_path, [("1.png", "0"), ("2.png", "")]), r"list\.csv:3: no label")
    refused(listed(tmp_path, [("1.png", "0"), ("1.png", "0")]), r"list\.csv:3: image '1\.png' is listed twice")
    refused(listed(tmp_path, [("1.png", "0")]), "no column 'tag'", label_column="tag")
    (tmp_path / "list.csv").write_text("path,label\n1.png,0,9\n")
    refused(tmp_path / "list.csv", r"list\.csv:2: 3 fields, and the header has 2")
    (tmp_path / "list.csv").write_text("")
    refused(tmp_path / "list.csv", "the table is empty")
    (tmp_path / "list.parquet").write_bytes(b"PAR1 no")
    refused(tmp_path / "list.parquet", r"list\.parquet: cannot be read")


def numbered(tmp_path: Path, labels: list[str]) -> Path:
    return listed(tmp_path, [(f"{i}.png", label) for i, label in enumerate(labels)])


ELEVEN = [str(i % 11) for i in range(22)]


def test_a_slip_among_numbers_is_refused_and_renumbers_nothing(tmp_path: Path) -> None:
    path = numbered(tmp_path, [*ELEVEN[:13], "1O", *ELEVEN[14:]])
    refused(path, r"list\.csv:15: label '1O' is not a number")
    refused(path, r"list\.csv:15: label '1O' is not a number", num_classes=11)
    refused(
        numbered(tmp_path, [*ELEVEN[:13], "2.5", *ELEVEN[14:]]), r"list\.csv:15: label '2\.5' is not a whole number"
    )
    refused(numbered(tmp_path, ["cat", "dog"]), r"list\.csv:2: label 'cat' is not a number", num_classes=2)
    refused(numbered(tmp_path, ["0", "nan", "1", "NaN"]), r"list\.csv:3: no label \(nan\)")
    # A fifth of them: these are names.
    assert source_of(numbered(tmp_path, ["0", "1", "2", "10", "none"])).classes == ("0", "1", "10", "2", "none")


def test_whole_floats_are_numbers(tmp_path: Path) -> None:
    source = source_of(numbered(tmp_path, [f"{label}.0" for label in ELEVEN]))
    assert source.classes == tuple(str(i) for i in range(11))
    assert source.labels.tolist() == [int(label) for label in ELEVEN]
    assert source_of(numbered(tmp_path, ["0", "1.", "2.000"])).labels.tolist() == [0, 1, 2]


def test_a_null_in_parquet_is_no_label(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    images = [f"{i}.png" for i in range(3)]
    pd.DataFrame({"path": images, "label": [0, None, 1]}).to_parquet(path)
    refused(path, r"list\.parquet: row 2: no label")
    pq.write_table(pa.table({"path": images, "label": [0.0, 1.0, float("nan")]}), path)
    refused(path, r"list\.parquet: row 3: no label")
    pq.write_table(pa.table({"path": images, "label": [0.0, 1.0, 2.0]}), path)
    assert source_of(path).classes == ("0", "1", "2")


@pytest.mark.parametrize("label", ["1700000000", "1000000", str(10**30), str(-(10**30)), "1700000000.0"])
def test_a_time_or_an_id_is_no_label(tmp_path: Path, label: str) -> None:
    refused(numbered(tmp_path, ["0", label, "1"]), rf"list\.csv:3: label {label} is no number of a class")


def test_more_classes_than_any_set_has_are_refused(tmp_path: Path) -> None:
    for path in (numbered(tmp_path, ["0", "1"]), idx_folder(tmp_path / "idx", GREY, LABELS)):
        with pytest.raises(VitscaleError, match="--num-classes 2000000000 is no number of classes") as error:
            source_of(path, num_classes=2_000_000_000)
        assert error.value.exit_code == 2


def test_a_parquet_column_of_images_is_not_one_of_paths(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    for images, message in (
        ([b"abc", b"def"], r"column 'image' holds bytes \(binary\), not paths"),
        ([{"bytes": b"abc", "path": "a"}] * 2, r"column 'image' holds records \(struct"),
    ):
        pq.write_table(pa.table({"image": images, "label": [0, 1]}), path)
        refused(path, message)
    pq.write_table(pa.table({"image": pa.array(["a.png", "b.png"]).dictionary_encode(), "the.label": [0, 1]}), path)
    assert source_of(path, label_column="the.label").labels.tolist() == [0, 1]


def test_a_kind_that_the_path_is_not_says_so(tmp_path: Path) -> None:
    path = numbered(tmp_path, ["0", "1"])
    with pytest.raises(VitscaleError, match="a folder, not a table") as error:
        open_source(tmp_path, kind="table")
    assert str(path) in error.value.problems[0].hint
    with pytest.raises(VitscaleError, match=r"list\.csv: a file, not a folder of class folders"):
        open_source(path, kind="folder")


def test_one_folder_beside_a_table_may_be_either(tmp_path: Path) -> None:
    path = listed(tmp_path, [("img/1.png", "0"), ("img/2.png", "1")])
    with pytest.raises(VitscaleError, match=r"one folder, img, beside list\.csv") as error:
        open_source(tmp_path)
    assert f"give the table itself: {path}; or say --kind folder" in error.value.problems[0].hint
    assert open_source(tmp_path, kind="folder").classes == ("img",)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "3.png").write_bytes(encoded(3))
    assert open_source(tmp_path).classes == ("img", "more")


def test_a_listed_image_that_is_missing_counts_as_unreadable(tmp_path: Path) -> None:
    path = listed(tmp_path, [("1.png", "a"), ("2.png", "a")])
    (tmp_path / "2.png").unlink()
    with pytest.raises(VitscaleError, match=r"2\.png: cannot be read \(No such file"):
        pack(source_of(path), tmp_path / "out", Plan(name="t"))


def test_what_is_no_source(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere: no such file or folder")
    refused(tmp_path, "no class folders, IDX files, CIFAR batches or table")
    (tmp_path / "a.bin").write_bytes(b"??")
    refused(tmp_path / "a.bin", "neither a table nor an IDX file")
    (tmp_path / "list.csv").write_text("path,label\n")
    refused(tmp_path, r"a folder with list\.csv in it")
    refused(tmp_path / "list.csv", "no images")
