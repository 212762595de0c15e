from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from small_sets import idx_folder
from vitscale.data.fetch import FASHION_MNIST, Public, fetch
from vitscale.data.shards import open_shards
from vitscale.errors import VitscaleError


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Public]:
    """A data set that a server on this machine offers, with the layout of the real one."""
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    folder = idx_folder(tmp_path / "server", images, np.arange(20) % 10)
    sums = {path.name: hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest() for path in folder.iterdir()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    yield replace(FASHION_MNIST, installed=tmp_path / "not-installed", url=url, files=sums)
    server.shutdown()
    thread.join()
    server.server_close()


def test_downloaded_checked_and_packed(public: Public, tmp_path: Path) -> None:
    lines: list[str] = []
    done = fetch(public, tmp_path / "data", say=lines.append)
    assert [packed.folder.name for packed in done] == ["fashion-mnist-train", "fashion-mnist-test"]
    assert len(lines) == 4
    shards = open_shards(tmp_path / "data" / "fashion-mnist-train")
    assert len(shards) == 20
    assert shards.classes[9] == "Ankle boot"
    assert shards.image_size == (28, 28)
    assert all(packed.was_there for packed in fetch(public, tmp_path / "data"))


def test_a_lost_shard_is_written_again(public: Public, tmp_path: Path) -> None:
    fetch(public, tmp_path / "data")
    shard = tmp_path / "data" / "fashion-mnist-test" / "fashion-mnist-test-000000.tar"
    before = shard.read_bytes()
    shard.write_bytes(before[:2000])
    assert [packed.mended for packed in fetch(public, tmp_path / "data")] == [(), (shard.name,)]
    assert shard.read_bytes() == before


def test_an_installed_copy_is_found_and_gives_the_same_shards(public: Public, tmp_path: Path) -> None:
    fetch(public, tmp_path / "data")
    installed = replace(public, installed=tmp_path / "server", url="http://127.0.0.1:1")
    fetch(installed, tmp_path / "other")
    for split in ("train", "test"):
        one, two = (tmp_path / where / f"fashion-mnist-{split}" for where in ("data", "other"))
        assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}


def test_another_file_than_the_published_one_is_refused(public: Public, tmp_path: Path) -> None:
    name = "t10k-labels-idx1-ubyte.gz"
    (tmp_path / "server" / name).write_bytes(gzip.compress(b"something else"))
    with pytest.raises(VitscaleError, match=rf"{name}: SHA-256 .* and not") as error:
        fetch(public, tmp_path / "data")
    assert error.value.exit_code == 5
    assert not (tmp_path / "data" / "fashion-mnist-download" / name).exists()


def test_a_cut_download_is_refused(public: Public, tmp_path: Path) -> None:
    name = "train-images-idx3-ubyte.gz"
    path = tmp_path / "server" / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(VitscaleError, match=rf"{name}: not a whole gzip file"):
        fetch(public, tmp_path / "data")


def test_no_network_says_what_else_helps(public: Public, tmp_path: Path) -> None:
    with pytest.raises(VitscaleError, match="cannot be fetched") as error:
        fetch(replace(public, url="http://127.0.0.1:1"), tmp_path / "data")
    assert "dataset-fashion-mnist" in str(error.value)
    with pytest.raises(VitscaleError, match=r"cannot be fetched \(HTTP 404\)"):
        fetch(replace(public, url=f"{public.url}/gone"), tmp_path / "data")
