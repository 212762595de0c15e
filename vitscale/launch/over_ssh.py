"""One run on several hosts: `python -m vitscale.launch.over_ssh HOSTS RUN_FOLDER`, a process that a launcher watches.

Each host starts `vitscale.train.spawn` in the same working folder. The connection carries its orders, its end too:
whatever becomes of this process, the hosts write a checkpoint and leave.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Thread, Timer
from typing import IO

from vitscale.errors import BEREFT, DONE, MISSING, RUN_FAILED, Problem, VitscaleError
from vitscale.failures import Failure
from vitscale.launch import folders
from vitscale.launch.hostfile import Host
from vitscale.processes import STOP_SIGNALS, Together, first_failure

BROKEN = 255
"""ssh's own exit code, of a connection that failed or broke."""
SSH_SAYS = re.compile("ssh|kex|Timeout|Connection|client_loop|packet")
"""How its own words begin, between those of the host."""
QUIET = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3")
"""Of ssh: no questions, and 15 s without an answer are the end."""
PASSED_ON = (
    *("VITSCALE_", "NCCL_", "GLOO_", "TORCH", "DEEPSPEED_", "DS_", "OMP_", "MKL_", "KMP_", "CUDA_", "UCX_", "FI_"),
    *(
        "AWS_",
        "GOOGLE_",
        "HF_",
        "WANDB_",
        "PYTHON",
        "LD_LIBRARY_PATH",
        "http_",
        "https_",
        "no_proxy",
        "SSL_",
        "REQUESTS_",
    ),
)
"""Beginnings of the variables that the hosts are given; over the connection, where nobody else can read them."""
KILLED = 10.0
"""Seconds for a host to obey a kill; then its connection is cut, which it takes as the same."""


def command(host: Host, *words: str) -> list[str]:
    """ssh's command line that runs words in this working folder on a host; VITSCALE_SSH replaces `ssh`."""
    options = [part for option in QUIET for part in ("-o", option)]
    path = os.environ.get("PYTHONPATH")
    prefix = ["env", f"PYTHONPATH={path}"] if path else []
    there = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join([*prefix, *words])}"
    return [*shlex.split(os.environ.get("VITSCALE_SSH") or "ssh"), *options, host.name, there]


def check(hosts: Sequence[Host]) -> None:
    """That each host answers, without a password, and has this folder and this Python.

    Raises:
        VitscaleError: the hosts that do not (exit 5).
    """
    with ThreadPoolExecutor(32) as pool:
        problems = [problem for problem in pool.map(_problem, hosts) if problem is not None]
    if problems:
        raise VitscaleError.of(problems, exit_code=MISSING)


def _problem(host: Host) -> Problem | None:
    words = command(host, sys.executable, "-c", "import vitscale")
    try:
        asked = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        hint = "install an ssh client, or name one in VITSCALE_SSH"
        return Problem(f"host {host.name}: cannot start {words[0]}: {error.strerror}", hint)
    if asked.returncode == 0:
        return None
    said = asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"]
    if asked.returncode == BROKEN:
        return Problem(f"host {host.name}: {said[-1]}", f"`ssh {host.name} true` must work without a password")
    hint = f"it needs the folder {Path.cwd()} and {sys.executable} as here: a file system that all hosts share"
    return Problem(f"host {host.name}: {said[-1]}", hint)


class Hosts(Together):
    """The hosts of one run: connections that carry their orders."""

    def stop(self) -> None:
        self._say("stop")

    def kill(self) -> None:
        self.killed = True
        self._say("kill")
        cut = Timer(KILLED, super().kill)
        cut.daemon = True
        cut.start()

    def _say(self, word: str) -> None:
        for process in self.processes.values():
            with suppress(OSError):  # it is gone
                _tell(process, word)


def main(hosts: Sequence[Host], folder: Path) -> int:
    """Starts the run on all hosts and waits; returns the exit code of the host that failed first."""
    words: dict[int, list[str]] = {node: [] for node in range(len(hosts))}
    connections = {node: _connect(host, words[node]) for node, host in enumerate(hosts)}
    crew = Hosts(connections)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: crew.stop())
    port = int(os.environ.get("MASTER_PORT", "0"))
    for node, share in enumerate(_shares(hosts, folder)):
        with suppress(OSError, ValueError):  # one that has failed already; `wait` says how
            _tell(connections[node], json.dumps({**share, "port": port}))
            if node == 0:
                port = int(_answer(connections[0]) or 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    codes = crew.wait()
    failure = first_failure(codes)
    if failure is None:
        return RUN_FAILED if crew.killed else DONE
    node, code = failure
    _record(folder, hosts[node], _shares(hosts, folder)[node], code, words[node])
    return RUN_FAILED if code in (BROKEN, BEREFT) else code


def _shares(hosts: Sequence[Host], folder: Path) -> list[dict[str, object]]:
    """What `vitscale.train.spawn.Share` holds, for each host."""
    environment = {key: value for key, value in os.environ.items() if key.startswith(PASSED_ON)}
    common = {"folder": str(folder), "nodes": len(hosts), "master": hosts[0].name, "environment": environment}
    world = sum(host.slots for host in hosts)
    firsts = [sum(host.slots for host in hosts[:node]) for node in range(len(hosts))]
    return [
        {**common, "node": node, "devices": host.slots, "first_rank": firsts[node], "world_size": world}
        for node, host in enumerate(hosts)
    ]


def _connect(host: Host, words: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command(host, sys.executable, "-m", "vitscale.train.spawn", "remote"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    Thread(target=_relay, args=(host, process.stderr, words), daemon=True).start()
    return process


def _relay(host: Host, lines: IO[str], words: list[str]) -> None:
    """Prints what a host says, and keeps its last words."""
    for line in lines:
        print(f"{host.name}: {line.rstrip()}", flush=True)
        words.append(line.strip())
        del words[:-20]


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _record(folder: Path, host: Host, share: Mapping[str, object], code: int, words: Sequence[str]) -> None:
    """What only this side knows: that a host was lost, or that it could not even start."""
    said = {line.partition(": ")[0]: line.partition(": ")[2] for line in words}
    if code == BROKEN:
        first, count = int(str(share["first_rank"])), host.slots
        ranks = f"rank {first}" if count == 1 else f"ranks {first} to {first + count - 1}"
        last = next((f": {line}" for line in reversed(words) if SSH_SAYS.match(line)), "")
        hint = "the same command goes on from the last checkpoint, with a hostfile of the hosts that are left"
        reason = f"host {host.name} ({ranks}) does not answer{last}"
        folders.record_failure(folder, Failure.KILLED, reason, hint, RUN_FAILED)
    elif code == MISSING and "error" in said and "hint" in said:
        reason = f"host {host.name}: {said['error']}"
        folders.record_failure(folder, Failure.SETUP, reason, said["hint"], MISSING)


def arguments(hosts: Sequence[Host]) -> list[str]:
    """Of `python -m`, for a worker that is several hosts."""
    return ["vitscale.launch.over_ssh", json.dumps([asdict(host) for host in hosts])]


if __name__ == "__main__":
    sys.exit(main([Host(**host) for host in json.loads(sys.argv[1])], Path(sys.argv[2])))
