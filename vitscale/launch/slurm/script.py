"""A batch script that a person can read, change and submit again: runs of one shape, as an array or as one job."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitscale.errors import INTERRUPTED
from vitscale.launch.slurm.settle import AGAIN
from vitscale.study.launcher import Slurm


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What each task of a script asks of the cluster."""

    label: str
    """What its runs have in common, in a few words."""
    nodes: int
    devices: int
    """Of each node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    ids: tuple[str, ...]
    """Of the runs that it works on, in turn."""
    title: str
    """Of the first of them, for who reads the script."""


def script(
    folder: Path,
    study: str,
    shape: Shape,
    tasks: Mapping[int, Task],
    *,
    array: bool,
    at_once: int | None,
    settings: Slurm,
) -> str:
    """The text. `folder`: of the submission, whose name is the job's; `at_once`: tasks of the array."""
    python = [*shlex.split(settings.container or ""), settings.python or _python(settings)]
    srun = ["srun", "--kill-on-bad-exit=0", f"--cpus-per-task={settings.cpus_per_device}", *settings.srun]
    return TEXT.format(
        label=_comment(shape.label),
        study=_comment(study),
        tasks=f"{len(tasks)} tasks" if len(tasks) > 1 else "1 task",
        path=shlex.quote(str(folder / "job.sh")),
        options="\n".join(f"#SBATCH {option}" for option in _options(folder, shape, tasks, array, at_once, settings)),
        ids="\n".join(
            f'ids[{number}]="{" ".join(task.ids)}"  # {_comment(task.title)}' for number, task in tasks.items()
        ),
        cwd=shlex.quote(str(Path.cwd())),
        setup="\n".join(f"{line} || exit 1" for line in (*map(_load, settings.modules), *settings.setup)),
        runs=shlex.quote(str(folder.parent.parent)),
        python=shlex.join(python),
        task="$SLURM_ARRAY_TASK_ID" if array else "0",
        job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if array else "$SLURM_JOB_ID",
        srun=shlex.join(srun),
        again=AGAIN,
        interrupted=INTERRUPTED,
    )


TEXT = """\
#!/bin/bash
# {label}, study {study}: {tasks}. What is done is passed over: this can be submitted again at any time, by hand, too:
#   sbatch {path}
{options}

{ids}

cd {cwd} || exit 1
{setup}
runs={runs}
python=({python})
task={task}
job={job}

trap : TERM  # this shell outlives the processes that a signal asks to save
while
  {srun} "${{python[@]}}" -m vitscale.launch.slurm.task "$runs" ${{ids[task]}}
  "${{python[@]}}" -m vitscale.launch.slurm.settle "$runs" $? ${{ids[task]}}
  code=$?
  [ $code -eq {again} ]  # a failure that is worth another try
do :; done

# Saved ahead of the time limit: back into the queue. A job that was cancelled or preempted is no longer RUNNING.
if [ $code -eq {interrupted} ] && scontrol show job "$job" | grep -q JobState=RUNNING; then
  scontrol requeue "$job"
fi
exit $code
"""


def _load(module: str) -> str:
    return f"module load {module}"


def _python(settings: Slurm) -> str:
    return "python" if settings.container else sys.executable


def _options(
    folder: Path, shape: Shape, tasks: Mapping[int, Task], array: bool, at_once: int | None, settings: Slurm
) -> Iterator[str]:
    """Those of sbatch, a line each; the site's own come last and win."""
    # Slurm replaces %; a quoted text may hold spaces.
    output = str(folder).replace("%", "%%") + ("/%a.txt" if array else "/0.txt")
    yield f"--output={shlex.quote(output)}"
    if array:
        yield f"--array={ranges(list(tasks))}" + (f"%{at_once}" if at_once else "")
    yield f"--nodes={shape.nodes}"
    yield f"--ntasks-per-node={shape.devices}"
    yield f"--cpus-per-task={settings.cpus_per_device}"
    if settings.gpus_per_node:
        yield f"--gres=gpu:{shape.devices}"
    asked = {"mem": settings.memory, "time": settings.time, "partition": settings.partition}
    asked |= {"account": settings.account, "qos": settings.qos, "constraint": settings.constraint}
    yield from (f"--{name}={shlex.quote(value)}" for name, value in asked.items() if value is not None)
    if settings.signal:
        yield f"--signal=USR1@{settings.signal}"
    yield "--requeue"
    yield "--open-mode=append"
    yield from settings.sbatch
    yield f"--job-name={folder.name}"  # after them: jobs are found by it


def ranges(numbers: Sequence[int]) -> str:
    """`0-3,7` of 0, 1, 2, 3 and 7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)


def _comment(text: str) -> str:
    """On one line, whatever a study's author has written."""
    return " ".join(text.split())
