"""The processes of one run on this host: `python -m vitscale.train.spawn DEVICES RUN_FOLDER`.

They get the environment that torchrun would give them. torchrun itself kills workers that need more than 30 s for a
checkpoint, whatever its size, and takes seconds to start: nothing here imports torch.

On one of several hosts, `python -m vitscale.train.spawn remote` is told by its launcher over ssh, in lines on stdin:
first a `Share` as JSON, then perhaps `stop` (a checkpoint and an end) or `kill`. The end of stdin, when the launcher or
the connection is gone, is a `stop`. The first host answers with the port at which all meet.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from vitscale import lease
from vitscale.errors import BEREFT, DONE, MISSING, RUN_FAILED, VitscaleError
from vitscale.failures import Failure
from vitscale.files import wait_for_shared
from vitscale.processes import STOP_SIGNALS, Together, first_failure, signal_at_parent_death

VISIBLE = 30.0
"""Seconds until a run folder that another host has made must be seen here."""
LAST = 300.0
"""Seconds for the last checkpoint once nobody listens any more."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one host has of a run."""

    folder: str
    devices: int
    node: int = 0
    nodes: int = 1
    first_rank: int = 0
    world_size: int
    master: str = "127.0.0.1"
    port: int = 0
    """0: a free one is taken, and said."""
    environment: dict[str, str] = field(default_factory=dict)


def main(arguments: list[str]) -> int:
    if arguments[0] != "remote":
        devices = int(arguments[0])
        return run(Share(folder=arguments[1], devices=devices, world_size=devices))
    told = sys.stdin.readline()
    if not told:  # the launcher is gone already
        return BEREFT
    share = Share(**json.loads(told))
    os.environ.update(share.environment)
    return run(share, remote=True)


def run(share: Share, *, remote: bool = False) -> int:
    """Starts this host's workers and waits; returns the exit code of the one that failed first."""
    try:
        wait_for_shared(Path(share.folder) / "run.json", VISIBLE)
        listener = _listener(share) if share.node == 0 else None
    except VitscaleError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    port = listener.getsockname()[1] if listener else share.port
    workers = Together({share.first_rank + i: _start(share, i, port, listener) for i in range(share.devices)})
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: workers.stop())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # blocked while Python started, and for the workers
    if remote:
        print(port, flush=True)
        Thread(target=_obey, args=(workers,), daemon=True).start()
    failure = first_failure(workers.wait())
    if workers.killed and failure is None:
        return BEREFT
    if failure is None:
        return DONE
    code = _recorded(Path(share.folder), *failure)
    if workers.silent:
        _name_silent(Path(share.folder), workers.silent)
    return code


def _listener(share: Share) -> socket.socket:
    """Where the workers meet; held from here on, so that nobody else takes the port.

    Raises:
        VitscaleError: it is in use (exit 5).
    """
    try:
        own = share.master if share.nodes == 1 else ""  # all addresses
        return socket.create_server((own, share.port), backlog=share.world_size)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise VitscaleError(
            f"port {share.port} of {socket.gethostname()}, where the processes of the run would meet: {why}",
            hint="name a free port in MASTER_PORT, or none: then one is chosen",
            exit_code=MISSING,
        ) from None


def _start(share: Share, number: int, port: int, listener: socket.socket | None) -> subprocess.Popen[bytes]:
    holds = [listener.fileno()] if listener is not None and number == 0 else []
    told = {
        "RANK": share.first_rank + number,
        "LOCAL_RANK": number,
        "WORLD_SIZE": share.world_size,
        "LOCAL_WORLD_SIZE": share.devices,
        "GROUP_RANK": share.node,
        "GROUP_WORLD_SIZE": share.nodes,
        "MASTER_ADDR": share.master,
        "MASTER_PORT": port,
    }
    if holds:
        told["VITSCALE_STORE_FD"] = holds[0]
    return subprocess.Popen(
        [sys.executable, "-m", "vitscale.train.worker", share.folder],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        env={**os.environ, **{key: str(value) for key, value in told.items()}},
        pass_fds=holds,
        preexec_fn=_before_exec,
    )


def _before_exec() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    signal_at_parent_death(signal.SIGKILL)


def _obey(workers: Together) -> None:
    """Does what the launcher says until it is gone."""
    for line in sys.stdin:
        if line.strip() == "kill":
            workers.kill()
        elif line.strip() == "stop":
            workers.stop()
    workers.stop()
    time.sleep(LAST)
    workers.kill()


def _recorded(folder: Path, rank: int, code: int) -> int:
    """The exit code in a shell's words; a process that was killed has had no time to say so itself."""
    if code >= 0:
        return code
    from vitscale.train.rundir import RunDir

    why = ": often the host ran out of memory" if -code == signal.SIGKILL else ""
    reason = f"rank {rank} on {socket.gethostname()} was killed by signal {-code}{why}"
    print(reason, file=sys.stderr, flush=True)
    if lease.holder(folder) is None:  # else somebody has taken the run over already
        hint = "the same command goes on from the last checkpoint"
        RunDir(folder).fail(reason, failure=Failure.KILLED, hint=hint, code=RUN_FAILED)
    return 128 - code


def _name_silent(folder: Path, ranks: Sequence[int]) -> None:
    """Says which stood still, where the others could say no more than that they waited."""
    from vitscale.train.rundir import RunDir

    which = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
    reason = f"{which} on {socket.gethostname()} stood still, and did not end with the others"
    print(reason, file=sys.stderr, flush=True)
    run = RunDir(folder)
    before = run.result() or {}
    if before.get("provisional") and lease.holder(folder) is None:
        reason = f"{reason}: {before['reason']}"
        run.fail(reason, failure=Failure(before["failure"]), hint=before["hint"], code=before["exit_code"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
