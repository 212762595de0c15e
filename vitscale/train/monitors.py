"""TensorBoard and Weights & Biases beside `events.jsonl`, through DeepSpeed's monitor."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from vitscale.errors import MISSING, VitscaleError
from vitscale.train.engine import deepspeed  # which has set it up
from vitscale.train.rundir import RunDir

OF_STEPS = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "lr": "train/lr",
    "images_per_second": "speed/images_per_second",
    "mfu": "speed/mfu",
    "memory_peak": "memory/peak_bytes",
}
NEEDS = {
    "tensorboard": "TensorBoard needs a folder that can be written",
    "wandb": "W&B needs a login, or WANDB_MODE=offline",
}
UPLOAD = 20
"""Seconds at the end of a run for W&B to send what it still holds, where WANDB_FINISH_TIMEOUT does not say."""


class Monitors:
    """The log of a run, whose first process also shows it where the machine's settings ask for that.

    A run that goes on from `step` does so in the same place. Later steps of an earlier attempt are computed again:
    TensorBoard is told to forget them, and W&B keeps the first numbers that it was given for a step.
    """

    def __init__(self, rundir: RunDir, step: int) -> None:
        self._rundir = rundir
        self._master: Any = None
        told = {service: rundir.machine.get(service) for service in ("tensorboard", "wandb")}
        if not rundir.writes or not any(told.values()):
            return
        try:
            self._master = _opened(rundir, told["tensorboard"], told["wandb"])
            if told["tensorboard"]:
                _forget_after(step, self._master.tb_monitor.summary_writer)
        except Exception as error:
            where = " and ".join(f"--{service} {place}" for service, place in told.items() if place)
            raise VitscaleError(
                f"{where} cannot be opened: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
                hint="; ".join(NEEDS[service] for service, place in told.items() if place),
                exit_code=MISSING,
            ) from None

    def __enter__(self) -> Monitors:
        return self

    def __exit__(self, *_: object) -> None:
        """Writes out what is held back: the process ends without the interpreter's own end."""
        master, self._master = self._master, None
        if master is None:
            return
        try:
            if master.tb_monitor is not None:
                master.tb_monitor.summary_writer.close()
            if master.wandb_monitor is not None:
                import wandb

                wandb.finish()
        except Exception as error:
            _say_lost(error)

    def log(self, event: str, facts: Mapping[str, Any]) -> None:
        """A line of the log. A service that fails is given up with a word: the training goes on without it."""
        self._rundir.log(event, facts)
        found = scalars(event, facts)
        if self._master is None or not found:
            return
        try:
            self._master.write_events([(tag, value, facts["step"]) for tag, value in found.items()])
        except Exception as error:
            _say_lost(error)
            self._master = None


def _say_lost(error: Exception) -> None:
    print(f"TensorBoard or W&B fails, and has not all of the numbers: {type(error).__name__}: {error}", flush=True)


OF_RUN = ("step", "device_seconds", "flops_eval")
"""Of a validation's line what is no score."""


def scalars(event: str, facts: Mapping[str, Any]) -> dict[str, float]:
    """Tags and numbers of a line of the log; without those that could not be measured or are not finite."""
    named: dict[str, Any] = {}
    if event == "step":
        named = {tag: facts[key] for key, tag in OF_STEPS.items()}
        named |= {f"seconds/{part}": spent for part, spent in facts["seconds"].items()}
    elif event == "validate":
        named = {f"upstream_val/{key}": value for key, value in facts.items() if key not in OF_RUN}
    elif event == "probe":
        named = {f"probe/{task}_{facts['shots']}shot": value for task, value in facts["accuracy"].items()}
    return {tag: float(value) for tag, value in named.items() if value is not None and math.isfinite(value)}


def _opened(rundir: RunDir, tensorboard: str | None, wandb: str | None) -> Any:
    """DeepSpeed's monitor. What its W&B part does not pass on, W&B takes from the environment."""
    os.environ |= {"WANDB_RUN_ID": rundir.id, "WANDB_NAME": rundir.id, "WANDB_RESUME": "allow"}
    os.environ.setdefault("WANDB_DIR", str(rundir.folder.absolute()))
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(UPLOAD))
    config = {
        "tensorboard": {"enabled": bool(tensorboard), "output_path": tensorboard or "", "job_name": rundir.id},
        "wandb": {"enabled": bool(wandb), "project": wandb or ""},
    }
    return deepspeed.monitor.monitor.MonitorMaster(deepspeed.monitor.config.get_monitor_config(config))


def _forget_after(step: int, writer: Any) -> None:
    """The mark of a restart, by which readers drop what was written of later steps before it."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step=step + 1)
    writer.flush()
