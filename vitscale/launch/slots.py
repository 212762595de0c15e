"""Places for workers on this machine: so many at once, each with the GPUs that it alone sees, or shares."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vitscale.errors import MISSING, USAGE, VitscaleError
from vitscale.wording import count

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Seat:
    """What one worker has."""

    gpus: tuple[str, ...]

    @property
    def environment(self) -> Mapping[str, str]:
        return {VISIBLE: ",".join(self.gpus)} if self.gpus else {}


@dataclass(kw_only=True)
class Slots:
    """At most `jobs` workers; where GPUs are named, one slot of each of its devices, `per_gpu` on a GPU."""

    jobs: int
    gpus: Sequence[str] = ()
    per_gpu: int = 1
    seats: list[Seat] = field(default_factory=list, init=False)

    @property
    def full(self) -> bool:
        return len(self.seats) >= self.jobs

    def take(self, devices: int) -> Seat | None:
        """A seat on so many different GPUs, the emptiest first; None where there is none now."""
        taken = Counter(gpu for seat in self.seats for gpu in seat.gpus)
        with_room = sorted((gpu for gpu in self.gpus if taken[gpu] < self.per_gpu), key=lambda gpu: taken[gpu])
        if self.full or (self.gpus and len(with_room) < devices):
            return None
        chosen = with_room[:devices]
        seat = Seat(tuple(gpu for gpu in self.gpus if gpu in chosen))
        self.seats.append(seat)
        return seat

    def give_back(self, seat: Seat) -> None:
        self.seats.remove(seat)


def named(gpus: str) -> tuple[str, ...]:
    """`0,1` as CUDA knows them: numbers count those that this process may see.

    Raises:
        VitscaleError: one is named twice, none is, or a name is no GPU's (exit 2); it is not there (exit 5).
    """
    names = [name.strip() for name in gpus.split(",") if name.strip()]
    unlike = [name for name in names if not name.isdecimal() and not name.startswith(("GPU-", "MIG-"))]
    if not names or unlike or len(set(names)) < len(names):
        what = f"{unlike[0]!r}, which is no GPU" if unlike else "one twice" if names else "none"
        raise VitscaleError(
            f"--gpus {gpus!r} names {what}",
            hint="numbers or names of nvidia-smi -L, for example --gpus 0,1; --per-gpu 2 runs two on each",
            exit_code=USAGE,
        )
    visible = _visible()
    missing = [name for name in names if name.isdecimal() and int(name) >= len(visible)]
    if missing or not visible:
        there = count(len(visible), "GPU") if visible else "no GPU"
        raise VitscaleError(
            f"--gpus {gpus}: this process sees {there}",
            hint=f"nvidia-smi -L lists them, {VISIBLE} may hide some; without --gpus the processor is used",
            exit_code=MISSING,
        )
    return tuple(visible[int(name)] if name.isdecimal() else name for name in names)


def _visible() -> list[str]:
    """What a scheduler has left of the GPUs, or all of them."""
    if (given := os.environ.get(VISIBLE)) is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]
