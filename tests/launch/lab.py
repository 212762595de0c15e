"""A person at a cluster: sweeps and Slurm's own commands, and the runs that come of them, for tests."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import tiny

LONG = 1_000_000
"""Steps of a run that does not end by itself."""
PRETRAINING = tiny.STUDY[: tiny.STUDY.index("[[transfer]]")]
FEWSHOT = '[[transfer]]\ntask = "digits"\nshots = [1]\n'


class Lab:
    """A cluster, and what a person does on it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.sweeps: list[subprocess.Popen[str]] = []

    def sweep(self, folder: Path, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vitscale.cli.main", "sweep", "study.toml", "--launcher", "slurm", *options]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.sweeps.append(process)
        return process

    def swept(self, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
        process = self.sweep(folder, *options)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def say(self, *command: str, check: bool = True) -> str:
        told = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=check, timeout=60)
        return told.stdout

    def status(self, folder: Path) -> dict[str, dict[str, Any]]:
        """What `vitscale status` says of each run, by its id."""
        told = subprocess.run(
            [sys.executable, "-m", "vitscale", "status", "study.toml", "--json"],
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return {run["run"]: run for run in json.loads(told.stdout)["runs"]}

    def jobs(self) -> dict[str, str]:
        """State of everything that is in the queue, by its number."""
        listed = self.say("squeue", "-h", "-r", "-o", "%i %T").split()
        return dict(zip(listed[::2], listed[1::2], strict=True))

    def shown(self, job: str) -> str:
        return self.say("scontrol", "show", "job", job, check=False)

    def start_again(self, job: str) -> None:
        """Slurm lets a requeued job wait for two minutes, and revokes what it gives to one that starts at once."""
        until(lambda: "JobState=PENDING" in self.shown(job))
        time.sleep(2)
        told = 0.0

        def begins() -> bool:
            nonlocal told
            if time.monotonic() - told > 15:  # each time the scheduler begins its round anew
                self.say("scontrol", "update", f"jobid={job}", "StartTime=now", check=False)
                told = time.monotonic()
            return "JobState=PENDING" not in self.shown(job)

        until(begins)

    def tell(self, folder: Path) -> None:
        """Of a test that failed: what pytest shows with it."""
        print(self.say("squeue", "-l", check=False))
        for path in sorted(folder.glob("*/runs/slurm/*/*.txt")):
            print(path, path.read_text()[-2000:], sep="\n")

    def clear(self) -> None:
        for process in self.sweeps:
            process.kill()
            process.communicate()
        self.sweeps.clear()
        if jobs := list(self.jobs()):
            self.say("scancel", *jobs, check=False)
        until(lambda: not self.jobs())
        self.say("scontrol", "update", "nodename=n1,n2", "state=resume", check=False)  # of those that were marked down
        until(lambda: set(self.say("sinfo", "-h", "-N", "-o", "%t").split()) == {"idle"})


def until(condition: Callable[[], object], seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def study(folder: Path, text: str = PRETRAINING, *, steps: int = 12, axes: str = "", **slurm: object) -> Path:
    folder.mkdir()
    text = text.replace("steps = 12\n", f"steps = {steps}\n", 1)
    table = "".join(f"{key} = {json.dumps(value)}\n" for key, value in slurm.items())
    tiny.write(folder, f"{text}{axes and '[[axes]]'}\n{axes}\n[launcher.slurm]\n{table}")
    return folder


def submitted(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("runs/slurm/*/submission.json"))]


def run_of(folder: Path, kind: str = "pretrain") -> Path:
    told = (json.loads(path.read_text()) for path in folder.glob("runs/*/run.json"))
    (found,) = (each["id"] for each in told if each["kind"] == kind and each["parent"] is None)
    return folder / "runs" / found


def job_of(folder: Path) -> str:
    """Slurm's number of the pre-training."""
    id_ = run_of(folder).name
    found = [
        f"{each['job']}_{task}" if each["array"] else str(each["job"])
        for each in submitted(folder)
        for task, ids in each["tasks"].items()
        if id_ in ids
    ]
    return found[-1]


def saved(folder: Path) -> bool:
    return any(folder.glob("runs/*/checkpoints/step-*"))


def environments() -> Iterator[dict[str, str]]:
    """Of all processes of this machine."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has just ended
            pairs = path.read_bytes().decode(errors="replace").split("\0")
            yield dict(pair.split("=", 1) for pair in pairs if "=" in pair)
