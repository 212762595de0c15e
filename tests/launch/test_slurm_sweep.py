"""What a sweep makes of the ends of its jobs: with commands that stand in for Slurm's."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from vitscale.errors import RUN_FAILED
from vitscale.failures import Failure
from vitscale.launch import folders
from vitscale.launch.machine import Machine, Places
from vitscale.launch.slurm import submissions
from vitscale.launch.slurm.cluster import Entry
from vitscale.launch.slurm.submissions import Place, Submission
from vitscale.launch.slurm.sweep import SlurmSweep
from vitscale.launch.sweep import current_plan, retry_failed
from vitscale.study.launcher import Slurm
from vitscale.study.load import load

START = '{{"event": "start", "attempt": {attempt}, "time": "2026-01-01T00:00:00+00:00"}}\n'
COMMANDS = {
    "sbatch": "ls {folder}/runs/slurm | tee {folder}/names | wc -l",
    "squeue": "cat {folder}/queue 2>/dev/null || true",
    "scontrol": 'echo "JobId=$4 JobName=$(tail -1 {folder}/names) JobState=$(cat {folder}/state) Reason=None"',
    "sacct": "exit 1",
}
"""Every job has ended when it is asked for, in the same way, but for those in `queue`."""


@pytest.mark.parametrize("state", ["OUT_OF_MEMORY", "FAILED"])
def test_what_stands_behind_a_run_that_took_the_job_with_it_has_not_failed(tmp_path: Path, state: str) -> None:
    """Transfers of one start are one task, and it never was the second one's turn."""
    study = load(tiny.write(tmp_path), base=tmp_path)
    places = Places(runs=tmp_path / "runs", results=tmp_path / "results")
    machine = Machine(jobs=1, threads=1)
    sweep = SlurmSweep(study=study, places=places, machine=machine, settings=Slurm(), max_array=9, say=print)
    first, second, *_ = (job for job in current_plan(study, places.runs).jobs if job.kind == "transfer")
    for job in (first, second):
        folders.prepare(job, places.runs, base=tmp_path, machine={})
    submission = Submission(name="1-x", study="study", array=False, tasks={0: (first.id, second.id)}, job="7")
    (places.runs / submissions.FOLDER / submission.name).mkdir(parents=True)
    sweep.standing = {job.id: Place(submission, 0, Entry("7", state)) for job in (first, second)}
    (places.runs / first.id / "events.jsonl").write_text(START.format(attempt=1))
    for job in (first, second):
        sweep._record_what_the_job_could_not(job)
    assert folders.result(places.runs / second.id) is None
    failed = folders.result(places.runs / first.id)
    assert (failed or {}).get("failure") == (Failure.KILLED if state == "OUT_OF_MEMORY" else None)


@pytest.fixture
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Has one more `sweep --detach` of the pre-training of a study look and submit; what it says."""
    for name, body in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body.format(folder=tmp_path)}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    study = load(tiny.write(tmp_path), base=tmp_path)
    places = Places(runs=tmp_path / "runs", results=tmp_path / "results")

    def again() -> list[str]:
        said: list[str] = []
        SlurmSweep(
            study=study,
            places=places,
            machine=Machine(jobs=1, threads=1),
            only=lambda job: job.kind == "pretrain",
            settings=Slurm(),
            max_array=1001,
            detach=True,
            say=said.append,
        ).run()
        return said

    return again


def end_as(folder: Path, state: str, *, began: bool) -> Path:
    """The run of the newest job, whose script said nothing of it."""
    (folder / "state").write_text(state)
    (run,) = (path.parent for path in folder.glob("runs/*/run.json"))
    if began:
        with (run / "events.jsonl").open("a") as file:
            attempt = (folders.eventlog.last_event(run, "start") or {"attempt": 0})["attempt"] + 1
            file.write(START.format(attempt=attempt))
    return run


def test_a_script_that_was_killed_for_its_memory_is_tried_as_often_as_its_run_would_be(
    swept: Callable[[], list[str]], tmp_path: Path
) -> None:
    assert swept()[-2].startswith("submitted ")
    for tried in (1, 2):
        run = end_as(tmp_path, "OUT_OF_MEMORY", began=True)
        said = swept()
        why = f"Slurm job {tried} OUT_OF_MEMORY before its script could say why"
        assert f"{why}  (again from its last checkpoint: {tried} of 2)" in said[0]
        assert said[1].startswith("submitted ")
    end_as(tmp_path, "OUT_OF_MEMORY", began=True)
    assert swept()[0].startswith("failed ")
    assert (folders.result(run) or {})["failure"] == Failure.KILLED
    assert not any("submitted" in words for words in swept())


def test_a_script_that_ended_before_its_run_began_has_failed_it_until_a_person_asks(
    swept: Callable[[], list[str]], tmp_path: Path
) -> None:
    swept()
    run = end_as(tmp_path, "FAILED", began=False)
    (said,) = swept()
    assert said.startswith("failed ")
    outcome = folders.result(run) or {}
    assert (outcome["failure"], outcome["exit_code"]) == (Failure.SETUP, RUN_FAILED)
    study = load(tmp_path / "study.toml", base=tmp_path)
    assert retry_failed(current_plan(study, tmp_path / "runs").jobs, tmp_path / "runs") == 1
    assert any("submitted" in words for words in swept())


@pytest.mark.parametrize("state", ["OUT_OF_MEMORY", "FAILED"])
def test_a_new_sweep_tries_again_what_has_failed_once_its_job_is_gone(
    swept: Callable[[], list[str]], tmp_path: Path, state: str
) -> None:
    """The job may be at another run of its task, and says at its end what it knows of both."""
    swept()
    run = end_as(tmp_path, state, began=True)
    folders.record_failure(run, Failure.KILLED, "it was so", "", RUN_FAILED)
    (tmp_path / "queue").write_text(f"1|RUNNING|{(tmp_path / 'names').read_text().split()[-1]}|None\n")
    assert not any("again" in words or words.startswith("submitted") for words in swept())
    assert (folders.result(run) or {})["failure"] == Failure.KILLED
    (tmp_path / "queue").unlink()
    said = swept()
    assert said[0].endswith("it was so  (again from its last checkpoint: 1 of 2)")
    assert said[1].startswith("submitted ")
    assert folders.retried(run, Failure.KILLED) == 1


def test_a_run_whose_data_were_missing_is_submitted_again(swept: Callable[[], list[str]], tmp_path: Path) -> None:
    """Its script has ended with 5 and has recorded nothing: no failure of the run."""
    swept()
    run = end_as(tmp_path, "FAILED", began=True)
    assert any("submitted" in words for words in swept())
    assert folders.result(run) is None


def test_a_trunk_that_was_trained_as_far_as_it_was_told_has_not_been_stopped(tmp_path: Path) -> None:
    """An extended study needs it further: its job has completed, and another one goes on."""
    budgets = tiny.STUDY.partition("[[transfer]]")[0].replace("steps = 12", 'schedule = "constant"\ncooldown = 0.25')
    study = load(tiny.write(tmp_path, budgets + '[[axes]]\n"recipe.steps" = [16, 32]\n'), base=tmp_path)
    (trunk,) = (job for job in current_plan(study, tmp_path / "runs").jobs if job.role == "trunk")
    said: list[str] = []
    sweep = SlurmSweep(
        study=study,
        places=Places(runs=tmp_path / "runs", results=tmp_path / "results"),
        machine=Machine(jobs=1, threads=1),
        settings=Slurm(),
        max_array=1001,
        say=said.append,
    )
    run = folders.prepare(trunk, tmp_path / "runs", base=tmp_path, machine={})
    outcome = {"status": "done", "rows": [], "attempt": 1, "reached": 12, "score": None}
    (run / "result.json").write_text(json.dumps(outcome))
    sweep.watched, sweep.tries = {trunk.id: frozenset()}, Counter({trunk.id: 3})
    sweep._left_the_queue(trunk, 1)
    assert said[0].endswith(": to step 12; submitted again, to go on to 24")
    assert said[0].startswith("done     ")
    assert sweep.tries[trunk.id] == 0
