from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.data.headers import Member
from vitscale.data.tars import Contents, Entry, _found, _Sample, index_tar


def index(data: bytes) -> Contents:
    return index_tar(lambda offset, size: data[offset : offset + size], len(data))


def tar(*members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT, **facts: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in facts.items():
                setattr(info, key, value)
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def keys(contents: Contents) -> list[str]:
    return [entry.key for entry in contents.entries]


@pytest.mark.parametrize(
    ("form", "length"),
    [
        (form, length)
        for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
        for length in (2, 50, 99, 100, 101, 150, 240)
        if form != tarfile.USTAR_FORMAT or length <= 180  # it has no room for more
    ],
)
def test_offsets_and_names_are_those_of_tarfile(form: int, length: int) -> None:
    """For names of all lengths, in the three ways in which they are written."""
    name = f"train/{'d' * (length // 2)}/ü{'k' * (length // 2)}"
    members = [(f"{name}{i}.{ext}", b"%d" % i * (300 * i + 1)) for i in range(5) for ext in ("jpg", "cls")]
    data = tar(*members, form=form)
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        expected = [(info.name, info.offset_data, info.size) for info in file][::2]
    contents = index(data)
    assert not contents.damage
    assert [(f"{entry.key}.jpg", entry.offset, entry.size) for entry in contents.entries] == expected


@pytest.mark.parametrize(
    ("label", "number"),
    [
        ([("a.cls", b"7")], 7),
        ([("a.cls", b" 7\n")], 7),
        ([("a.cls", b"7.0")], 7),
        ([("a.json", b'{"label": 7, "width": 3}')], 7),
        ([("a.json", b'{"cls": "7"}')], 7),
        ([("a.json", b'{"class_id": 7}'), ("a.txt", b"a cat")], 7),
        ([("a.cls", b"7"), ("a.json", b'{"label": 8}')], 7),
        ([("a.json", b'{"label": 8}'), ("a.cls", b"7")], 7),
        ([("a.cls", b""), ("a.json", b'{"label": 7}')], 7),
        ([("a.json", b'{"label": null, "cls": 7}')], 7),
        ([("a.json", b'{"label": 0, "cls": 7}')], 0),
        ([("a.json", b'{"label": null}')], -1),
        ([("a.json", b'{"label": true}')], -1),
        ([("a.json", b'{"label": 7.5}')], -1),
        ([("a.json", b'["label", 7]')], -1),
        ([("a.json", b"{")], -1),
        ([("a.json", b"[" * 100_000)], -1),
        ([("a.cls", b"1e3")], -1),
        ([("a.cls", "٣".encode())], -1),
    ],
)
def test_labels(label: list[tuple[str, bytes]], number: int) -> None:
    for members in ([("a.jpg", b"x"), *label], [*label, ("a.jpg", b"x")]):
        (entry,) = index(tar(*members)).entries
        assert entry.label == number
        assert bool(entry.problem) == (number == -1)


@pytest.mark.parametrize("ext", ["JPEG", "jpg", "JPG", "png", "webp", "jpeg"])
def test_suffixes_of_images(ext: str) -> None:
    (entry,) = index(tar((f"a.{ext}", b"x"), ("a.cls", b"1"))).entries
    assert entry.ext == ext.lower()


def test_keys_with_dots() -> None:
    """webdataset's key ends at the first dot; where that leaves no image, the last dot is meant."""
    names = ["n01/img.2024.jpg", "n01/img.2024.cls", "n01/img.2025.jpg", "n01/img.2025.cls"]
    contents = index(tar(*[(name, b"5") for name in names]))
    assert keys(contents) == ["n01/img.2024", "n01/img.2025"]
    assert [entry.label for entry in contents.entries] == [5, 5]
    masks = index(tar(("a.jpg", b"x"), ("a.mask.png", b"y"), ("a.cls", b"1")))
    assert [(entry.key, entry.ext) for entry in masks.entries] == [("a", "jpg")]


class Counted(dict[str, Member]):
    """Counts what is looked at."""

    looks = 0

    def __iter__(self) -> Iterator[str]:
        for key in super().__iter__():
            self.looks += 1
            yield key


def test_a_shard_whose_names_share_their_first_part_is_read_in_one_pass() -> None:
    names = [f"train.{i:06d}" for i in range(1000)]
    labels = {f"{name}.cls": b"%d" % i for i, name in enumerate(names)}
    members = Counted({f"{name}.{ext}": Member("", 0, 1) for name in names for ext in ("cls", "jpg")})
    found = list(_found(_Sample("set", members, dict(labels)), 1))
    assert [(entry.key, entry.label) for entry in found] == [(f"set.{name}", i) for i, name in enumerate(names)]
    assert members.looks <= 2 * len(members)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b/c", "./a", "猫/🐈", "a b\n"])
def test_names_are_keys_and_nothing_else(name: str) -> None:
    assert keys(index(tar((f"{name}.jpg", b"x"), (f"{name}.cls", b"1")))) == [name]


def test_names_that_are_not_utf8() -> None:
    name = b"caf\xe9".decode("latin-1")
    data = tar((f"{name}.jpg", b"x"), (f"{name}.cls", b"1"), form=tarfile.GNU_FORMAT)
    latin = data.replace(name.encode(), b"caf\xe9\0")[: len(data)]
    assert keys(index(data)) == ["café"]
    assert all(entry.key.isascii() for entry in index(latin).entries)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_what_is_no_file_is_no_sample(kind: bytes) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        info = tarfile.TarInfo("bad.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        file.addfile(info)
        info = tarfile.TarInfo("good.jpg")
        info.size = 1
        file.addfile(info, io.BytesIO(b"x"))
    assert keys(index(out.getvalue())) == ["good"]


def test_hidden_files_are_no_samples() -> None:
    assert keys(index(tar(("._a.jpg", b"x"), (".DS_Store", b"x"), ("a.jpg", b"x"), ("a.cls", b"1")))) == ["a"]


SAMPLES = [(f"k/{i}.{ext}", data) for i in range(6) for ext, data in (("jpg", b"i" * (700 * i)), ("cls", b"%d" % i))]
WHOLE = [tar(*SAMPLES, form=form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
LONG = tar(*[(f"{'n' * 200}{name}", data) for name, data in SAMPLES])


def assert_sane(data: bytes) -> None:
    start = time.monotonic()
    entries: list[Entry] = index(data).entries
    assert time.monotonic() - start < 5
    for entry in entries:
        assert 0 <= entry.offset <= entry.offset + entry.size <= len(data)
        assert (entry.label == -1) == bool(entry.problem)
    assert len(entries) <= len(data) // 512


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([*WHOLE, LONG]),
    st.lists(st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=30)), max_size=6),
)
def test_changed_bytes_are_indexed_without_harm(data: bytes, changes: list[tuple[int, bytes]]) -> None:
    changed = bytearray(data)
    for place, some in changes:
        place %= len(data)
        changed[place : place + len(some)] = some
    assert_sane(bytes(changed))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*WHOLE, LONG]), st.integers(0, 30_000), st.binary(max_size=2000))
def test_cut_tars_are_indexed_as_far_as_they_go(data: bytes, size: int, after: bytes) -> None:
    whole = {entry.key: entry for entry in index(data).entries}
    size = min(size, len(data))
    assert_sane(data[:size] + after)
    for entry in index(data[:size]).entries:
        assert entry.problem or entry == whole[entry.key]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"0", b"L", b"K", b"x", b"g", b"S", b"5", b"1", b"V", b"\0"]),
            st.one_of(st.integers(0, 5000), st.sampled_from([2**33, 2**63, 2**87])),
            st.binary(max_size=700),
        ),
        max_size=30,
    )
)
def test_headers_with_right_checksums_and_wrong_everything_else(blocks: list[tuple[bytes, int, bytes]]) -> None:
    data = b""
    for kind, size, body in blocks:
        field = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big", signed=False)[-11:]
        head = bytearray(b"a.jpg".ljust(100, b"\0") + b"\0" * 24 + field + b"\0" * 12 + b" " * 8 + kind)
        head = head.ljust(512, b"\0")
        head[148:156] = b"%06o\0 " % sum(head)
        data += bytes(head) + body.ljust(-(-len(body) // 512) * 512, b"\0")
    assert_sane(data)


def test_a_chain_of_long_names_is_no_recursion() -> None:
    head = bytearray(b"x".ljust(100, b"\0") + b"\0" * 24 + b"%011o\0" % 0 + b"\0" * 12 + b" " * 8 + b"L").ljust(
        512, b"\0"
    )
    head[148:156] = b"%06o\0 " % sum(head)
    assert "truncated" in index(bytes(head) * 5000).damage
