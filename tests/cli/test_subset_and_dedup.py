from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vitscale import exclusions
from vitscale.cli.data import app
from vitscale.config import Data
from vitscale.data.shards import open_shards
from vitscale.data.subsets import split


def picture(seed: int, quality: int = 95) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    out = io.BytesIO()
    coarse.resize((48, 48), Image.Resampling.BICUBIC).save(out, format="JPEG", quality=quality)
    return out.getvalue()


def shards_of(folder: Path, pictures: dict[str, bytes], shards: int = 3) -> Path:
    """Foreign shards: a label for every sample, its key's number modulo 4."""
    folder.mkdir()
    for number in range(shards):
        with tarfile.open(folder / f"{number:04d}.tar", "w") as tar:
            for i, (key, data) in enumerate(pictures.items()):
                if i * shards // len(pictures) != number:
                    continue
                for name, content in ((f"{key}.jpg", data), (f"{key}.cls", str(i % 4).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return shards_of(tmp_path / "train", {f"n{i % 4}/{i:03d}": picture(i) for i in range(60)})


def test_a_subset_holds_what_a_run_with_these_settings_trains_on(tmp_path: Path, train: Path) -> None:
    words = ("--fraction", 0.5, "--classes", 3, "--seed", 2, "--val-examples", 8, "--shard-size", 8)
    code, stdout, stderr = run("subset", train, tmp_path / "part", *words)
    assert code == 0, stderr
    assert stdout.startswith(f"{tmp_path / 'part'}: ")
    with open_shards(train) as whole, open_shards(tmp_path / "part") as part:
        data = Data(fraction=0.5, classes=3, val_examples=8)
        expected = split(whole.keys, whole.labels, data, num_classes=4, seed=2)
        assert part.keys.tolist() == whole.keys[expected.train].tolist()  # in the order of the shards
        assert part.labels.tolist() == expected.labels(whole.labels)[expected.train].tolist()
        assert part.num_classes == 3
        assert len(part.names) == -(-len(part) // 8)
        assert all(part.read(i) == whole.read(int(j)) for i, j in enumerate(expected.train))
    assert run("subset", train, tmp_path / "part", *words)[1].startswith(f"{tmp_path / 'part'} is already there")


def test_shards_can_be_packed_anew_in_a_shuffled_order(tmp_path: Path, train: Path) -> None:
    assert run("pack", train, tmp_path / "again")[0] == 0
    with open_shards(train) as old, open_shards(tmp_path / "again") as new:
        assert new.keys.tolist() != old.keys.tolist()
        assert sorted(zip(new.keys, new.labels, strict=True)) == sorted(zip(old.keys, old.labels, strict=True))


def test_keys_that_leave_their_folder_are_written_inside_it(tmp_path: Path) -> None:
    odd = ("../../up", "/etc/passwd", "a/../../b", "fine/one", "etc/passwd")
    source = shards_of(tmp_path / "odd", {name: picture(i) for i, name in enumerate(odd)}, shards=1)
    assert run("subset", source, tmp_path / "out", "--examples", 5)[0] == 0
    with open_shards(tmp_path / "out") as shards:
        assert shards.keys.tolist() == ["up", "etc/passwd%1", "b", "fine/one", "etc/passwd"]
    with tarfile.open(tmp_path / "out" / "out-000000.tar") as tar:
        names = tar.getnames()
    assert len(names) == 10
    assert not any(name.startswith("/") or ".." in name.split("/") for name in names)


def test_keys_with_dots_stay_samples_of_their_own(tmp_path: Path) -> None:
    names = ("a", "c", "a.b", "d", "a.b.c")
    source = shards_of(tmp_path / "dots", {name: picture(i) for i, name in enumerate(names)}, shards=5)
    for command in ("pack", "subset"):
        words = ("--examples", 5) if command == "subset" else ()
        assert run(command, source, tmp_path / command, *words)[0] == 0
        with open_shards(tmp_path / command) as shards:
            assert sorted(shards.keys.tolist()) == ["a", "a%2Eb", "a%2Eb%2Ec", "c", "d"]


def test_near_duplicates_of_a_test_set_are_listed_and_left_out(tmp_path: Path, train: Path) -> None:
    tests = shards_of(tmp_path / "test", {f"t{i}": picture(i, quality=50) for i in (7, 31, 1000)}, shards=1)
    code, stdout, stderr = run("dedup", train, "--against", tests, "--out", tmp_path / "list.json")
    assert code == 0, stderr
    assert stdout == f"2 of 60 training images are near-duplicates of 3 test images: {tmp_path / 'list.json'}\n"
    assert f'data.exclude = "{tmp_path / "list.json"}"' in stderr
    document = json.loads((tmp_path / "list.json").read_text())
    assert [(entry["key"], entry["of"]) for entry in document["excluded"]] == [
        ("n3/007", f"{tests} 0"),
        ("n3/031", f"{tests} 1"),
    ]
    found = exclusions.read(tmp_path / "list.json")
    assert dict(found.labels) == {"n3/007": 3, "n3/031": 3}
    with open_shards(train) as shards:
        assert found.fingerprint == shards.fingerprint
    assert run("subset", train, tmp_path / "clean", "--exclude", tmp_path / "list.json")[0] == 0
    with open_shards(tmp_path / "clean") as clean:
        assert len(clean) == 58
        assert not {"n3/007", "n3/031"} & set(clean.keys.tolist())


def test_a_task_is_named_and_no_duplicate_is_an_answer_too(tmp_path: Path, train: Path) -> None:
    code, stdout, stderr = run("dedup", train, "--against", "digits", "--out", tmp_path / "list.json", "--json")
    assert code == 0, stderr
    document = json.loads(stdout)
    assert (document["against"], document["excluded"], document["schema"]) == ({"digits": 797}, [], 1)
    assert len(exclusions.read(tmp_path / "list.json")) == 0


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (("subset", "{train}", "{out}"), 2, "nothing says which part of the set", "--examples, --fraction"),
        (("subset", "{train}", "{out}", "--examples", 3, "--fraction", 0.5), 2, "are both given", "keep one"),
        (("subset", "{train}", "{out}", "--examples", 61), 5, "61 examples were asked for and the data set has 60", "at most 60"),
        (("subset", "{train}", "{out}", "--exclude", "{out}"), 5, "No such file", "vitscale data dedup TRAIN"),
        (("dedup", "{train}", "--against", "{train}", "--out", "{train}"), 2, "is a folder", "--out names"),
        (("dedup", "{train}", "--against", "digit"), 5, "digit: no such folder", ""),
        (("dedup", "{train}", "--against", "digits", "--out", "{out}/no/list.json"), 5, "no such folder", "make it"),
        (("subset", "{train}", "{out}", "--classes", 9), 5, "9 classes were asked for and 4 have images", "at most 4"),
        (("subset", "{train}", "{out}", "--fraction", 0), 2, "--fraction is 0", "above 0"),
        (("subset", "{train}", "{out}", "--exclude", "{foreign}"), 5, "was made for another data set", "dedup on this one"),
        (("subset", "{train}", "{out}", "--exclude", "{mislabelled}"), 5, "is excluded with label 0 and has 3 in the data set", "again"),
        (("subset", "{train}", "{out}", "--exclude", "{everything}"), 5, "all images are excluded", "again"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, train: Path, words: tuple[object, ...], code: int, message: str, hint: str) -> None:
    keys = {f"n{i % 4}/{i:03d}": i % 4 for i in range(60)}
    lists = {"foreign": ({}, "beef"), "mislabelled": ({"n3/007": 0}, None), "everything": (keys, None)}
    for name, (excluded, fingerprint) in lists.items():
        entries = [{"key": key, "label": label} for key, label in excluded.items()]
        document = {"schema": 1, "fingerprint": fingerprint, "excluded": entries}
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    paths = {name: tmp_path / f"{name}.json" for name in lists}
    filled = [str(word).format(train=train, out=tmp_path / "out", **paths) for word in words]
    status, _, stderr = run(*filled)
    error, way_out = stderr.splitlines()[-2:]
    assert (status, error[:7], way_out[:6]) == (code, "error: ", "hint: "), stderr
    assert message in error
    assert hint in way_out
