"""Processes that decode and resize images into memory that they share with the process that trains.

Threads of one process are enough for a processor's few cores. Beside a GPU there are many, and threads then wait for
one another: for the interpreter between any two steps of an image, and for the kernel with every piece of memory; and
the thread that feeds the GPU waits for them all.
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Int64, UInt8

from vitscale.errors import MISSING, RUN_FAILED, VitscaleError
from vitscale.failures import Failure
from vitscale.processes import STOP_SIGNALS

if TYPE_CHECKING:
    from vitscale.data.access import Access
    from vitscale.data.images import Look

CHUNKS = 4
"""Pieces of a batch for each process: small enough that none is waited for long, large enough to be worth a message."""
AHEAD = 2
"""Pieces that a process has before it answers."""


class Readers:
    """`workers` processes over the shards of one data set; they end when this process does, however it ends.

    Raises `VitscaleError` where one of them is killed, or cannot be started; from then on at every call.
    """

    def __init__(self, access: Access, workers: int) -> None:
        self._lock = threading.Lock()
        self._memory = os.memfd_create("vitscale-images")
        self._map: mmap.mmap | None = None
        self._processes: dict[Connection, subprocess.Popen[bytes]] = {}
        self._error: VitscaleError | None = None
        # Sent to all processes of a group; what follows is the trainer's to say. What is blocked here is so in them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            for _ in range(workers):
                connection, process = _start(self._memory)
                self._processes[connection] = process
                connection.send(access.shards)
        except OSError as error:
            self.close()
            raise _not_started(error, workers) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def squares(self, places: Int64[np.ndarray, "b 3"], look: Look) -> tuple[UInt8[np.ndarray, "b 3 r r"], list[int]]:
        """Finished images of what lies at (shard, offset, size), and which of them are not: the rest of those is
        arbitrary."""
        shape = len(places), 3, look.how.resolution, look.how.resolution
        if not len(places):
            return np.empty(shape, np.uint8), []
        step = max(len(places) // (CHUNKS * max(len(self._processes), 1)), 1)
        parts = [slice(start, min(start + step, len(places))) for start in range(0, len(places), step)]
        failed: list[int] = []
        with self._lock:
            if self._error is not None:
                raise self._error
            held = self._reserve(math.prod(shape))
            jobs = ((held, part.start, places[part], look.part(part)) for part in parts)
            for answer in self._answers(jobs):
                failed += answer
            assert self._map is not None
            return np.frombuffer(self._map, np.uint8, math.prod(shape)).reshape(shape).copy(), failed

    def _reserve(self, size: int) -> int:
        """The size of the shared memory, which has room for so many bytes."""
        held = os.fstat(self._memory).st_size
        if size > held:
            os.ftruncate(self._memory, size)
            self._map = mmap.mmap(self._memory, size)
        return max(size, held)

    def _answers(self, jobs: Iterator[Any]) -> Iterator[Any]:
        """Of all jobs, as they come; who has answered gets the next one."""
        waiting = dict.fromkeys(self._processes, 0)
        try:
            for connection in [*self._processes] * AHEAD:
                waiting[connection] += _hand_out(connection, jobs)
            while busy := [connection for connection, count in waiting.items() if count]:
                for connection in cast(list[Connection], wait(busy)):
                    yield connection.recv()
                    waiting[connection] += _hand_out(connection, jobs) - 1
        except (EOFError, OSError):
            raise self._lost() from None

    def _lost(self) -> VitscaleError:
        until = time.monotonic() + 1  # its end is seen a little later than that of its connection
        while not (ended := [p.returncode for p in self._processes.values() if p.poll() is not None]):
            if time.monotonic() > until:
                break
            time.sleep(0.01)
        self.close()
        code = next(iter(ended), None)
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        self._error = VitscaleError(
            f"a process that reads images {how}",
            hint="the machine may be short of memory: fewer --workers need less; the same command goes on",
            exit_code=RUN_FAILED,
            failure=Failure.KILLED,
        )
        return self._error

    def close(self) -> None:
        """Ends the processes, whatever they are at."""
        for connection, process in self._processes.items():
            connection.close()
            process.kill()
            process.wait()
        self._processes = {}


def _not_started(error: OSError, workers: int) -> VitscaleError:
    return VitscaleError(
        f"the {workers} processes that read images cannot be started: {error.strerror or error}",
        hint="fewer --workers need fewer processes and open files",
        exit_code=MISSING,
        failure=Failure.SETUP,
    )


def _hand_out(connection: Connection, jobs: Iterator[Any]) -> int:
    """1 where there was a job left for this process."""
    job = next(jobs, None)
    if job is None:
        return 0
    connection.send(job)
    return 1


def _start(memory: int) -> tuple[Connection, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    run = f"from vitscale.data.readers import serve; serve({theirs.fileno()}, {memory})"
    with ours, theirs:
        # A module that is run by -c imports nothing of the trainer, which multiprocessing's own ways of starting would.
        process = subprocess.Popen(
            [sys.executable, "-c", run],
            pass_fds=(theirs.fileno(), memory),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        return Connection(ours.detach()), process


def serve(socket_number: int, memory: int) -> None:
    """What each process does, until the other end is closed."""
    from vitscale.data.access import Access

    connection, shared = Connection(socket_number), None
    try:
        access = Access(connection.recv())
        while True:
            size, start, places, look = connection.recv()
            if shared is None or len(shared) < size:
                shared = mmap.mmap(memory, size)
            connection.send(_read(access, shared, start, places, look))
    except (EOFError, ConnectionError):
        return


def _read(access: Access, shared: mmap.mmap, start: int, places: Int64[np.ndarray, "b 3"], look: Look) -> list[int]:
    """Fills the slots of a batch from `start` on; returns those that it could not."""
    from vitscale.data.decode import Picture

    side = look.how.resolution
    shape = len(places), 3, side, side
    out = np.frombuffer(shared, np.uint8, math.prod(shape), start * math.prod(shape[1:])).reshape(shape)
    failed = []
    for b, (shard, offset, size) in enumerate(places.tolist()):
        try:
            data = access.read(shard, offset, size)
            look.put(out[b], b, look.square(b, Picture(data)))
        except Exception:  # the trainer meets it once more, and says what it is
            failed.append(start + b)
        else:
            if len(data) < size:
                failed.append(start + b)
    return failed
