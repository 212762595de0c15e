from __future__ import annotations

from pathlib import Path

import pytest

from vitscale.errors import VitscaleError
from vitscale.locations import cache_folder, cache_size, expand, locate


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    location = locate("set", base=tmp_path)
    assert (location.text, location.names, location.remote) == (str(tmp_path / "set"), None, False)
    assert location.folder == tmp_path / "set"
    assert location.shard("a.tar") == f"{tmp_path}/set/a.tar"


def test_a_folder_whose_name_looks_like_something_else(tmp_path: Path) -> None:
    for name in ("odd.tar", "a{0..1}"):
        (tmp_path / name).mkdir()
        assert locate(name, base=tmp_path).folder == tmp_path / name


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("t-{08..11}.tar", ["t-08.tar", "t-09.tar", "t-10.tar", "t-11.tar"]),
        ("t-{8..11}.tar", ["t-8.tar", "t-9.tar", "t-10.tar", "t-11.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_brace_patterns(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names


def test_imagenet_on_the_hub() -> None:
    location = locate("hf://datasets/timm/imagenet-1k-wds/imagenet1k-train-{0000..1023}.tar")
    assert location.names is not None
    assert len(location.names) == 1024
    assert location.shard(location.names[-1]) == "hf://datasets/timm/imagenet-1k-wds/imagenet1k-train-1023.tar"
    assert location.remote


def test_lists_are_relative_to_where_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.txt").write_text("# mine\nx/a.tar\n\nx/b-{0..1}.tar # two\ns3://bucket/c.tar\n")
    location = locate("lists/l.txt", base=tmp_path)
    here = f"{tmp_path}/lists/x"
    assert location.names is not None
    assert [location.shard(name) for name in location.names] == [
        f"{here}/a.tar", f"{here}/b-0.tar", f"{here}/b-1.tar", "s3://bucket/c.tar",
    ]  # fmt: skip
    assert location.remote
    several = locate("x/a.tar::y/b.tar", base=tmp_path)
    assert (several.root, several.names) == (str(tmp_path), ("x/a.tar", "y/b.tar"))
    assert locate(several.text, base=Path("/elsewhere")) == several


def test_the_index_of_the_same_shards_is_the_same_one(tmp_path: Path) -> None:
    one = locate("s-{0..1}.tar", base=tmp_path)
    assert one.kept == locate("s-0.tar::s-1.tar", base=tmp_path).kept
    assert one.kept != locate("s-1.tar::s-0.tar", base=tmp_path).kept


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("s4://b/a.tar", "unknown scheme 's4://'", "did you mean 's3://'?"),
        ("htps://h/a.tar", "unknown scheme 'htps://'", "did you mean 'https://'?"),
        ("x" * 300, "no file has a name of more than 255 bytes", "a folder, a .tar"),
        ("http://", "names no host", "http://host/folder/"),
        ("s3://", "names no bucket", "s3://bucket/folder/"),
        ("s3:///set/a.tar", "names no bucket", "s3://bucket/folder/"),
        ("hf://", "names no repository", "hf://datasets/people/set/"),
        ("quantum://h/a.tar", "unknown scheme 'quantum://'", "one of http://"),
        ("a-{9..1}.tar", "9..1 runs backwards", "{0000..1023}"),
        ("a-{0..99999999999}.tar", "names 100,000,000,000 shards", "{0000..1023}"),
        ("a-{0..3.tar", "its braces don't pair", "train-{0000..1023}.tar"),
        ("a.tar::", "has an empty place", "lists hold shards"),
        ("a.tar::folder", "is no .tar", "lists hold shards"),
        ("a.tar::a.tar", "twice", "name each shard once"),
        ("", "needs a name", "for example"),
    ],
)
def test_what_is_no_location(text: str, message: str, hint: str) -> None:
    with pytest.raises(VitscaleError) as error:
        locate(text)
    assert error.value.exit_code == 2
    assert message in error.value.problems[0].message
    assert hint in error.value.problems[0].hint


def test_a_list_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("# nothing yet\n")
    with pytest.raises(VitscaleError, match="lists no shards"):
        locate("l.txt", base=tmp_path)
    (tmp_path / "l.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(VitscaleError, match="not a text in UTF-8"):
        locate("l.txt", base=tmp_path)


@pytest.mark.parametrize(
    ("given", "size"), [("200GB", 200 * 10**9), ("64 MiB", 64 * 2**20), ("1.5g", 1_500_000_000), ("5000", 5000)]
)
def test_the_bound_of_the_cache(monkeypatch: pytest.MonkeyPatch, given: str, size: int) -> None:
    monkeypatch.setenv("VITSCALE_CACHE_SIZE", given)
    assert cache_size() == size


@pytest.mark.parametrize("given", ["much", "-1", "0", "12XB"])
def test_a_bound_that_is_none(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("VITSCALE_CACHE_SIZE", given)
    with pytest.raises(VitscaleError, match="is no size") as error:
        cache_size()
    assert error.value.exit_code == 2


def test_the_cache_lies_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("VITSCALE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "vitscale"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "vitscale"
