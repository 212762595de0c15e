from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vitscale.data.cache import Cache
from vitscale.errors import VitscaleError


def fetch(cache: Cache, key: str, number: int = 0, data: bytes = b"x" * 1000) -> bytes:
    descriptor = cache.open(key, number, len(data), lambda: data)
    try:
        return os.pread(descriptor, 10_000, 0)
    finally:
        os.close(descriptor)


def never() -> bytes:
    raise AssertionError("it was there")


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10_000)
    assert fetch(cache, "a", data=b"abc") == b"abc"
    os.close(cache.open("a", 0, 3, never))
    assert cache.holds("a", 0, 3)
    assert not cache.holds("a", 1, 3)


def test_the_bound_holds_and_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10_000)
    for i in range(10):
        fetch(cache, f"k{i}")
        os.utime(next((tmp_path / "shards").glob("*/0"), tmp_path))
    for i, path in enumerate(sorted((tmp_path / "shards").glob("*/0"), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(path, ns=(i, i))
    fetch(cache, "k0")  # used again
    fetch(cache, "new")
    assert cache.size() <= 10_000
    assert cache.holds("k0", 0, 1000)
    assert cache.holds("new", 0, 1000)
    assert sum(cache.holds(f"k{i}", 0, 1000) for i in range(10)) == 8


def test_the_bound_holds_with_many_at_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 20_000)
    sizes = []

    def one(i: int) -> None:
        fetch(Cache(tmp_path, 20_000), f"k{i}", data=bytes([i]) * 1000)
        with (tmp_path / "shards" / "size").open() as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX)  # nobody makes room while the entries are counted one after another
            sizes.append(cache.size())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(100)))
    assert max(sizes) <= 20_000


def test_what_is_evicted_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1500)
    descriptor = cache.open("a", 0, 1000, lambda: b"a" * 1000)
    fetch(cache, "b")
    assert not cache.holds("a", 0, 1000)
    assert os.pread(descriptor, 1000, 0) == b"a" * 1000
    os.close(descriptor)


def test_an_entry_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10_000)
    fetch(cache, "a")
    os.truncate(next((tmp_path / "shards").glob("*/0")), 500)
    assert not cache.holds("a", 0, 1000)
    assert fetch(cache, "a") == b"x" * 1000


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10_000)

    def fails() -> bytes:
        raise VitscaleError("no answer", hint="-", exit_code=5)

    with pytest.raises(VitscaleError, match="no answer"):
        cache.open("a", 0, 1000, fails)
    assert cache.size() == 0
    assert fetch(cache, "a") == b"x" * 1000


def test_threads_that_wait_for_an_entry_get_the_one_that_is_made(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10_000)
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> bytes:
        begun.set()
        assert go_on.wait(10)
        return b"y" * 1000

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cache.open, "a", 0, 1000, slow)
        assert begun.wait(10)
        others = [pool.submit(cache.open, "a", 0, 1000, never) for _ in range(3)]
        go_on.set()
        for waited in [first, *others]:
            assert os.pread(waited.result(10), 1, 0) == b"y"
            os.close(waited.result())


def test_more_at_once_than_there_is_room_for(tmp_path: Path) -> None:
    with pytest.raises(VitscaleError, match="999 bytes are too few") as error:
        fetch(Cache(tmp_path, 999), "a")
    assert error.value.exit_code == 5


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VitscaleError, match="file/shards: Not a directory") as error:
        fetch(Cache(tmp_path / "file", 10_000), "a")
    assert error.value.exit_code == 5
    assert "VITSCALE_CACHE" in error.value.problems[0].hint


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(mounted: Path) -> None:
    cache = Cache(mounted, 10**9)
    fetch(cache, "a", data=b"a" * 30_000)
    with pytest.raises(VitscaleError, match="no space left to write to") as error:
        fetch(cache, "b", data=b"b" * 60_000)
    assert error.value.exit_code == 5
    assert "VITSCALE_CACHE_SIZE" in error.value.problems[0].hint
    assert cache.size() == 30_000
    assert fetch(cache, "a", data=b"a" * 30_000) == b"a" * 10_000


def test_a_read_only_folder_is_read(mounted: Path) -> None:
    cache = Cache(mounted, 10**9)
    fetch(cache, "a")
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    os.close(cache.open("a", 0, 1000, never))
    with pytest.raises(VitscaleError, match="Read-only file system") as error:
        fetch(cache, "b")
    assert error.value.exit_code == 5


def test_a_full_disk_without_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    cache = Cache(tmp_path, 10_000)
    with pytest.raises(VitscaleError, match="no space left to write to"):
        fetch(cache, "a")
    assert cache.size() == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from vitscale.data.cache import Cache

def die():
    os.kill(os.getpid(), signal.SIGKILL)

Cache(Path(sys.argv[1]), 10_000).open("a", 0, 1000, die)
"""


def test_what_a_killed_process_had_begun_is_no_entry_and_goes_away(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path]).returncode == -9
    cache = Cache(tmp_path, 10_000)
    left = next((tmp_path / "shards").glob("*/0.partial"))
    assert left.stat().st_size == 1000  # the length of a whole entry, but not its name
    assert not cache.holds("a", 0, 1000)
    assert cache.size() == 0
    assert not left.exists()
    subprocess.run([sys.executable, "-c", KILLED, tmp_path])
    assert fetch(cache, "a") == b"x" * 1000
