"""One attempt at a time holds a run, also where holders die, stop, and come back, on one host or on several."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from vitscale import lease
from vitscale.errors import HELD, VitscaleError
from vitscale.launch.single import wait_for_holder
from vitscale.lease import Lost, Watch, hold, holder

HOLDER = """
import sys
from pathlib import Path
from vitscale import lease
lease.BEAT = 0.1
if sys.argv[2]:
    lease.kernel = lambda: sys.argv[2]
with lease.hold(Path(sys.argv[1])) as claim:
    print("holds", flush=True)
    for line in sys.stdin:
        print("writes" if claim.holds() else "may not write", flush=True)
"""
"""A process that holds a run until its stdin ends, and says at each line whether it still may write."""

Holder = subprocess.Popen[str]
Start = Callable[..., Holder]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    processes = []

    def started(kernel: str = "") -> Holder:
        command = [sys.executable, "-c", HOLDER, str(tmp_path), kernel]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert said(process) == "holds"
        return process

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def said(process: Holder) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def asked(process: Holder) -> str:
    assert process.stdin is not None
    process.stdin.write("?\n")
    process.stdin.flush()
    return said(process)


def until_free(folder: Path, seconds: float = 20.0) -> float:
    """How long a watcher had to wait."""
    watch, began = Watch(), time.monotonic()
    while watch.is_held(folder):
        assert time.monotonic() - began < seconds
        time.sleep(0.01)
    return time.monotonic() - began


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_is_held_by_one_and_generations_count_up(tmp_path: Path) -> None:
    for generation in (1, 2, 3):
        assert holder(tmp_path) is None
        with hold(tmp_path) as claim:
            claim.check()
            assert files(tmp_path) == [f"lease-{generation}"]
            with pytest.raises(VitscaleError, match=f"is being worked on by process {os.getpid()}") as refused:
                hold(tmp_path).__enter__()
            assert refused.value.exit_code == HELD


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    """Whatever they saw before they reached for it."""
    together, held, over = threading.Barrier(16), [], threading.Event()

    def reach() -> None:
        together.wait()
        with suppress(VitscaleError), hold(tmp_path) as claim:
            held.append(claim)
            over.wait()

    with ThreadPoolExecutor(16) as pool:
        reaching = [pool.submit(reach) for _ in range(16)]
        while sum(each.done() for each in reaching) < 15:
            time.sleep(0.01)
        assert len(held) == 1
        held[0].check()
        over.set()
    assert files(tmp_path) == ["lease-1"]


def test_a_holder_that_was_killed_is_seen_at_once_on_its_own_host(tmp_path: Path, start: Start) -> None:
    process = start()
    assert holder(tmp_path) is not None
    process.kill()
    process.wait()
    assert holder(tmp_path) is None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_holder_on_another_host_is_taken_for_dead_once_its_counter_stands_still(
    tmp_path: Path, start: Start, number: signal.Signals
) -> None:
    process = start("another kernel")
    watch = Watch()
    end = time.monotonic() + 1.0
    while time.monotonic() < end:  # ten of its intervals
        assert watch.is_held(tmp_path)
        time.sleep(0.01)
    process.send_signal(number)
    assert until_free(tmp_path) >= 0.3
    with hold(tmp_path) as claim:
        process.send_signal(signal.SIGCONT)
        if number == signal.SIGSTOP:
            assert asked(process) == "may not write"
            process.communicate()
        claim.check()
        assert files(tmp_path) == ["lease-3"]  # the watcher ended the first, and this is the next


def test_a_stopped_holder_on_the_same_host_loses_the_run_and_must_not_write(tmp_path: Path, start: Start) -> None:
    process = start()
    assert asked(process) == "writes"
    process.send_signal(signal.SIGSTOP)
    assert holder(tmp_path) is not None, "its lock is held: nothing can be said at once"
    assert until_free(tmp_path) >= 0.3
    with hold(tmp_path):
        pass
    process.send_signal(signal.SIGCONT)
    assert asked(process) == "may not write"


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    process = start("another kernel")
    watch = Watch()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        os.utime(tmp_path / "lease-1", (now + jump, now + jump))
        assert watch.is_held(tmp_path), "it moves, whatever the clock says"
        time.sleep(0.01)
    process.kill()
    os.utime(tmp_path / "lease-1", (now - jump, now - jump))
    assert until_free(tmp_path) >= 0.3


def test_a_holder_on_a_file_system_without_locks_is_known_by_its_counter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(lease.fcntl, "flock", none)
    monkeypatch.setattr(lease, "BEAT", 0.1)
    with hold(tmp_path) as claim:
        watch = Watch()
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert watch.is_held(tmp_path)
            time.sleep(0.01)
        claim.check()
    assert holder(tmp_path) is None


def test_a_slow_contender_does_not_slip_under_a_later_holder(tmp_path: Path) -> None:
    """It saw generation 0; meanwhile 1 came and went, and its name is free again."""
    for _ in range(2):
        with hold(tmp_path):
            pass
    with hold(tmp_path) as claim:
        assert files(tmp_path) == ["lease-3"]
        assert lease._take(tmp_path, 1) is None
        assert files(tmp_path) == ["lease-3"]
        claim.check()


def test_who_was_taken_over_is_told(tmp_path: Path) -> None:
    with hold(tmp_path) as claim:
        (tmp_path / "lease-1").unlink()
        with pytest.raises(Lost, match="was taken over"):
            claim.check()


def test_a_damaged_file_blocks_nobody_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lease-1").write_text('{"host"')
    monkeypatch.setattr(lease, "UNKNOWN", lease.Record(**{**vars_of(lease.UNKNOWN), "interval": 0.1}))
    assert holder(tmp_path) is not None
    assert until_free(tmp_path) >= 0.3
    with hold(tmp_path):
        pass


def vars_of(record: lease.Record) -> dict[str, object]:
    return dict(json.loads(record.written()))


def test_a_command_refuses_a_run_that_moves_and_takes_one_that_does_not(tmp_path: Path, start: Start) -> None:
    said: list[str] = []
    process = start("another kernel")
    with pytest.raises(VitscaleError, match=f"is being worked on by process {process.pid} on ") as refused:
        wait_for_holder(tmp_path, said.append)
    assert refused.value.exit_code == HELD
    assert said == [
        f"run {tmp_path.name} is held by process {process.pid} on {socket.gethostname()}: "
        "looking for up to 0.3 s whether that still moves"
    ]
    process.kill()
    wait_for_holder(tmp_path, said.append)
    assert holder(tmp_path) is None
