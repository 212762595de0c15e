"""Workers on this machine: so many processes at once, each for one pre-training or all transfers of one checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitscale.errors import HELD, INTERRUPTED, MISSING, RUN_FAILED, Problem
from vitscale.failures import Failure
from vitscale.files import FULL
from vitscale.launch import folders, over_ssh
from vitscale.launch.hostfile import Host
from vitscale.launch.placement import OF_PROCESS
from vitscale.processes import STOP_SIGNALS, signal_at_parent_death

SATED = ("no space left", *map(os.strerror, FULL))
"""Words of an error of a disk that takes nothing more."""

LET_GO = 10.0
"""Seconds for a run to be free after the death of a worker whose own processes have it: a large one dies slowly."""


def _before_exec() -> None:
    """In the child: a checkpoint and an end when the launcher dies, however it dies; no signal before it listens."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    signal_at_parent_death(signal.SIGTERM)


@dataclass(eq=False)
class Worker:
    """One process, or one for each of several devices, and the run folders that it works on, in turn."""

    work: Sequence[Path]
    threads: int
    devices: int = 1
    hosts: Sequence[Host] = ()
    """Where they are; none: here."""
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] = field(init=False)
    asked_to_stop: bool = field(default=False, init=False)
    _aside: dict[Path, int] = field(default_factory=dict, init=False)
    """How many outcomes of each run had been put aside before it started, where any had."""

    def __post_init__(self) -> None:
        # Of its place it hears what was found here, and not what else may stand in a user's environment.
        around = {name: value for name, value in os.environ.items() if name not in OF_PROCESS}
        environment = {**around, **self.environment, "OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        self._aside = {folder: len(folders.put_aside(folder)) for folder in self.work}
        with (self.work[0] / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self._module(), *map(str, self.work)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the launcher alone, which then asks the workers to stop
                preexec_fn=_before_exec,
            )

    def _module(self) -> list[str]:
        if self.hosts:
            return over_ssh.arguments(self.hosts)
        return ["vitscale.train.worker"] if self.devices == 1 else ["vitscale.train.spawn", str(self.devices)]

    def ended(self) -> int | None:
        """The exit code, once the process has ended."""
        return self.process.poll()

    def stop(self, *, now: bool = False) -> None:
        """Asks for a checkpoint and an end; `now`: ends it without."""
        self.asked_to_stop = True
        if now:
            self.process.kill()
        elif self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def record_death(self, who: str = "") -> None:
        """A process that died without a word leaves a failure behind, for the run that it was working on.

        `who`: how its reason begins. That of a process that was killed replaces what its peers could only guess.
        """
        code = self.process.returncode
        if code in (HELD, MISSING):
            for folder in self.work:
                folders.withdraw(folder)
        if code in (0, HELD, MISSING, INTERRUPTED) or self.asked_to_stop:
            return
        end = time.monotonic() + LET_GO
        for folder in self.work:
            if len(folders.put_aside(folder)) > self._aside.get(folder, 0):
                continue  # it said how it ended, and another sweep has begun to try it again
            known, killed = folders.result(folder), killed_by(code)
            if (known is None or (killed and known.get("provisional"))) and _is_free(folder, end):
                kind = Failure.KILLED if killed else Failure.CODE
                reason = f"{who}{cause(code, folder)}"
                folders.record_failure(folder, kind, reason, last_words(folder), RUN_FAILED)
                return


def _is_free(folder: Path, end: float) -> bool:
    """Whether nobody holds the run, or lets go of it until then."""
    while folders.is_held(folder):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def last_words(folder: Path) -> str:
    """The way out for a run whose processes said nothing."""
    return f"{folder / 'log.txt'} has its last words; the same command tries again, a sweep with --retry-failed"


def trouble(folder: Path) -> Problem | None:
    """The error that a run's processes have printed last, where that is another than that of a full disk."""
    log = folder / "log.txt"
    last = log.read_text(errors="replace").splitlines()[-2:] if log.is_file() else []
    if len(last) < 2 or not last[0].startswith("error: ") or any(words in last[0] for words in SATED):
        return None
    return Problem(last[0].removeprefix("error: "), last[1].removeprefix("hint: "))


def killed_by(code: int) -> int:
    """The signal that ended a worker with this exit code, or one of its processes; 0: none did."""
    number = -code if code < 0 else code - 128
    return number if number in signal.valid_signals() else 0


def cause(code: int, folder: Path) -> str:
    """Why a worker ended that could not say so itself."""
    number = killed_by(code)
    if number == signal.SIGKILL:
        return "killed (signal 9): often the machine ran out of memory"
    if number:
        return f"killed by signal {number}"
    log = (
        (folder / "log.txt").read_text(errors="replace").strip().splitlines() if (folder / "log.txt").is_file() else []
    )
    return f"exit code {code}: {log[-1] if log else 'no message'}"


def wait_any(workers: Sequence[Worker], seconds: float) -> list[Worker]:
    """The workers that have ended, as soon as there is one; none after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        ended = [worker for worker in workers if worker.ended() is not None]
        if ended or time.monotonic() > end:
            return ended
        time.sleep(0.1)
