from __future__ import annotations

import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from small_sets import class_folders, encoded
from vitscale.data.pack import Plan, pack
from vitscale.data.shards import open_shards
from vitscale.data.sources import Options, open_source
from vitscale.errors import VitscaleError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library converts stays in the test's folder, and it looks nothing up."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.utils.tqdm, "disable_progress_bars", lambda: None, raising=False)
    datasets.disable_progress_bars()


def folder_set(root: Path) -> Path:
    class_folders(root / "train")
    class_folders(root / "test", per_class=2)
    return root


def test_a_data_set_packs_with_its_bytes_labels_and_class_names(tmp_path: Path) -> None:
    root = folder_set(tmp_path / "set")
    source = open_source(Path(f"hf:{root}"))
    out = pack(source, tmp_path / "out", Plan(name="set")).folder
    with open_shards(out) as shards:
        assert shards.classes == ("class0", "class1", "class2")
        assert np.bincount(shards.labels).tolist() == [8, 8, 8]
        originals = {path.read_bytes(): path.parent.name for path in (root / "train").rglob("*.png")}
        for i in range(24):
            assert shards.classes[shards.labels[i]] == originals[shards.read(i)]


def test_split_and_columns_are_chosen(tmp_path: Path) -> None:
    root = folder_set(tmp_path / "set")
    assert len(open_source(Path(f"hf:{root}"), options=Options(split="test"))) == 6
    with pytest.raises(VitscaleError, match="no column 'nope' of that kind") as error:
        open_source(Path(f"hf:{root}"), options=Options(label_column="nope"))
    assert error.value.problems[0].hint == "--label-column is one of label"
    with pytest.raises(VitscaleError, match=r"cannot be loaded \(.*[Uu]nknown split") as error:
        open_source(Path(f"hf:{root}"), options=Options(split="dev"))
    assert error.value.exit_code == 5


def table(path: Path, **columns: object) -> Path:
    features = datasets.Features(
        {name: datasets.Image() if name.startswith("img") else datasets.Value("int64") for name in columns}
    )
    path.mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path / "train.parquet")
    return path


def test_labels_without_names_and_images_of_other_formats(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.bmp")
    images = [{"bytes": (tmp_path / "a.bmp").read_bytes(), "path": None}, {"bytes": encoded(3, "JPEG"), "path": None}]
    root = table(tmp_path / "table", img=images, fine=[1, 0])
    source = open_source(Path(f"hf:{root}"))
    assert source.classes == ("0", "1")
    first, second = source.read(np.array([0, 1]))
    assert (first.ext, second.ext, second.data) == ("png", "jpg", encoded(3, "JPEG"))  # type: ignore[union-attr]


def test_what_it_is_of_several_columns_must_be_said(tmp_path: Path) -> None:
    images = [{"bytes": encoded(i), "path": None} for i in range(2)]
    root = table(tmp_path / "table", img=images, fine=[1, 0], coarse=[0, 0])
    with pytest.raises(VitscaleError, match="2 columns could be it") as error:
        open_source(Path(f"hf:{root}"))
    assert error.value.problems[0].hint == "--label-column is one of fine, coarse"
    assert len(open_source(Path(f"hf:{root}"), options=Options(label_column="fine"))) == 2


def test_another_image_in_the_same_place_has_another_key(tmp_path: Path) -> None:
    keys = []
    for seed in (1, 2):
        root = table(tmp_path / str(seed), img=[{"bytes": encoded(seed), "path": None}], label=[0])
        keys += open_source(Path(f"hf:{root}")).keys
    assert keys[0].startswith("train-00000000-")
    assert len(set(keys)) == 2


def test_an_unreadable_image_is_skipped_like_any_other(tmp_path: Path) -> None:
    images = [{"bytes": data, "path": None} for data in (b"broken", encoded(1), encoded(2))]
    root = table(tmp_path / "table", img=images, label=[0, 0, 1])
    packed = pack(open_source(Path(f"hf:{root}")), tmp_path / "out", Plan(name="t", max_bad=0.5))
    assert [(file.endswith("train image 0"), reason) for file, reason in packed.bad] == [(True, "not an image")]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(VitscaleError, match="hf:cifar10: the datasets library is not installed") as error:
        open_source(Path("hf:cifar10"))
    assert error.value.problems[0].hint == "pip install 'vitscale[hf]'"
