from pathlib import Path

import pytest

from vitscale.remember import made_once


def test_what_takes_long_is_made_once_and_without_a_disk_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make() -> str:
        made.append("é")
        return "é"

    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "cache"))
    assert [made_once("text", make) for _ in range(3)] == ["é"] * 3
    assert len(made) == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "file"))
    assert [made_once("text", make) for _ in range(2)] == ["é"] * 2
    assert len(made) == 3
