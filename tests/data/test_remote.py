from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import boto3
import fsspec.config
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from servers import BucketServer, Fault, FileServer, HubServer, file_server
from small_sets import foreign
from vitscale.data import access, remote
from vitscale.data.indexing import build
from vitscale.data.shards import Shards, open_shards
from vitscale.errors import VitscaleError
from vitscale.locations import cache_folder, locate


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VITSCALE_TIMEOUT", "1")
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(remote, "_clients", {})  # made with another test's time-out
    monkeypatch.setattr(remote, "_given_up", {})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    foreign(tmp_path / "served")
    with file_server(tmp_path / "served") as server:
        yield server


def pattern(server: FileServer) -> str:
    return server.url + "/s-{0000..0002}.tar"


def indexed(server: FileServer) -> Shards:
    build(locate(pattern(server)))
    server.requests.clear()
    return open_shards(pattern(server))


def forget_pieces() -> None:
    """As if they had been evicted."""
    for path in (cache_folder() / "shards").glob("*/*"):
        path.unlink()


def local(tmp_path: Path) -> Shards:
    return open_shards(foreign(tmp_path / "local"))


def assert_same(shards: Shards, others: Shards) -> None:
    assert shards.fingerprint == others.fingerprint
    np.testing.assert_array_equal(shards.labels, others.labels)
    assert [shards.read(i) for i in range(len(shards))] == [others.read(i) for i in range(len(others))]


def test_indexing_reads_each_shard_once_and_training_reads_the_cache(server: FileServer, tmp_path: Path) -> None:
    build(locate(pattern(server)))
    assert sorted(path for path, _ in server.requests) == ["s-0000.tar", "s-0001.tar", "s-0002.tar"]
    assert_same(open_shards(pattern(server)), local(tmp_path))
    assert len(server.requests) == 3


def test_a_folder_on_a_server_is_listed(server: FileServer, tmp_path: Path) -> None:
    (server.folder / "notes.txt").write_text("not a shard")
    build(locate(server.url + "/"))
    assert_same(open_shards(server.url), local(tmp_path))


def test_reading_in_pieces(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "PIECE", 1000)  # less than a sample: images begin in one and end in another
    shards = indexed(server)
    forget_pieces()
    shards.read(9)
    assert {path for path, _ in server.requests} == {"s-0001.tar"}
    assert all(
        int(wanted.split("-")[1]) - int(wanted[6:].split("-")[0]) < 1000 for _, wanted in server.requests if wanted
    )
    assert_same(shards, local(tmp_path))


def test_a_server_without_ranges(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "PIECE", 1000)
    server.ranges = False
    build(locate(pattern(server)))
    assert sorted(server.requests) == [(f"s-000{i}.tar", None) for i in range(3)]
    assert_same(open_shards(pattern(server)), local(tmp_path))
    assert len(server.requests) == 3


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", [Fault("status", 503), Fault("cut", 700), Fault("stall", 700), Fault("short", 700)])
def test_what_passes_is_tried_again(server: FileServer, tmp_path: Path, fault: Fault, ranges: bool) -> None:
    server.ranges = ranges
    shards = indexed(server)
    forget_pieces()
    server.faults = [fault, fault]
    assert shards.read(0) == local(tmp_path).read(0)
    assert len(server.requests) == 3
    assert_same(shards, local(tmp_path))


@pytest.mark.parametrize(
    ("fault", "tries", "reason"),
    [
        (Fault("status", 503), remote.TRIES, "the server answers (503)"),
        (Fault("cut", 700), remote.TRIES, "the transfer was cut off (5 tries)"),
        (Fault("short", 700), remote.TRIES, "the transfer was cut off: 700 of"),
        (Fault("status", 404), 1, "there is no such file (404)"),
        (Fault("status", 403), 1, "access is refused (403)"),
    ],
)
def test_what_does_not_pass_is_an_error_that_names_the_url(
    server: FileServer, fault: Fault, tries: int, reason: str
) -> None:
    shards = indexed(server)
    forget_pieces()
    server.always = fault
    with pytest.raises(VitscaleError) as error:
        shards.read(0)
    assert error.value.exit_code == 5
    assert error.value.problems[0].message.startswith(f"{server.url}/s-0000.tar: {reason}")
    assert len(server.requests) == tries
    assert not list((cache_folder() / "shards").glob("*/*"))


def test_a_silent_server_is_given_up(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSCALE_TIMEOUT", "0.2")
    shards = indexed(server)
    forget_pieces()
    server.always = Fault("stall", 700)
    with pytest.raises(VitscaleError, match=r"no byte came for 0\.2 s \(5 tries\)"):
        shards.read(0)


def test_whoever_waits_for_a_dead_server_shares_its_error(server: FileServer, tmp_path: Path) -> None:
    shards = indexed(server)
    forget_pieces()
    server.always = Fault("status", 503)
    server.hold = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(shards.read, i) for i in range(4)]
        server.hold.set()
        errors = [reading.exception() for reading in waiting]
    said = f"error: {server.url}/s-0000.tar: the server answers (503) (5 tries)"
    assert [str(error).partition("\n")[0] for error in errors] == [said] * 4
    shards.prefetch(np.array([0, 1]))
    with pytest.raises(VitscaleError, match="503"):
        shards.read(0)
    assert len(server.requests) == remote.TRIES
    server.always = None
    assert shards.read(6) == local(tmp_path).read(6)  # of another shard
    remote._given_up.clear()  # as after some time
    assert shards.read(0) == local(tmp_path).read(0)


def test_nobody_listens(tmp_path: Path) -> None:
    with file_server(tmp_path) as server:
        url = server.url
    with pytest.raises(VitscaleError, match=f"{url}/a.tar: ClientConnectorError.*5 tries"):
        build(locate(f"{url}/a.tar"))


def test_another_shard_in_its_place(server: FileServer, tmp_path: Path) -> None:
    shards = indexed(server)
    forget_pieces()
    data = bytearray((server.folder / "s-0000.tar").read_bytes())
    data[3000] ^= 1
    (server.folder / "s-0000.tar").write_bytes(data)
    with pytest.raises(VitscaleError, match=r"s-0000\.tar: the shard was replaced.*its version") as error:
        shards.read(0)
    assert "--again" in error.value.problems[0].hint
    build(locate(pattern(server)), again=True)
    assert len(open_shards(pattern(server)).read(0)) == len(local(tmp_path).read(0))


def test_a_set_without_index_says_how_to_make_it(server: FileServer) -> None:
    with pytest.raises(VitscaleError, match="there is no index of these shards") as error:
        open_shards(server.url)
    assert error.value.problems[0].hint == f"make it once: vitscale data index {server.url}"


def test_prefetched_shards_are_not_waited_for(server: FileServer, tmp_path: Path) -> None:
    shards = indexed(server)
    forget_pieces()
    server.hold = threading.Event()
    while server.arrived.acquire(blocking=False):
        pass
    shards.prefetch(np.array([0, 7, 8, 13]))  # returns though no answer comes
    for _ in range(3):
        assert server.arrived.acquire(timeout=10)
    server.hold.set()
    assert shards.read(7) == local(tmp_path).read(7)
    assert_same(shards, local(tmp_path))
    assert len(server.requests) == 3


def test_prefetching_local_shards_does_nothing(tmp_path: Path) -> None:
    shards = local(tmp_path)
    before = threading.active_count()
    shards.prefetch(np.arange(len(shards)))
    assert threading.active_count() == before


def test_many_threads_fetch_a_piece_once(server: FileServer, tmp_path: Path) -> None:
    shards = indexed(server)
    forget_pieces()
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(shards.read, [0, 1, 2, 3, 4, 5] * 4))
    assert images[:6] == [local(tmp_path).read(i) for i in range(6)]
    assert len(server.requests) == 1


def read_all(place: str) -> list[bytes]:
    with open_shards(place) as shards:
        return [shards.read(i) for i in range(len(shards))]


def test_processes_fetch_a_piece_once(server: FileServer, tmp_path: Path) -> None:
    indexed(server)
    forget_pieces()
    with get_context("spawn").Pool(2) as pool:
        both = pool.map(read_all, [pattern(server)] * 2)
    assert both[0] == both[1] == [local(tmp_path).read(i) for i in range(18)]
    assert len(server.requests) == 3


def test_a_forked_process_reads_too(server: FileServer, tmp_path: Path) -> None:
    shards = indexed(server)
    forget_pieces()
    shards.prefetch(np.array([0]))
    expected = shards.read(0), local(tmp_path).read(12)
    child = os.fork()
    if child == 0:
        # What of the parent's threads and loops the child needs is there anew, or this hangs.
        os._exit(0 if (shards.read(0), shards.read(12)) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


KILLED = """
import sys
from vitscale.data.shards import open_shards
open_shards(sys.argv[1]).read(0)
"""


def test_what_a_killed_process_had_begun_is_never_used(server: FileServer, tmp_path: Path) -> None:
    shards = indexed(server)
    forget_pieces()
    server.faults = [Fault("stall", 700)]
    while server.arrived.acquire(blocking=False):
        pass
    environment = os.environ | {"VITSCALE_TIMEOUT": "60"}
    with subprocess.Popen([sys.executable, "-c", KILLED, pattern(server)], env=environment) as process:
        assert server.arrived.acquire(timeout=60)
        process.kill()
    assert list((cache_folder() / "shards").glob("*/*.partial"))
    assert shards.read(0) == local(tmp_path).read(0)
    assert not list((cache_folder() / "shards").glob("*/*.partial"))


def test_a_set_larger_than_the_cache(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "PIECE", 2000)
    monkeypatch.setenv("VITSCALE_CACHE_SIZE", "20kB")  # of 61 kB
    build(locate(pattern(server)))
    assert len(server.requests) == len(set(server.requests))  # no piece twice
    shards = open_shards(pattern(server))
    shards.access._descriptors.most = 2
    assert_same(shards, local(tmp_path))
    assert_same(shards, local(tmp_path))
    assert sum(path.stat().st_size for path in (cache_folder() / "shards").glob("*/*")) <= 20_000


def test_without_the_package_of_a_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(VitscaleError, match=r"gs://bucket/a\.tar: gs:// needs the package gcsfs") as error:
        build(locate("gs://bucket/a.tar"))
    assert error.value.problems[0].hint == "pip install 'vitscale[gs]'"


@pytest.mark.parametrize("given", ["soon", "0", "-1", "1e999", ""])
def test_a_time_out_that_is_none(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("VITSCALE_TIMEOUT", given)
    with pytest.raises(VitscaleError, match="is no number of seconds") as error:
        remote.timeout()
    assert error.value.exit_code == 2


def test_no_secrets_in_messages(server: FileServer) -> None:
    url = f"http://me:word@127.0.0.1:{server.server_port}/gone.tar?signature=abc"
    with pytest.raises(VitscaleError, match="no such file") as error:
        build(locate(url))
    assert "word" not in error.value.problems[0].message
    assert "abc" not in error.value.problems[0].message


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    moto = ThreadedMotoServer(port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="shards")
    for path in foreign(tmp_path / "uploaded").iterdir():
        client.put_object(Bucket="shards", Key=f"set/{path.name}", Body=path.read_bytes())
    yield "s3://shards/set"
    client.close()
    moto.stop()


def test_s3(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "PIECE", 1000)
    build(locate(bucket + "/"))
    forget_pieces()
    shards = open_shards(bucket)
    assert shards.shard(0) == "s3://shards/set/s-0000.tar"
    assert_same(shards, local(tmp_path))
    pieces = bucket + "/s-{0000..0002}.tar"
    build(locate(pieces))
    assert open_shards(pieces).fingerprint == shards.fingerprint


def test_s3_says_what_is_missing_and_what_was_replaced(bucket: str) -> None:
    with pytest.raises(VitscaleError, match=r"s3://shards/set/gone\.tar: there is no such file"):
        build(locate(f"{bucket}/gone.tar"))
    with pytest.raises(VitscaleError, match=r"s3://nowhere: there is no such file"):
        build(locate("s3://nowhere/"))
    build(locate(f"{bucket}/s-0000.tar"))
    forget_pieces()
    client = boto3.client("s3")
    client.put_object(Bucket="shards", Key="set/s-0000.tar", Body=b"another")
    client.close()
    with pytest.raises(VitscaleError, match="the shard was replaced"):
        open_shards(f"{bucket}/s-0000.tar").read(0)


FROM_THE_HUB = """
import sys
from vitscale.data.indexing import build
from vitscale.data.shards import open_shards
from vitscale.errors import VitscaleError
from vitscale.locations import locate

place = "hf://datasets/people/set"
for text in (place, place + "/s-{0000..0002}.tar"):
    build(locate(text))
    with open_shards(text) as shards:
        print(shards.fingerprint, sum(len(shards.read(i)) for i in range(len(shards))))
try:
    build(locate(place + "/gone.tar"))
except VitscaleError as error:
    print(error.problems[0].message)
"""


def test_the_hub(tmp_path: Path) -> None:
    """In a process of its own: the hub's library reads its address when it is imported."""
    here = local(tmp_path)
    with file_server(foreign(tmp_path / "served"), HubServer) as server:
        command, environment = (
            [sys.executable, "-c", FROM_THE_HUB],
            os.environ | {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0"},
        )
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        requests = [path for path, _ in server.requests if path.endswith(".tar")]
    expected = f"{here.fingerprint} {sum(len(here.read(i)) for i in range(18))}"
    assert answer.stdout.splitlines()[:2] == [expected, expected], answer.stderr
    assert answer.stdout.splitlines()[2] == "hf://datasets/people/set/gone.tar: there is no such file (404)"
    assert len(requests) == 3  # the pattern's shards have the same URLs, and come from the cache


def test_google_cloud_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    with file_server(foreign(tmp_path / "served"), BucketServer) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        build(locate("gs://shards/"))
        assert_same(open_shards("gs://shards"), local(tmp_path))
        assert len(server.requests) == 3
        with pytest.raises(VitscaleError, match=r"gone\.tar: there is no such file"):
            build(locate("gs://shards/gone.tar"))
