"""Where a study runs: its folders, and how the work is cut up on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitscale.launch.hostfile import Host
from vitscale.study.cost import KEPT
from vitscale.study.job import Job


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where runs and results are."""

    runs: Path = Path("runs")
    results: Path = Path("results")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How the work is cut up here; none of it changes an outcome but for rounding."""

    jobs: int
    threads: int
    threads_given: bool = False
    """Not as the cores are shared out now: a run that goes on takes them, and not those that it began with."""
    devices: int = 1
    """Of each pre-training; transfers take one."""
    hosts: tuple[Host, ...] = ()
    """Of each pre-training; transfers, and all where there are none, run here."""
    gpus: tuple[str, ...] = ()
    """Those that runs are spread over, each run seeing its own; none: every run sees what this process does."""
    per_gpu: int = 1
    """Runs that share one of them, and its memory."""
    workers: int | None = None
    """Threads of each process (beside a GPU: processes) that read and decode images; None: one a core."""
    micro_batch: int | None = None
    """This and the next three: None where a worker chooses by what fits into its memory."""
    zero_stage: int | None = None
    activation_checkpointing: bool | None = None
    offload: bool | None = None
    compiled: bool = False
    skip_nonfinite: int = 0
    save_every: float = 60.0
    """Seconds between two checkpoints; after a kill so much is computed again."""
    keep_last: int = KEPT
    keep_every: int | None = None
    stall: float = 300.0
    """Seconds without a movement that end a run; 0: never."""
    tensorboard: str | None = None
    """A folder in which each pre-training has one with its numbers."""
    wandb: str | None = None
    """A project of Weights & Biases in which each pre-training is a run."""

    def told(self) -> dict[str, Any]:
        """All but where the processes are: what a worker must know."""
        return {key: value for key, value in asdict(self).items() if key not in ("devices", "hosts", "gpus")}

    def devices_for(self, job: Job) -> int:
        return self.devices if job.kind == "pretrain" else 1

    def hosts_for(self, job: Job) -> tuple[Host, ...]:
        return self.hosts if job.kind == "pretrain" else ()
