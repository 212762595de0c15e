import os
import random
import time
from pathlib import Path

import pandas as pd
import pytest

from vitscale.errors import VitscaleError
from vitscale.results import merged, store
from vitscale.results.store import part_name, read, write_part


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(merged, "WORTH", 3)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the parts that were read, as they are."""
    names: list[str] = []
    read_part = store._read_part
    monkeypatch.setattr(store, "_read_part", lambda path: names.append(path.name) or read_part(path))
    return names


def study(folder: Path, runs: int) -> Path:
    for number in range(runs):
        write_part([{"value": number / 100, "seed": number}], folder, run_id=f"{number:03}", attempt=1)
    return folder


def copies(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "results").glob("*"))


def alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """What is read without a copy."""
    with monkeypatch.context() as patched:
        patched.setattr(merged, "WORTH", 10**9)
        return read(folder)


def test_of_a_folder_read_before_no_part_is_opened_again(tmp_path: Path, opened: list[str]) -> None:
    folder = study(tmp_path / "study", 5)
    first = read(folder)
    assert sorted(opened) == [f"{number:03}-1.parquet" for number in range(5)]
    opened.clear()
    pd.testing.assert_frame_equal(read(folder), first)
    assert opened == []


def test_only_what_is_new_changed_or_gone_since_differs(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = study(tmp_path / "study", 6)
    read(folder)
    opened.clear()
    write_part([{"value": 0.5}, {"value": 0.6}], folder, run_id="0015", attempt=1)  # between the second and the third
    write_part([{"value": 0.77, "seed": 4}], folder, run_id="004", attempt=1)
    (folder / part_name("002", 1)).unlink()
    found = read(folder)
    assert sorted(opened) == ["0015-1.parquet", "004-1.parquet"]
    assert found["run_id"].tolist() == ["000", "001", "0015", "0015", "003", "004", "005"]
    assert found["value"].tolist() == [0.0, 0.01, 0.5, 0.6, 0.03, 0.77, 0.05]
    pd.testing.assert_frame_equal(found, alone(folder, monkeypatch))


def test_another_file_of_the_same_name_size_and_time_is_read(tmp_path: Path) -> None:
    folder = study(tmp_path / "study", 4)
    read(folder)
    path = folder / part_name("001", 1)
    before = path.stat()
    write_part([{"value": 0.99, "seed": 1}], folder, run_id="001", attempt=1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert read(folder)["value"].tolist() == [0.0, 0.99, 0.02, 0.03]


def test_whatever_happens_to_a_folder_its_rows_are_those_of_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, folder = random.Random(0), study(tmp_path / "study", 8)
    for step in range(60):
        for _ in range(chance.randint(1, 6)):
            run = f"{chance.randrange(30):03}"
            if chance.random() < 0.3:
                (folder / part_name(run, 1)).unlink(missing_ok=True)
            else:
                rows = [{"value": chance.random(), "seed": step} for _ in range(chance.randint(1, 3))]
                write_part(rows, folder, run_id=run, attempt=1)
        pd.testing.assert_frame_equal(read(folder), alone(folder, monkeypatch))


def test_a_damaged_copy_or_that_of_another_version_is_not_used(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = study(tmp_path / "study", 4)
    first = read(folder)
    (copy,) = copies(tmp_path)
    whole = copy.read_bytes()
    for damaged in (whole[:-100], b"", *(flipped(whole, at) for at in range(0, len(whole), len(whole) // 40))):
        copy.write_bytes(damaged)
        opened.clear()
        pd.testing.assert_frame_equal(read(folder), first)
        assert len(opened) == 4
    monkeypatch.setattr(store, "__version__", "another")
    opened.clear()
    pd.testing.assert_frame_equal(read(folder), first)
    assert len(opened) == 4


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def test_a_user_without_a_home_has_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VITSCALE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}[0])
    assert len(read(study(tmp_path / "study", 4))) == 4


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    folder = study(tmp_path / "study", 4)
    (tmp_path / "cache").write_text("a file, not a folder")
    assert read(folder)["seed"].tolist() == [0, 1, 2, 3]


def test_a_part_that_breaks_later_is_named_all_the_same(tmp_path: Path) -> None:
    folder = study(tmp_path / "study", 4)
    read(folder)
    path = folder / part_name("002", 1)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(VitscaleError, match=r"002-1\.parquet"):
        read(folder)


def test_copies_that_nobody_reads_any_more_go(tmp_path: Path) -> None:
    old, new = study(tmp_path / "old", 4), study(tmp_path / "new", 4)
    read(old)
    (first,) = copies(tmp_path)
    os.utime(first, (time.time() - 40 * 86_400,) * 2)
    read(new)
    assert first not in copies(tmp_path)
    assert len(copies(tmp_path)) == 1


def test_few_parts_have_no_copy(tmp_path: Path) -> None:
    assert len(read(study(tmp_path / "study", 2))) == 2
    assert copies(tmp_path) == []
