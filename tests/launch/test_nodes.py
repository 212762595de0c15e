"""One run on two hosts, by each door: the same weights as one process, and no orphan whatever dies."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import tiny
from slurm import slurm
from two_hosts import Hosts, two_hosts
from vitscale.errors import DONE, INTERRUPTED, MISSING, RUN_FAILED, USAGE
from vitscale.launch import eventlog, folders

# Several processes of torch and DeepSpeed each.
pytestmark = pytest.mark.slow

STAGES = (0, 2, 3)
ROUNDING = 2e-5  # of weights of size 1, after some dozens of steps in fp32

SMALL = ("model.width=16", "model.depth=2", "model.mlp=32", "model.heads=2", "recipe.warmup_steps=2", "recipe.lr=1e-3")
EXACT = (*SMALL, "recipe.dropout=0", "recipe.batch_size=40", "data.resolution=28", "data.val_examples=20")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes")
    tiny.write(folder)
    return folder


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts")) as found:
        yield found


def pretrain(base: Path, runs: Path, steps: int) -> list[str]:
    settings = [word for setting in (*EXACT, f"recipe.steps={steps}") for word in ("--set", setting)]
    places = ["--runs", str(runs), "--results", str(runs.parent / "results")]
    return ["pretrain", "--model", "ViT-Ti/7", "--data", str(base / "train"), "--threads", "1", *settings, *places]


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of 30 steps on one process."""
    runs = tmp_path_factory.mktemp("alone") / "runs"
    subprocess.run([sys.executable, "-m", "vitscale", *pretrain(base, runs, 30)], check=True, cwd=base)
    return next(runs.iterdir())


def weights(run: Path) -> dict[str, torch.Tensor]:
    outcome = folders.result(run)
    assert outcome is not None
    assert outcome["status"] == "done", outcome
    found = load_file(run / "checkpoints" / outcome["checkpoint"] / "model.safetensors")
    for key in found:
        if key.endswith("qkv.bias"):  # attention keys' share has no gradient but rounding
            found[key] = torch.cat([third for i, third in enumerate(found[key].chunk(3)) if i != 1])
    return found


def apart(one: Path, other: Path) -> float:
    ours, theirs = weights(one), weights(other)
    return max(float((ours[key] - theirs[key]).abs().max()) for key in theirs)


def until(condition: Callable[[], object], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def steps(runs: Path) -> int:
    return max(((eventlog.last_event(run) or {}).get("step", 0) for run in runs.glob("*")), default=0)


@pytest.fixture
def long(hosts: Hosts, base: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run on both hosts that would take hours, under way; in `tmp_path/runs`."""
    command = [*pretrain(base, tmp_path / "runs", 10**6), "--hostfile", hosts.hostfile()]
    process = hosts.start(0, *command, cwd=base)
    until(lambda: steps(tmp_path / "runs") or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    yield process
    process.kill()
    process.communicate()
    hosts.connect(1)


@pytest.mark.parametrize("stage", STAGES)
def test_two_hosts_over_ssh_train_the_same_model(
    hosts: Hosts, base: Path, alone: Path, tmp_path: Path, stage: int
) -> None:
    zero = ["--zero", str(stage)] if stage else []
    process = hosts.start(
        0, *pretrain(base, tmp_path / "runs", 30), "--hostfile", hosts.hostfile(), "--nodes", "2", *zero, cwd=base
    )
    out, err = process.communicate(timeout=200)
    assert process.returncode == DONE, err
    run = tmp_path / "runs" / out.strip()
    assert (folders.result(run) or {})["n_devices"] == 4
    assert apart(run, alone) < ROUNDING


def test_torchrun_on_each_host_trains_the_same_model(hosts: Hosts, base: Path, alone: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "node0:29400", "-m", "vitscale"]
    command = [*torchrun, *meet, *pretrain(base, tmp_path / "runs", 30)]
    both = [
        subprocess.Popen(hosts.on(node, *command), cwd=base, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for node in range(2)
    ]
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [DONE, DONE], said
    printed = "".join(out for out, _ in said).split()
    assert printed == [alone.name]  # by one process of four
    assert apart(tmp_path / "runs" / alone.name, alone) < ROUNDING


def test_a_host_that_is_cut_off_is_named_and_the_run_goes_on_without_it(
    hosts: Hosts, base: Path, tmp_path: Path, long: subprocess.Popen[str]
) -> None:
    runs = tmp_path / "runs"
    (run,) = runs.iterdir()
    began = time.monotonic()
    hosts.cut_off(1)
    _, err = long.communicate(timeout=90)
    assert long.returncode == RUN_FAILED
    assert "host node1 (ranks 2 to 3)" in err or "host node1 (ranks 2 and 3)" in err
    assert time.monotonic() - began < 60
    until(lambda: not hosts.processes(0, run) and not hosts.processes(1, run))
    hosts.connect(1)
    again = hosts.start(0, *pretrain(base, runs, 10**6), "--hostfile", hosts.hostfile(), "--nodes", "1", cwd=base)
    before = len((run / "events.jsonl").read_text().splitlines())
    until(lambda: '"event": "step"' in "".join((run / "events.jsonl").read_text().splitlines()[before:]))
    again.send_signal(signal.SIGTERM)
    _, err = again.communicate(timeout=60)
    assert again.returncode == INTERRUPTED, err


def test_a_process_that_is_killed_is_named_and_takes_the_others_with_it(
    hosts: Hosts, tmp_path: Path, long: subprocess.Popen[str]
) -> None:
    (run,) = (tmp_path / "runs").iterdir()
    began = time.monotonic()
    os.kill(hosts.processes(1, run)[-1], signal.SIGKILL)
    _, err = long.communicate(timeout=60)
    assert long.returncode == RUN_FAILED
    assert "on node1 was killed by signal 9" in err
    assert time.monotonic() - began < 40
    assert not hosts.processes(0, run)
    assert not hosts.processes(1, run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR2])
def test_a_signal_to_the_launcher_is_a_checkpoint_on_all_hosts(
    hosts: Hosts, tmp_path: Path, long: subprocess.Popen[str], number: signal.Signals
) -> None:
    (run,) = (tmp_path / "runs").iterdir()
    long.send_signal(number)
    _, err = long.communicate(timeout=60)
    assert long.returncode == INTERRUPTED, err
    assert (run / "checkpoints" / "latest").is_file()
    assert folders.result(run) is None
    assert not hosts.processes(0, run)
    assert not hosts.processes(1, run)


def test_a_launcher_that_is_killed_leaves_a_checkpoint_and_no_orphans(
    hosts: Hosts, tmp_path: Path, long: subprocess.Popen[str]
) -> None:
    (run,) = (tmp_path / "runs").iterdir()
    assert len(hosts.processes(1, run)) == 2
    long.kill()
    until(lambda: not hosts.processes(0, run) and not hosts.processes(1, run), 60)
    assert (run / "checkpoints" / "latest").is_file()
    assert folders.result(run) is None


def test_a_host_that_nobody_knows_is_two_lines(hosts: Hosts, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "hostfile"
    path.write_text("node0 slots=1\nnowhere slots=1\n")
    process = hosts.start(0, *pretrain(base, tmp_path / "runs", 30), "--hostfile", str(path), cwd=base)
    _, err = process.communicate(timeout=60)
    assert process.returncode == MISSING
    lines = err.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: host nowhere: ssh: Could not resolve hostname nowhere")
    assert lines[1].startswith("hint: `ssh nowhere true`")
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_that_a_host_does_not_see_is_two_lines(hosts: Hosts, base: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    command = ["vitscale", *pretrain(base, runs, 30), "--hostfile", hosts.hostfile(), "--nodes", "2"]
    # A file system that only the launcher has: on a host each command has mounts of its own.
    mounted = ["sh", "-c", f'mount -t tmpfs tmpfs {runs} && exec "$@"', "sh", sys.executable, "-m", *command]
    process = subprocess.run(
        hosts.on(0, *mounted),
        cwd=base,
        env=hosts.environment(),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert process.returncode == MISSING, process.stderr
    error, hint = (line for line in process.stderr.splitlines() if line.startswith(("error:", "hint:")))
    assert "run.json is not there on node" in error
    assert hint == "hint: all hosts need the same working folder, and --runs on a file system that they share"


def test_a_sweep_pre_trains_on_all_hosts_and_transfers_on_its_own(hosts: Hosts, base: Path, tmp_path: Path) -> None:
    where = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    settings = ["--set", "recipe.dropout=0.0", "--threads", "1", "--hostfile", hosts.hostfile()]
    process = hosts.start(0, "sweep", str(base / "study.toml"), *where, *settings, cwd=base)
    _, err = process.communicate(timeout=300)
    assert process.returncode == DONE, err
    rows = pd.concat(pd.read_parquet(path) for path in (tmp_path / "results").rglob("*.parquet"))
    assert rows.groupby("protocol")["n_devices"].unique().map(list).to_dict() == {
        "pretrain": [4],
        "fewshot": [1],
        "finetune": [1],
    }


def test_a_port_in_use_is_two_lines(hosts: Hosts, base: Path, tmp_path: Path) -> None:
    command = [*pretrain(base, tmp_path / "runs", 30), "--hostfile", hosts.hostfile()]
    process = hosts.start(0, *command, cwd=base, MASTER_PORT="22")  # sshd's
    _, err = process.communicate(timeout=100)
    assert process.returncode == MISSING, err
    lines = [line for line in err.splitlines() if line.startswith(("error:", "hint:"))]
    assert lines == [
        "error: host node0: port 22 of node0, where the processes of the run would meet: Address already in use",
        "hint: name a free port in MASTER_PORT, or none: then one is chosen",
    ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


SRUN = ["srun", "--nodes=2", "--ntasks=2", "--kill-on-bad-exit=0", sys.executable, "-m", "vitscale"]


def test_srun_trains_the_same_model(cluster: dict[str, str], base: Path, alone: Path, tmp_path: Path) -> None:
    command = [*SRUN, *pretrain(base, tmp_path / "runs", 30)]
    ended = subprocess.run(command, cwd=base, env=cluster, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == DONE, ended.stderr
    assert ended.stdout.split() == [alone.name]  # by one process of two
    run = tmp_path / "runs" / alone.name
    assert (folders.result(run) or {})["n_devices"] == 2
    assert apart(run, alone) < ROUNDING


def test_what_is_wrong_is_said_once_under_srun(cluster: dict[str, str], base: Path, tmp_path: Path) -> None:
    command = [*SRUN, *pretrain(base, tmp_path / "runs", 30), "--set", "recipe.batch_size=7"]
    ended = subprocess.run(command, cwd=base, env=cluster, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == USAGE
    assert ended.stderr.count("error: 2 devices do not divide the global batch 7") == 1


def test_a_job_that_is_cancelled_by_a_signal_goes_on_in_the_next(
    cluster: dict[str, str], base: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    job = subprocess.Popen(
        [*SRUN, *pretrain(base, runs, 10**6)], cwd=base, env=cluster, stderr=subprocess.PIPE, text=True
    )
    until(lambda: steps(runs) or job.poll() is not None)
    (number,) = subprocess.check_output(["squeue", "-h", "-o", "%i"], env=cluster, text=True).split()
    subprocess.run(["scancel", "--signal=USR1", number], env=cluster, check=True)
    _, err = job.communicate(timeout=60)
    assert job.returncode == INTERRUPTED, err
    (run,) = runs.iterdir()
    assert (run / "checkpoints" / "latest").is_file()
    assert folders.result(run) is None


def test_the_documented_job_script_requeues_a_job_that_was_stopped(
    cluster: dict[str, str], base: Path, tmp_path: Path
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    script = text.partition("```bash\n")[2].partition("```")[0]
    script = script.replace("--ntasks-per-node=4 --gpus-per-task=1", "--ntasks-per-node=1")
    command = " ".join([sys.executable, "-m", "vitscale", *map(shlex.quote, pretrain(base, tmp_path / "runs", 10**6))])
    script = re.sub(r"vitscale pretrain .*", lambda _: command, script)
    submit = ["sbatch", "--parsable", f"--output={tmp_path}/job.txt"]
    job = subprocess.check_output(submit, input=script, cwd=base, env=cluster, text=True).strip()
    until(lambda: steps(tmp_path / "runs"))
    subprocess.run(["scancel", "--signal=USR1", job], env=cluster, check=True)

    def shown() -> str:
        return subprocess.check_output(["scontrol", "show", "job", job], env=cluster, text=True)

    until(lambda: "Restarts=1" in shown() and "JobState=PENDING" in shown())
    (run,) = (tmp_path / "runs").iterdir()
    # Slurm lets a requeued job wait for two minutes, and revokes what it gave to one that starts in the same second.
    time.sleep(2)

    def goes_on() -> bool:
        subprocess.run(["scontrol", "update", f"jobid={job}", "StartTime=now"], env=cluster, check=False)
        return (eventlog.last_event(run, "start") or {}).get("attempt") == 2

    until(goes_on, 240)
    subprocess.run(["scancel", job], env=cluster, check=True)
