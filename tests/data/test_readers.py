"""Processes that read images: the pixels of threads, and what happens when one of them is gone."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from small_sets import encoded, write_tar
from vitscale.data.images import Images
from vitscale.data.preprocess import Preprocess
from vitscale.data.shards import open_shards
from vitscale.errors import MISSING, RUN_FAILED, VitscaleError
from vitscale.failures import Failure

CROPS = {"crop": "inception", "crop_area": 0.2, "flip": True}
LOOKS = [
    {},
    CROPS,
    {**CROPS, "randaugment_layers": 2},
    {**CROPS, "decode": "scaled", "resize": "torch"},
    {"eval_crop": "center", "resize": "bilinear"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """21 samples in two shards, of which the last has no label and one is no whole image."""
    for shard in range(2):
        members = {}
        for i in range(shard * 10, shard * 10 + 10):
            members |= {f"{i:02d}.jpg": encoded(i, "JPEG", width=40 + i, height=60), f"{i:02d}.cls": b"1"}
        if shard:
            members["15.jpg"] = members["15.jpg"][:200]
            members["20.jpg"] = encoded(20, "JPEG", width=60, height=60)
        write_tar(tmp_path / f"{shard}.tar", members)
    return tmp_path


@pytest.fixture
def apart(folder: Path) -> Iterator[Callable[..., Images]]:
    made = []

    def make(**settings: object) -> Images:
        made.append(Images(open_shards(folder), memory_bytes=0, max_bad=0.2, workers=2, apart=True, **settings))
        return made[-1]

    yield make
    for images in made:
        images.readers().close()


def processes(images: Images) -> list[subprocess.Popen[bytes]]:
    return list(images.readers()._processes.values())


@pytest.mark.parametrize("look", LOOKS)
def test_processes_give_the_pixels_of_threads(folder: Path, apart: Callable[..., Images], look: dict[str, str]) -> None:
    told: dict[str, list[tuple[str, str, str]]] = {"threads": [], "processes": []}
    threads = Images(
        open_shards(folder), memory_bytes=0, max_bad=0.2, workers=2, on_bad=lambda *facts: told["threads"].append(facts)
    )
    others = apart(on_bad=lambda *facts: told["processes"].append(facts))
    for resolution, index in ((16, np.arange(21)), (32, np.array([3, 15, 20, 7, 7])), (8, np.array([2]))):
        how = Preprocess(resolution=resolution, **look)
        for seed in (0, 1):
            one, other = (
                images.train_batch(index, np.full(len(index), seed), how, seed=seed) for images in (threads, others)
            )
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])
        np.testing.assert_array_equal(threads.eval_batch(index, how)[0], others.eval_batch(index, how)[0])
    assert sorted(told["threads"]) == sorted(told["processes"])
    assert {key for _, key, _ in told["processes"]} == {"15", "20"}


def test_a_batch_stays_as_it_is_when_the_next_one_is_read(apart: Callable[..., Images]) -> None:
    images, how = apart(), Preprocess(resolution=16)
    first, _ = images.eval_batch(np.arange(5), how)
    before = first.copy()
    images.eval_batch(np.arange(5, 10), how)
    np.testing.assert_array_equal(first, before)


def test_a_killed_reader_ends_the_run_in_words(apart: Callable[..., Images]) -> None:
    images, how = apart(), Preprocess(resolution=16)
    images.eval_batch(np.arange(10), how)
    processes(images)[0].send_signal(signal.SIGKILL)
    processes(images)[0].wait()
    for _ in range(2):  # whoever comes next is told the same
        with pytest.raises(VitscaleError, match="a process that reads images was ended by signal 9") as caught:
            images.eval_batch(np.arange(10), how)
        assert caught.value.exit_code == RUN_FAILED
        assert caught.value.failure is Failure.KILLED


def test_readers_that_cannot_start_are_a_failure_in_words(
    apart: Callable[..., Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    images = apart()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", refuses)
        with pytest.raises(VitscaleError, match="2 processes that read images cannot be started: Resource") as caught:
            images.eval_batch(np.arange(3), Preprocess(resolution=16))
    assert caught.value.exit_code == MISSING
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked
    assert images.eval_batch(np.arange(0), Preprocess(resolution=16))[0].shape == (0, 3, 16, 16)


def test_readers_that_hang_are_not_waited_for(apart: Callable[..., Images]) -> None:
    images = apart()
    images.eval_batch(np.arange(3), Preprocess(resolution=16))
    for process in processes(images):
        process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    images.readers().close()
    assert time.monotonic() - began < 10


def test_signals_that_ask_for_a_checkpoint_leave_readers_alone(apart: Callable[..., Images]) -> None:
    images, how = apart(), Preprocess(resolution=16)
    images.eval_batch(np.arange(10), how)  # they are up
    for process in processes(images):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            process.send_signal(number)
    assert images.eval_batch(np.arange(10), how)[1].sum() == 10


def test_readers_do_not_outlive_who_started_them(folder: Path) -> None:
    code = (
        "import sys, time, numpy as np\n"
        "from vitscale.data.images import Images\n"
        "from vitscale.data.shards import open_shards\n"
        f"images = Images(open_shards({str(folder)!r}), memory_bytes=0, workers=2, apart=True)\n"
        "print(*(p.pid for p in images.readers()._processes.values()), flush=True)\n"
        "time.sleep(60)\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    readers = [psutil.Process(int(pid)) for pid in trainer.stdout.readline().split()]
    assert len(readers) == 2
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.wait()
    trainer.stdout.close()
    until = time.monotonic() + 30
    while any(reader.is_running() and reader.status() != psutil.STATUS_ZOMBIE for reader in readers):
        assert time.monotonic() < until, "they are still there"
        time.sleep(0.1)
