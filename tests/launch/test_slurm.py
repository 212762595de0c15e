"""Sweeps as jobs of a real Slurm: what becomes of them when it, or anybody, interferes."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from lab import FEWSHOT, LONG, PRETRAINING, Lab, environments, job_of, run_of, saved, study, submitted, until
from sweeps import VARIES, sweep

import tiny
from slurm import slurm
from vitscale import checkpoints
from vitscale.errors import DONE, INTERRUPTED, MISSING, RUN_FAILED
from vitscale.launch import eventlog, folders

pytestmark = pytest.mark.slow

PREEMPTION = (
    "PreemptType=preempt/partition_prio",
    "PreemptMode=REQUEUE",
    "KillWait=10",
    "PartitionName=high Nodes=ALL PriorityTier=10 State=UP",
    "PartitionName=cancels Nodes=ALL PreemptMode=CANCEL State=UP",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with slurm(tmp_path_factory.mktemp("cluster"), *PREEMPTION) as environment:
        yield Lab(environment)


@pytest.fixture
def lab(cluster: Lab, tmp_path: Path) -> Iterator[Lab]:
    yield cluster
    cluster.tell(tmp_path)
    cluster.clear()


def rows(folder: Path, results: str = "results") -> pd.DataFrame:
    frame = pd.read_parquet(folder / results / "study").drop(columns=VARIES)
    return frame.sort_values(["run_id", "task", "metric", "shots", "draw"]).reset_index(drop=True)


def attempts(folder: Path) -> int:
    """Begun ones; the last of which has taken a step."""
    begun = eventlog.last_event(run_of(folder), "start")
    stepped = eventlog.last_event(run_of(folder))
    return begun["attempt"] - (stepped is None or stepped["time"] < begun["time"]) if begun else 0


def test_a_study_becomes_arrays_that_wait_for_one_another(lab: Lab, tmp_path: Path) -> None:
    """Tuned runs, budgets that share a trunk, transfers of each: what is recorded is what this machine records."""
    text = PRETRAINING.replace("steps = 12\n", 'schedule = "constant"\ncooldown = 0.25\n') + FEWSHOT
    select = '[select]\nover = { "recipe.lr" = [1e-2, 1e-3] }\nper = ["model.name"]\nat = { "recipe.steps" = [4] }\n'
    text += select.replace('per = ["model.name"]', 'per = ["model.name", "recipe.steps"]')
    folder = study(tmp_path / "study", text, axes='"recipe.steps" = [4, 40]\n')
    ended = lab.swept(folder)
    assert ended.returncode == DONE, ended.stderr
    scripts = [path.read_text() for path in sorted(folder.glob("runs/slurm/*/job.sh"))]
    # A trunk that goes on is "submitted again" in another line where it ends after the choice is made.
    assert len(scripts) == len(submitted(folder)) == len(re.findall("^submitted ", ended.stderr, re.MULTILINE))
    alone = sweep(folder, "--runs", "alone", "--results", "results-alone")
    assert alone.returncode == DONE, alone.stderr
    pd.testing.assert_frame_equal(rows(folder), rows(folder, "results-alone"))
    again = lab.swept(folder)  # nothing is left to submit
    assert again.returncode == DONE, again.stderr
    assert len(submitted(folder)) == len(scripts)


def test_a_job_has_the_gpus_of_a_node_that_the_study_asks_for(lab: Lab, tmp_path: Path) -> None:
    folder = study(tmp_path / "study", steps=LONG, gpus_per_node=2)
    lab.sweep(folder, "--devices", "2")
    until(lambda: list(folder.glob("runs/*/events.jsonl")))
    until(lambda: eventlog.last_event(run_of(folder)))
    assert "TresPerNode=gres:gpu:2" in lab.shown(job_of(folder))
    tasks = [one for one in environments() if "SLURM_LOCALID" in one and one.get("SLURM_SUBMIT_DIR") == str(folder)]
    assert {one["SLURM_LOCALID"] for one in tasks} == {"0", "1"}
    assert {one.get("CUDA_VISIBLE_DEVICES") for one in tasks} == {"0,1"}


def test_what_a_user_or_a_job_around_has_set_changes_no_question_and_no_job(lab: Lab, tmp_path: Path) -> None:
    of_user = {"SQUEUE_STATES": "COMPLETED", "SQUEUE_USERS": "nobody", "SCANCEL_STATE": "SUSPENDED"}
    of_sbatch = {"SBATCH_JOB_NAME": "mine", "SBATCH_NO_REQUEUE": "1", "SBATCH_WAIT": "1", "SBATCH_TIMELIMIT": "1"}
    of_job = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "7", "SLURM_MEM_PER_CPU": "1", "SLURM_TASKS_PER_NODE": "7"}
    person = Lab({**lab.environment, **of_user, **of_sbatch, **of_job})
    folder = study(tmp_path / "study", steps=LONG, memory="400", time="20", sbatch=["--nice=5"])
    try:
        person.sweep(folder)
        until(lambda: saved(folder))
        shown = lab.shown(job_of(folder))
        assert all(told in shown for told in ("TimeLimit=00:20:00", "Nice=5", "Requeue=1", "NumTasks=1"))
        (run,) = person.status(folder).values()
        assert run["slurm"]["state"] == "RUNNING"
    finally:
        for process in person.sweeps:
            process.kill()
            process.communicate()


def test_a_script_can_be_submitted_again_by_hand(lab: Lab, tmp_path: Path) -> None:
    folder = study(tmp_path / "study", PRETRAINING + FEWSHOT, axes="seed = [0, 1]\n")
    first = lab.swept(folder, "--detach")
    assert first.returncode == DONE, first.stderr
    until(lambda: not lab.jobs())
    outcomes = {path: path.read_text() for path in folder.glob("runs/*/result.json")}
    assert len(outcomes) == 6  # of each seed the pre-training and its transfer; two baselines
    for script in sorted(folder.glob("runs/slurm/*/job.sh")):
        job = lab.say("sbatch", "--parsable", str(script)).strip()
        until(lambda job=job: "JobState=COMPLETED" in lab.shown(job))
    assert {path: path.read_text() for path in folder.glob("runs/*/result.json")} == outcomes


def test_a_sweep_that_died_is_found_by_the_next_and_two_share_a_queue(lab: Lab, tmp_path: Path) -> None:
    folder = study(tmp_path / "study", PRETRAINING + FEWSHOT, sbatch=["--begin=now+15"])
    first = lab.sweep(folder)
    until(lambda: len(lab.jobs()) == 3)  # the baselines, the pre-training, its transfer
    first.kill()
    # It may also have died before it could note what sbatch told it.
    for path in folder.glob("runs/slurm/*/submission.json"):
        tiny.edit(path, job="")
    before = len(submitted(folder))
    others = [lab.sweep(folder), lab.sweep(folder)]
    for other in others:
        _, err = other.communicate(timeout=200)
        assert other.returncode == DONE, err
    assert len(submitted(folder)) == before
    frame = rows(folder)
    assert not frame.duplicated(["run_id", "task", "metric", "shots", "draw"]).any()
    assert set(pd.read_parquet(folder / "results" / "study")["attempt"]) == {1}


def test_ctrl_c_leaves_the_jobs_to_slurm(lab: Lab, tmp_path: Path) -> None:
    folder = study(tmp_path / "study", steps=LONG)
    watching = lab.sweep(folder, "--save-every", "0")
    until(lambda: saved(folder))
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=30)
    assert watching.returncode == INTERRUPTED
    (job,) = lab.jobs()
    assert f"1 run goes on in Slurm; the same command watches again; scancel {job.partition('_')[0]} ends" in err
    (run,) = lab.status(folder).values()
    assert run["state"] == "running"
    assert run["slurm"] == {"job": job, "state": "RUNNING", "reason": "None"}


def test_a_time_limit_puts_a_run_back_into_the_queue(lab: Lab, tmp_path: Path) -> None:
    # Slurm may signal half a minute earlier than asked: 40 s after the start, when a slow machine trains, too.
    folder = study(tmp_path / "study", steps=LONG, time="2", signal=50)
    watching = lab.sweep(folder)
    until(lambda: saved(folder))
    job = job_of(folder)
    until(lambda: "Restarts=1" in lab.shown(job))
    assert folders.result(run_of(folder)) is None
    lab.start_again(job)
    until(lambda: attempts(folder) == 2)
    events = [json.loads(line) for line in (run_of(folder) / "events.jsonl").read_text().splitlines()]
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps == sorted(set(steps))  # it was saved where it stood, and no step came twice
    assert watching.poll() is None


def test_a_preempted_run_goes_on_where_slurm_requeues_it(lab: Lab, tmp_path: Path) -> None:
    folder = study(tmp_path / "study", steps=LONG, partition="main")
    lab.sweep(folder, "--save-every", "1")
    until(lambda: saved(folder))
    job = job_of(folder)
    lab.say("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
    until(lambda: "Restarts=1" in lab.shown(job))
    lab.start_again(job)
    until(lambda: attempts(folder) == 2)
    assert len(submitted(folder)) == 1


def test_a_preempted_run_is_submitted_again_where_slurm_cancels_it(lab: Lab, tmp_path: Path) -> None:
    folder = study(tmp_path / "study", PRETRAINING + FEWSHOT, steps=LONG, partition="cancels")
    watching = lab.sweep(folder, "--save-every", "1")
    until(lambda: saved(folder))
    lab.say("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
    until(lambda: attempts(folder) == 2)
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=30)
    assert re.search(r"stopped .* Slurm job \d+_0 PREEMPTED; submitted again", err), err
    assert any(state == "PENDING" for state in lab.jobs().values())  # its transfer, which waits for the new job


def test_a_run_goes_on_when_its_node_is_lost(lab: Lab, tmp_path: Path) -> None:
    folder = study(tmp_path / "study", steps=LONG)
    lab.sweep(folder, "--save-every", "1")
    until(lambda: saved(folder))
    job = job_of(folder)
    node = re.search(r"\n\s+NodeList=(\S+)", lab.shown(job))
    assert node is not None
    lab.say("scontrol", "update", f"nodename={node[1]}", "state=down", "reason=test")  # until it says that it is up
    until(lambda: "Restarts=1" in lab.shown(job))
    lab.start_again(job)
    until(lambda: attempts(folder) == 2)
    assert "NODE FAILURE" in next(folder.glob("runs/slurm/*/0.txt")).read_text()


def test_what_a_person_cancels_stays_so_until_the_next_sweep(lab: Lab, tmp_path: Path) -> None:
    folder = study(tmp_path / "study", PRETRAINING + FEWSHOT, steps=LONG)
    watching = lab.sweep(folder, "--save-every", "1")
    until(lambda: saved(folder))
    run, job = run_of(folder), job_of(folder)
    lab.say("scancel", job)
    _, err = watching.communicate(timeout=60)
    assert watching.returncode == RUN_FAILED
    assert f"Slurm job {job} CANCELLED; not submitted again by this command" in err
    assert folders.result(run) is None
    assert checkpoints.steps(run)
    assert not lab.jobs()  # what waited for it is gone, too
    lab.sweep(folder)
    until(lambda: attempts(folder) == 2)


def test_a_run_on_two_nodes_is_one_job(lab: Lab, tmp_path: Path) -> None:
    folder = study(tmp_path / "study", PRETRAINING + FEWSHOT)
    ended = lab.swept(folder, "--nodes", "2")
    assert ended.returncode == DONE, ended.stderr
    outcome = folders.result(run_of(folder)) or {}
    assert outcome["n_devices"] == 2
    (job,) = (each for each in submitted(folder) if each["tasks"] == {"0": [run_of(folder).name]})
    assert not job["array"]
    assert {len(each["tasks"]) for each in submitted(folder)} == {1}


def test_a_rank_that_is_killed_is_tried_again_in_the_same_job(lab: Lab, tmp_path: Path) -> None:
    folder = study(tmp_path / "study", steps=LONG)
    lab.sweep(folder, "--nodes", "2", "--save-every", "1")
    until(lambda: saved(folder))
    job = job_of(folder)
    workers = subprocess.check_output(["pgrep", "-f", f"vitscale.train.worker {run_of(folder)}"], text=True).split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    until(lambda: attempts(folder) == 2)
    assert list(lab.jobs()) == [job]
    kept = json.loads((run_of(folder) / "result-1.json").read_text())
    assert kept["failure"] == "killed"


def test_a_job_that_cannot_begin_is_a_failure_that_names_its_output(lab: Lab, tmp_path: Path) -> None:
    folder = study(tmp_path / "study", PRETRAINING + FEWSHOT, python="/nowhere/python")
    ended = lab.swept(folder)
    assert ended.returncode == RUN_FAILED
    outcome = folders.result(run_of(folder)) or {}
    assert outcome["failure"] == "setup"
    assert re.search(r"Slurm job \d+_0 FAILED .* before the run began", outcome["reason"]), outcome
    assert "/nowhere/python" in (folder / outcome["hint"].split()[0]).read_text()
    frame = pd.read_parquet(folder / "results" / "study")
    assert len(frame) == 4
    assert set(frame["status"]) == {"failed"}


def test_what_sbatch_refuses_is_two_lines(lab: Lab, tmp_path: Path) -> None:
    folder = study(tmp_path / "study", partition="nowhere")
    ended = lab.swept(folder)
    assert ended.returncode == MISSING
    error, hint = ended.stderr.splitlines()[-2:]
    assert re.fullmatch(r"error: sbatch: .*[Ii]nvalid partition name.*", error)
    assert hint.startswith("hint: mend [launcher.slurm]")
    assert not submitted(folder)
