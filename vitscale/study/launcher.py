"""`[launcher.slurm]`: what a cluster wants to know of a job. None of it changes an outcome, so it is in no run's id."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from vitscale.study import fields
from vitscale.study.mistakes import Mistakes


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """Every key of the table, in a study or in the user's own configuration."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    """The limit of each job, as sbatch takes it (minutes, or `24:00:00`, `2-00:00:00`), longer than `signal`; a run
    that needs longer goes back into the queue. None: the partition's."""
    signal: int = 300
    """Seconds before that limit at which a run saves and ends."""
    gpus_per_node: int = 0
    """GPUs that a node has; 0: runs use the processor. A job asks for as many of them as it has devices on a node."""
    cpus_per_device: int = 1
    """Cores of each process (`--cpus-per-task`): of one device, and its readers of images."""
    memory: str | None = None
    """Of each node (`--mem`), such as `64G`. None: the partition's."""
    modules: tuple[str, ...] = ()
    """Loaded with `module load` before anything starts."""
    setup: tuple[str, ...] = ()
    """Lines of shell after that, such as `source .venv/bin/activate`."""
    container: str | None = None
    """Words before Python, such as `apptainer exec --nv vitscale.sif`."""
    python: str | None = None
    """None: the Python of the sweep; in a container its `python`."""
    srun: tuple[str, ...] = ()
    """Further options of srun, such as `--container-image=vitscale.sqsh`."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, such as `--exclusive`."""


def read(tables: Any, mistakes: Mistakes) -> dict[str, Any]:
    """The values of `[launcher.slurm]` in a document's `[launcher]`; what is wrong with it is among the mistakes."""
    if not isinstance(tables, Mapping) or not all(isinstance(table, Mapping) for table in tables.values()):
        mistakes.add("launcher", "launcher is not a table", "write [launcher.slurm] on a line of its own")
        return {}
    for name in tables:
        if name != "slurm":
            mistakes.unknown(f"launcher.{name}", f"launcher.{name}", ["launcher.slurm"])
    known, found = fields.types(Slurm), {}
    for key, value in tables.get("slurm", {}).items():
        where = f"launcher.slurm.{key}"
        if key not in known:
            mistakes.unknown(where, where, [f"launcher.slurm.{name}" for name in known])
            continue
        try:
            found[key] = fields.convert(known[key], value)
        except ValueError as error:
            mistakes.add(where, f"{where}: {error}", f"'{key}' takes {_taken(known[key])}")
            continue
        if reason := _unfit(key, found[key]):
            mistakes.add(where, f"{where}: {found[key]!r} {reason}", "see docs/slurm.md")
            del found[key]
    # One that is given alone is held against the other of the study or the user's own configuration, or its default.
    if {"time", "signal"} <= set(found) and (problem := too_short(found["time"], found["signal"])):
        mistakes.add("launcher.slurm.time", *problem)
    return found


def too_short(time: str | None, signal: int) -> tuple[str, str] | None:
    """What is wrong where a job would be told to save as soon as it starts, and the way out; None: it has time."""
    limit = seconds(time) if time is not None else None
    if limit is None or limit > signal:
        return None
    return (
        f"launcher.slurm.time: {time!r} is {limit:.0f} s, and runs save and end {signal} s before that (signal)",
        "give jobs more time, or a smaller signal; a number alone is of minutes",
    )


def seconds(time: str) -> float | None:
    """Of a time limit as sbatch takes it, in the whole minutes that Slurm makes of it; None: it is none.

    Without limit, which 0 means, too: infinity.
    """
    if time.upper() in ("UNLIMITED", "INFINITE"):
        return inf
    if not TIME.fullmatch(time):
        return None
    days, dash, rest = time.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    units = (3600, 60, 1) if dash or len(numbers) == 3 else (60, 1)
    exact = 86_400 * int(days or 0) + sum(number * unit for number, unit in zip(numbers, units, strict=False))
    return 60 * -(-exact // 60) or inf


def _taken(hint: Any) -> str:
    kind = str(hint)
    if "tuple" in kind:
        return "a list of texts"
    return "a whole number" if "int" in kind else "a text"


def _is_open(words: str) -> bool:
    try:
        shlex.split(words)
    except ValueError:
        return True
    return False


TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}", re.ASCII)
LEAST = {"signal": 0, "gpus_per_node": 0, "cpus_per_device": 1}


def _unfit(key: str, value: Any) -> str | None:
    """Why a value of the right type cannot be; None: it can."""
    if isinstance(value, int) and value < LEAST[key]:
        return f"is less than {LEAST[key]}"
    if key == "time" and seconds(value) is None:
        return "is no time limit"
    return "has a quote that is not closed" if key == "container" and _is_open(value) else None
