"""Options that several verbs share, spelled and explained once."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitscale.errors import MISSING, USAGE, VitscaleError
from vitscale.models.counts import Counting
from vitscale.processes import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vitscale.launch.hostfile import Host
    from vitscale.launch.machine import Machine, Places
    from vitscale.launch.placement import Place
    from vitscale.study.job import Job

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The study's TOML file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting of the study, e.g. recipe.lr=3e-4."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the run folders.")]
Results = Annotated[Path, typer.Option("--results", help="Folder of the result parts.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs", min=1, help="Runs at once. Default: as many as --gpus have places, else 2, or 1 where there is a GPU."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="CPU threads of each process. Default: the cores, shared out, or what a run began with.",
    ),
]
CountingOption = Annotated[
    Counting,
    typer.Option(
        "--counting",
        help="Which taps of padded convolutions cost: all (dense), or those inside the image (valid), as in the paper.",
    ),
]
Devices = Annotated[
    int | None,
    typer.Option(
        "--devices",
        min=1,
        help="Processes that pre-train one run together, on each host: a GPU or threads for each. "
        "Default: 1, or each host's slots.",
    ),
]
Gpus = Annotated[
    str | None,
    typer.Option("--gpus", metavar="0,1,...", help="Spread the runs over these GPUs, one on each, or --per-gpu."),
]
PerGpu = Annotated[
    int, typer.Option("--per-gpu", min=1, help="Runs that share one of --gpus, and its memory, in equal parts.")
]
Nodes = Annotated[
    int | None, typer.Option("--nodes", min=1, help="Hosts of the hostfile, from its first. Default: all.")
]
Hostfile = Annotated[
    Path | None,
    typer.Option(
        "--hostfile",
        help="Pre-train on these hosts, over ssh: a line each, NAME slots=DEVICES. "
        "They need this folder and this Python, on a file system that they share.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Threads of each process (beside a GPU: processes) that read and decode images. Default: the cores.",
    ),
]
AUTO = "auto"


def finite(number: float | None) -> float | None:
    """Of an option with a least value: neither "inf" nor "nan", which any bound lets pass.

    Raises:
        typer.BadParameter: it is one of them (exit 2).
    """
    if number is not None and not math.isfinite(number):
        raise typer.BadParameter(f"{number} is no number")
    return number


def _or_auto(allowed: Callable[[int], bool], wanted: str) -> Callable[[str], int | str]:
    """A parser of numbers beside `auto`."""

    def parse(text: str) -> int | str:
        if text == AUTO:
            return text
        if not text.isdecimal() or not allowed(int(text)):
            raise typer.BadParameter(f"{text!r} is neither {AUTO} nor {wanted}")
        return int(text)

    return parse


def given(choice: int | str) -> int | None:
    """None for `auto`."""
    return None if isinstance(choice, str) else choice


MicroBatch = Annotated[
    Any,
    typer.Option(
        "--micro-batch",
        metavar="N|auto",
        parser=_or_auto(lambda n: n > 0, "a number of images"),
        help="Images at once on a device. auto: as many as fit into its memory, measured once and remembered.",
    ),
]
Zero = Annotated[
    Any,
    typer.Option(
        "--zero",
        metavar="0..3|auto",
        parser=_or_auto(lambda n: n <= 3, "0, 1, 2 or 3"),
        help="ZeRO stage: what the devices share out among them. auto: 0 (nothing), or more where memory is short.",
    ),
]
SkipNonfinite = Annotated[
    int,
    typer.Option("--skip-nonfinite", min=0, help="Steps of a run that may be left out as their gradients overflow."),
]
KeepLast = Annotated[int, typer.Option("--keep-last", min=1, help="How many of the latest checkpoints are kept.")]
KeepEvery = Annotated[
    int | None, typer.Option("--keep-every", min=1, help="Steps between checkpoints that are kept for good.")
]
SaveEvery = Annotated[
    float,
    typer.Option(
        "--save-every",
        min=0,
        callback=finite,
        metavar="SECONDS",
        help="Time between two checkpoints; 0: at each step.",
    ),
]
ActivationCheckpointing = Annotated[
    bool | None,
    typer.Option(
        "--activation-checkpointing/--no-activation-checkpointing",
        help="Keep only what enters each block; compute the rest again. Default: where memory is short.",
    ),
]
Offload = Annotated[
    bool | None,
    typer.Option(
        "--offload/--no-offload",
        help="Keep the optimizer's state in the host's memory (from ZeRO stage 1). Default: where a GPU's is short.",
    ),
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network with torch.compile before it trains.")]

Stall = Annotated[
    float,
    typer.Option(
        "--stall",
        min=0,
        callback=finite,
        metavar="SECONDS",
        help="End a run that has not moved for so long (6 times so long before its first step is done); 0: never.",
    ),
]

Tensorboard = Annotated[
    Path | None,
    typer.Option(
        "--tensorboard", metavar="FOLDER", help="Write the numbers of each pre-training for TensorBoard, too."
    ),
]
Wandb = Annotated[
    str | None,
    typer.Option("--wandb", metavar="PROJECT", help="Send the numbers of each pre-training to Weights & Biases, too."),
]


def places(runs: Path, results: Path) -> Places:
    from vitscale.launch.machine import Places

    return Places(runs=runs, results=results)


def machine(
    jobs: int | None,
    threads: int | None,
    *,
    most: int | None = None,
    devices: int | None = None,
    hosts: tuple[Host, ...] = (),
    gpus: str | None = None,
    per_gpu: int = 1,
    shared_by: int = 1,
    **engine: Any,
) -> Machine:
    """The machine's settings with their defaults; `engine`: as of `Machine`.

    `most`: how many jobs there are at all; `shared_by`: how many commands like this one share the cores.

    Raises:
        VitscaleError: they contradict one another, or the environment says what cannot be (exit 2).
    """
    from vitscale.launch.machine import Machine
    from vitscale.launch.placement import check_environment

    check_environment()
    if engine.get("offload") and engine.get("zero_stage") == 0:
        raise VitscaleError(
            "--offload needs ZeRO: at stage 0 each device keeps all of the optimizer's state",
            hint="leave --zero out, or give 1, 2 or 3",
            exit_code=USAGE,
        )
    devices = max((host.slots for host in hosts), default=devices or 1)
    named = _gpus(gpus, per_gpu, jobs, devices, hosts)
    slots = len(named) * per_gpu
    default = slots or (1 if shutil.which("nvidia-smi") or devices > 1 or hosts else min(2, cores()))
    jobs = min(jobs or default, most or cores() * 64)
    processes = min(jobs * devices, slots) if named else jobs * devices
    engine["threads_given"] = threads is not None
    threads = threads or max(cores() // (processes * shared_by), 1)
    if processes > 1 and engine.get("workers") is None:  # readers of images have a part of the cores, too
        engine["workers"] = threads
    return Machine(jobs=jobs, threads=threads, devices=devices, hosts=hosts, gpus=named, per_gpu=per_gpu, **engine)


def _gpus(gpus: str | None, per_gpu: int, jobs: int | None, devices: int, hosts: tuple[Host, ...]) -> tuple[str, ...]:
    from vitscale.launch.slots import named

    if gpus is None:
        if per_gpu > 1:
            raise VitscaleError("--per-gpu without GPUs", hint="name them, e.g. --gpus 0,1", exit_code=USAGE)
        return ()
    if hosts:
        hint = "the hostfile says how many devices each host has: leave --gpus out"
        raise VitscaleError("--gpus are of this machine, and --hostfile names others", hint=hint, exit_code=USAGE)
    found = named(gpus)
    if devices > len(found):
        hint = f"name at least {devices} GPUs, or give a smaller --devices"
        raise VitscaleError(
            f"--devices {devices} needs as many GPUs, and --gpus {gpus} has {len(found)}", hint=hint, exit_code=USAGE
        )
    if (jobs or 1) > len(found) * per_gpu:
        hint = "leave --jobs out, or give more --per-gpu"
        raise VitscaleError(
            f"--jobs {jobs} on {len(found) * per_gpu} places of --gpus {gpus}", hint=hint, exit_code=USAGE
        )
    return found


def monitors(tensorboard: Path | None, wandb: str | None) -> dict[str, Any]:
    """Settings of `Machine`: where numbers are shown beside the log.

    Raises:
        VitscaleError: a package is missing (exit 5), or the folder is a file (exit 2).
    """
    for package, given in (("tensorboard", tensorboard), ("wandb", wandb)):
        if given is not None and not _is_installed(package):
            raise VitscaleError(
                f"--{package} needs the Python package {package}",
                hint="pip install 'vitscale[monitor]' installs it",
                exit_code=MISSING,
            )
    if tensorboard is not None and tensorboard.exists() and not tensorboard.is_dir():
        raise VitscaleError(f"{tensorboard} is not a folder", hint="name a folder, old or new", exit_code=USAGE)
    if wandb is not None and not wandb.strip():
        raise VitscaleError("--wandb names no project", hint="for example --wandb vitscale", exit_code=USAGE)
    return {"tensorboard": None if tensorboard is None else str(tensorboard.absolute()), "wandb": wandb}


def _is_installed(package: str) -> bool:
    # A folder of that name, such as W&B makes in the working folder, is found, too, and has no origin.
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def hosts(hostfile: Path | None, nodes: int | None, devices: int | None) -> tuple[Host, ...]:
    """The hosts to run on, each of which has answered; none: this machine.

    Raises:
        VitscaleError: a mistake in the options or the hostfile (exit 2); a host that does not answer (exit 5).
    """
    if hostfile is None:
        if nodes not in (None, 1):
            raise VitscaleError(
                f"--nodes {nodes} without the hosts' names",
                hint="give --hostfile FILE, or start the command on every host with torchrun or srun",
                exit_code=USAGE,
            )
        return ()
    from vitscale.launch import over_ssh
    from vitscale.launch.hostfile import hosts_of

    found = hosts_of(hostfile, nodes=nodes, devices=devices)
    over_ssh.check(found)
    return found


def world_size(hosts: tuple[Host, ...], devices: int | None) -> int:
    """Processes that pre-train one run together."""
    return sum(host.slots for host in hosts) or devices or 1


def place(devices: int | None, hostfile: Path | None) -> Place | None:
    """Where torchrun or srun has put this process; None where it is alone.

    Raises:
        VitscaleError: it is to start several itself, too (exit 2).
    """
    from vitscale.launch.placement import place

    found = place()
    if found is not None and (hostfile is not None or (devices or 1) > 1):
        raise VitscaleError(
            f"this is one of {found.world_size} processes, one for each device, and cannot start more",
            hint="leave --devices and --hostfile out under torchrun and srun",
            exit_code=USAGE,
        )
    return found


def check_alone() -> None:
    """Refuses to be one of several processes.

    Raises:
        VitscaleError: torchrun or srun has started this command several times (exit 2).
    """
    if (found := place(None, None)) is not None:
        raise VitscaleError(
            f"this is one of {found.world_size} processes, and a sweep starts its own",
            hint="start one sweep, with --hostfile for several hosts; torchrun and srun are for vitscale pretrain",
            exit_code=USAGE,
        )


@contextlib.contextmanager
def only_first_speaks(place: Place | None) -> Iterator[None]:
    """What is wrong with the command is wrong for all processes; what is missing on a host, for those there."""
    try:
        yield
    except VitscaleError as error:
        if place is not None and place.rank > 0 and error.exit_code != MISSING:
            raise typer.Exit(error.exit_code) from None
        raise


def check_micro_batch(micro_batch: int | None, devices: int, jobs: Iterable[Job]) -> None:
    """Refuses devices or a micro-batch that leave a rest of some run's global batch.

    Raises:
        VitscaleError: exit 2.
    """
    for job in jobs:
        batch = job.run.recipe.batch_size
        if job.kind == "pretrain" and batch % devices:
            raise VitscaleError(
                f"{devices} devices do not divide the global batch {batch} of {job.run.model.name}",
                hint="give --devices a divisor of recipe.batch_size",
                exit_code=USAGE,
            )
        part = batch // devices
        if micro_batch is not None and part % min(micro_batch, part):
            of = f" on {devices} devices" if devices > 1 else ""
            raise VitscaleError(
                f"micro-batch {micro_batch} does not divide the global batch {batch} of {job.run.model.name}{of}",
                hint="give --micro-batch a divisor of what each device has of recipe.batch_size",
                exit_code=USAGE,
            )
