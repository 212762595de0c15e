"""Scripts, arrays and decisions of jobs, without a cluster."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vitscale.errors import DONE, HELD, INTERRUPTED, MISSING, RUN_FAILED
from vitscale.failures import POLICIES, Failure
from vitscale.launch import code, folders
from vitscale.launch.slurm import cluster, settle, submissions, task
from vitscale.launch.slurm.arrays import Unit, arrays
from vitscale.launch.slurm.cluster import Entry
from vitscale.launch.slurm.script import Shape, Task, ranges, script
from vitscale.launch.slurm.submissions import Place, Submission
from vitscale.results import provenance
from vitscale.study.launcher import Slurm

SHAPE = Shape(label="ViT-S/16", nodes=1, devices=4)


def written(tmp_path: Path, *, array: bool = True, shape: Shape = SHAPE, at_once: int | None = None, **key: Any) -> str:
    tasks = {0: Task(ids=("aaa",), title="aaa ViT"), 2: Task(ids=("bbb", "ccc"), title="bbb ViT\n$(rm -rf /)")}
    folder = tmp_path / "runs" / "slurm" / "0001-x"
    shown = tasks if array else {0: tasks[0]}
    return script(folder, "a study", shape, shown, array=array, at_once=at_once, settings=Slurm(**key))


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def test_a_script_is_bash_and_asks_for_what_the_settings_say(tmp_path: Path) -> None:
    text = written(
        tmp_path,
        at_once=8,
        partition="gpu",
        account="vision",
        time="2-00:00:00",
        memory="64G",
        gpus_per_node=8,
        cpus_per_device=16,
        modules=("cuda/12.4",),
        setup=("export HF_HOME=/scratch/hf",),
        sbatch=("--exclusive", "--gres=gpu:a100:4"),
    )
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False, capture_output=True).stderr == ""
    assert options(text) == [
        f"--output={tmp_path}/runs/slurm/0001-x/%a.txt",
        "--array=0,2%8",
        "--nodes=1",
        "--ntasks-per-node=4",
        "--cpus-per-task=16",
        "--gres=gpu:4",
        "--mem=64G",
        "--time=2-00:00:00",
        "--partition=gpu",
        "--account=vision",
        "--signal=USR1@300",
        "--requeue",
        "--open-mode=append",
        "--exclusive",
        "--gres=gpu:a100:4",
        "--job-name=0001-x",
    ]
    assert "module load cuda/12.4 || exit 1\nexport HF_HOME=/scratch/hf || exit 1\n" in text
    assert 'ids[2]="bbb ccc"  # bbb ViT $(rm -rf /)\n' in text


def test_a_container_stands_before_its_own_python(tmp_path: Path) -> None:
    text = written(tmp_path, container="apptainer exec --nv 'my image.sif'")
    assert "python=(apptainer exec --nv 'my image.sif' python)" in text
    assert f"python=({sys.executable})" in written(tmp_path)


@pytest.mark.parametrize(
    ("decisions", "state", "requeued", "code"),
    [
        ([DONE], "RUNNING", False, DONE),
        ([settle.AGAIN, settle.AGAIN, RUN_FAILED], "RUNNING", False, RUN_FAILED),
        ([INTERRUPTED], "RUNNING", True, INTERRUPTED),
        ([INTERRUPTED], "CANCELLED", False, INTERRUPTED),
        ([INTERRUPTED], "PREEMPTED", False, INTERRUPTED),
    ],
)
def test_a_script_does_what_was_decided(
    tmp_path: Path, decisions: list[int], state: str, requeued: bool, code: int
) -> None:
    """With commands in the place of Slurm's that note how they were called."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (tmp_path / "decisions").write_text("\n".join(map(str, decisions)) + "\n")
    programs = {
        "srun": 'echo "srun ${@: -2}" >> calls; exit 7',
        "scontrol": f'echo "scontrol $1 ${{@: -1}}" >> calls; echo "JobState={state}"',
        "python": 'echo "settle ${@:4}" >> calls; code=$(head -1 decisions); sed -i 1d decisions; exit $code',
    }
    for name, body in programs.items():
        (commands / name).write_text(f"#!/bin/bash\ncd {tmp_path}\n{body}\n")
        (commands / name).chmod(0o755)
    text = written(tmp_path, python=str(commands / "python"))
    environment = {"PATH": f"{commands}:/usr/bin:/bin", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "2"}
    ended = subprocess.run(["bash"], input=text, text=True, env=environment, check=False, capture_output=True)
    assert ended.returncode == code, ended.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls.count("srun bbb ccc") == len(decisions)
    assert calls.count("settle 7 bbb ccc") == len(decisions)
    assert ("scontrol requeue 9_2" in calls) is requeued


def test_numbers_of_tasks_are_told_as_slurm_reads_them() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert cluster._tasks("12_[0-2,5,7-9:2%4]") == [0, 1, 2, 5, 7, 9]
    assert cluster._tasks("12_4") == [4]
    assert cluster._tasks("12") == [0]


def unit(after: Place | None = None, shape: Shape = SHAPE) -> Unit:
    return Unit(jobs=(), shape=shape, after=after)


def place(job: str, *, array: bool = True) -> Place:
    number, _, task = job.partition("_")
    submission = Submission(name="x", study="s", array=array, tasks={}, job=number)
    return Place(submission, int(task or 0), Entry(job, "PENDING"))


def test_runs_of_one_shape_are_one_array_as_long_as_the_cluster_allows() -> None:
    other = Shape(label="ViT-B/16", nodes=1, devices=4)
    found = list(arrays([unit(), unit(shape=other), unit(), unit()], 2))
    assert [(array.shape, list(array.units), array.after) for array in found] == [
        (SHAPE, [0, 1], None),
        (SHAPE, [0], None),
        (other, [0], None),
    ]


def test_each_task_waits_for_its_own_of_another_array() -> None:
    (found,) = arrays([unit(place("7_3")), unit(place("7_5"))], 1001)
    assert found.after == "aftercorr:7"
    assert list(found.units) == [3, 5]


def test_several_that_wait_for_one_are_an_array_of_their_own() -> None:
    found = list(arrays([unit(place("7_3")), unit(place("7_3")), unit(place("7_5"))], 1001))
    assert [(array.after, len(array.units)) for array in found] == [("afterok:7_3", 2), ("afterok:7_5", 1)]
    (alone,) = arrays([unit(place("9", array=False))], 1001)
    assert alone.after == "afterok:9"


def test_a_cluster_without_arrays_gets_jobs() -> None:
    assert [array.is_array for array in arrays([unit(), unit()], 0)] == [False, False]


def test_a_run_on_several_nodes_is_a_job_of_its_own() -> None:
    wide = Shape(label="ViT-L/16", nodes=2, devices=4)
    found = list(arrays([unit(shape=wide), unit(place("7_1"), wide)], 1001))
    assert [(list(array.units), array.after) for array in found] == [([0], None), ([0], "afterok:7_1")]


def begun(folder: Path, **document: Any) -> Path:
    """A run whose worker has said that it begins."""
    folder.mkdir()
    start = {"event": "start", "attempt": 1, "time": "2026-01-01T00:00:00+00:00"}
    (folder / "events.jsonl").write_text(json.dumps(start) + "\n")
    told = {"id": folder.name, "kind": "pretrain", "parent": None, "config": {}, "provenance": {}, **document}
    (folder / "run.json").write_text(json.dumps(told))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return begun(tmp_path / "abc")


def fail(run: Path, failure: Failure) -> None:
    folders.record_failure(run, failure, "why", "how", RUN_FAILED)


def finish(run: Path) -> None:
    (run / "result.json").write_text(json.dumps({"status": "done", "rows": [], "attempt": 1}))


@pytest.mark.parametrize("failure", Failure)
def test_a_job_tries_a_failure_again_as_often_as_its_policy_says(run: Path, failure: Failure) -> None:
    assert tried_again(run, failure, "1") == POLICIES[failure].retries
    assert (folders.result(run) or {})["failure"] == failure


def tried_again(run: Path, failure: Failure, *jobs: str) -> int:
    """How often a run that always fails so is tried again by these jobs, the last of which goes on to the end."""
    tried = 0
    fail(run, failure)
    while settle.settle([run], RUN_FAILED, jobs[min(tried, len(jobs) - 1)]) == settle.AGAIN:
        assert folders.result(run) is None
        tried += 1
        fail(run, failure)
    return tried


def test_tries_are_counted_over_jobs_until_a_person_asks_for_more(run: Path) -> None:
    """Jobs that were preempted or cancelled between two failures are followed by others."""
    retries = POLICIES[Failure.KILLED].retries
    assert tried_again(run, Failure.KILLED, "1", "2", "3") == retries == 2
    assert settle.settle([run], RUN_FAILED, "4") == RUN_FAILED
    folders.set_aside(run, asked=True)
    assert tried_again(run, Failure.KILLED, "4", "5") == retries


def test_tries_of_sweeps_on_this_machine_count_for_jobs_too(run: Path) -> None:
    for _ in range(POLICIES[Failure.KILLED].retries):
        fail(run, Failure.KILLED)
        folders.set_aside(run)
    fail(run, Failure.KILLED)
    assert settle.settle([run], RUN_FAILED, "1") == RUN_FAILED


def test_what_is_done_is_done_whatever_the_processes_said(run: Path) -> None:
    finish(run)
    assert settle.settle([run], 1, "1") == DONE


def test_processes_that_died_without_a_word_have_failed_the_run(run: Path) -> None:
    assert settle.settle([run], 137, "1") == settle.AGAIN
    kept = json.loads((run / "result-1.json").read_text())
    assert (kept["failure"], kept["reason"]) == ("killed", "killed (signal 9): often the machine ran out of memory")


def test_what_srun_could_not_start_is_no_signal_and_points_to_the_jobs_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_NAME", "0001-x")
    folder = tmp_path / "abc"
    folder.mkdir()
    assert settle.settle([folder], 255, "1", 3) == RUN_FAILED
    outcome = folders.result(folder) or {}
    assert (outcome["failure"], outcome["reason"]) == ("setup", "srun ended with exit code 255 before the run began")
    assert outcome["hint"].startswith(str(tmp_path / "slurm" / "0001-x" / "3.txt"))


@pytest.mark.parametrize("code", [INTERRUPTED, 128 + 15, 128 + 10, HELD])
def test_what_was_stopped_goes_on_later(run: Path, code: int) -> None:
    assert settle.settle([run], code, "1") == INTERRUPTED
    assert folders.result(run) is None


def test_what_is_missing_is_no_failure_of_the_run(run: Path) -> None:
    assert settle.settle([run], MISSING, "1") == MISSING
    assert folders.result(run) is None


def test_a_run_that_is_always_stopped_before_it_can_save_does_not_go_round_for_ever(run: Path) -> None:
    (run / "checkpoints" / "step-1").mkdir(parents=True)
    for _ in range(settle.STANDSTILLS):
        assert settle.settle([run], INTERRUPTED, "1") == INTERRUPTED
    (run / "checkpoints" / "step-2").mkdir()
    for _ in range(settle.STANDSTILLS):
        assert settle.settle([run], INTERRUPTED, "1") == INTERRUPTED
    assert settle.settle([run], INTERRUPTED, "1") == settle.AGAIN  # as its policy says, once
    assert json.loads((run / "result-1.json").read_text())["failure"] == "time"


def test_the_first_run_that_did_not_end_is_blamed(run: Path) -> None:
    second = begun(run.with_name("def"))
    finish(run)
    assert settle.settle([run, second], 1, "1") == RUN_FAILED
    assert (folders.result(run) or {})["status"] == "done"
    assert (folders.result(second) or {})["failure"] == "code"


def test_a_damaged_record_is_nothing_that_was_submitted(tmp_path: Path) -> None:
    folder = submissions.new_folder(tmp_path, "study", "ViT-S/16 (stem=small)")
    assert folder.name.startswith("0001-study-ViT-S-16-stem-small-")
    submission = Submission(name=folder.name, study="study", array=True, tasks={0: ("abc",)}, job="5")
    submissions.write(tmp_path, submission)
    assert submissions.read_all(tmp_path) == [submission]
    (folder / "submission.json").write_text("{")
    assert submissions.read_all(tmp_path) == []
    assert submissions.new_folder(tmp_path, "study", "x").name.startswith("0002-")


def of_code(run: Path, code_hash: str, **document: Any) -> Path:
    told = json.loads((run / "run.json").read_text())
    told["provenance"] = {"code_hash": code_hash, "git_commit": "0123456789"}
    (run / "run.json").write_text(json.dumps({**told, "machine": {"threads": 1}, **document}))
    return run


@pytest.fixture
def worked_on(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    found: list[Path] = []
    monkeypatch.setattr(task, "_work_on", lambda work, *_: found.extend(work) or DONE)
    return found


@pytest.mark.parametrize("left", ["step-1", "scored.json"])
def test_a_run_that_other_code_began_is_refused_when_its_turn_comes(
    run: Path, worked_on: list[Path], left: str
) -> None:
    of_code(run, "other")
    (run / "checkpoints" / left).mkdir(parents=True)
    assert task.main([str(run.parent), run.name]) == RUN_FAILED
    outcome = folders.result(run) or {}
    assert outcome["failure"] == "setup"
    assert "begun by other code (commit 0123456789)" in outcome["reason"]
    (run / "result.json").unlink()
    of_code(run, "other", accept_code_change=True)
    assert task.main([str(run.parent), run.name]) == DONE
    assert worked_on == [run]
    told = folders.document(run)
    assert told["provenance"]["code_hash"] == provenance.code_hash()
    assert [each["code_hash"] for each in code.earlier(told)] == ["other"]


def test_a_run_that_has_not_begun_is_of_the_code_that_trains_it(run: Path, worked_on: list[Path]) -> None:
    of_code(run, "of when it was submitted")
    assert task.main([str(run.parent), run.name]) == DONE
    assert worked_on == [run]
    assert json.loads((run / "run.json").read_text())["provenance"]["code_hash"] == provenance.code_hash()


def test_a_transfer_waits_for_its_pre_training(
    run: Path, worked_on: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    transfer = of_code(begun(run.with_name("def"), parent=run.name), provenance.code_hash())
    assert task.main([str(run.parent), transfer.name]) == MISSING
    assert "error: run def starts from abc, which is not done\nhint: let abc end first" in capsys.readouterr().err
    finish(run)
    assert task.main([str(run.parent), transfer.name]) == DONE
    assert worked_on == [transfer]
