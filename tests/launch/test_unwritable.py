"""Run folders that take no files, though the folder of all runs does: another user's, or on a mount of their own."""

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sweeps import sweep

import tiny
from vitscale import branches, files
from vitscale.errors import MISSING, VitscaleError
from vitscale.failures import Failure
from vitscale.launch import folders
from vitscale.launch.local_sweep import LocalSweep
from vitscale.launch.machine import Machine, Places
from vitscale.launch.sweep import current_plan, ready, retry_failed
from vitscale.results.store import read
from vitscale.study.job import Job
from vitscale.study.load import load

ALONE = tiny.STUDY.partition("[[transfer]]")[0]
SEEDS = ALONE + "[[axes]]\nseed = [0, 1, 2]\n"
BUDGETS = ALONE.replace("steps = 12\n", 'schedule = "constant"\ncooldown = 0.25\n') + "[[axes]]\n"
BUDGETS += '"recipe.steps" = [16, 32, 48]\n'
Closes = Callable[[Path], None]


@pytest.fixture
def closes(monkeypatch: pytest.MonkeyPatch) -> Closes:
    """Makes a folder one that takes no files; whoever runs the tests may be root, whom no permission stops."""
    closed: list[Path] = []

    def refuse(path: Path) -> None:
        if any(folder in path.parents for folder in closed):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    for module, name in ((files.HashedFile, "__init__"), (Path, "rename"), (Path, "mkdir"), (Path, "touch")):
        real = getattr(module, name)

        def instead(self: Any, *arguments: Any, _real: Any = real, **more: Any) -> Any:
            refuse(arguments[0] if isinstance(self, files.HashedFile) else self)
            return _real(self, *arguments, **more)

        monkeypatch.setattr(module, name, instead)
    return closed.append


def sweep_of(folder: Path, text: str) -> tuple[LocalSweep, list[Job], list[str]]:
    """A sweep that has not begun, the jobs of its plan, and what it says."""
    said: list[str] = []
    study = load(tiny.write(folder, text), base=folder)
    places = Places(runs=folder / "runs", results=folder / "results")
    made = LocalSweep(study=study, places=places, machine=Machine(jobs=1, threads=1), say=said.append)
    return made, list(current_plan(study, places.runs).jobs), said


def begin(job: Job, folder: Path, *saved: int) -> Path:
    run = folders.prepare(job, folder / "runs", base=folder, machine={})
    for step in saved:
        (run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (run / "events.jsonl").touch()
    return run


def test_a_run_folder_that_takes_no_files_concerns_its_run_alone(tmp_path: Path, closes: Closes) -> None:
    made, (one, other, _), said = sweep_of(tmp_path, SEEDS)
    closes(run := begin(one, tmp_path))
    assert made._prepared(one) is None
    assert made._prepared(other) is not None
    assert f"{run}: Permission denied" in said[0]
    assert (list(made.refused), made.refused_code) == ([one.id], MISSING)


def test_each_job_is_counted_once_where_a_sweep_ends(tmp_path: Path, closes: Closes) -> None:
    """What is refused has its folder as it was, and is not also what is not finished."""
    made, (one, *others), _ = sweep_of(tmp_path, SEEDS)
    closes(begin(one, tmp_path))
    assert made._prepared(one) is None
    ended = made._ended()
    assert (ended.refused, ended.unfinished, ended.done, ended.failed) == (1, len(others), 0, 0)


def test_a_full_disk_concerns_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, (one, *_), _ = sweep_of(tmp_path, SEEDS)
    begin(one, tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(folders, "write_whole", full)
    with pytest.raises(VitscaleError, match=f"{tmp_path / 'runs'}: no space left"):
        made._prepared(one)
    assert not made.refused


def test_a_failure_in_such_a_folder_is_not_tried_again_and_others_are(tmp_path: Path, closes: Closes) -> None:
    _, jobs, said = sweep_of(tmp_path, SEEDS)
    for job in jobs:
        folders.record_failure(begin(job, tmp_path), Failure.CODE, "it was so", "", 4)
    closes(tmp_path / "runs" / jobs[0].id)
    assert retry_failed(jobs, tmp_path / "runs", said.append) == 2
    assert [folders.state_of(job, tmp_path / "runs") for job in jobs] == ["failed", "stopped", "stopped"]
    assert f"{tmp_path / 'runs' / jobs[0].id}: Permission denied" in said[0]


def test_what_would_leave_such_a_trunk_starts_from_what_lies_there_or_alone(tmp_path: Path, closes: Closes) -> None:
    made, jobs, _ = sweep_of(tmp_path, BUDGETS)
    trunk = next(job for job in jobs if job.role == "trunk")
    closes(begin(trunk, tmp_path, 24))
    (start,) = ready(made._plan(), made.places.runs, made.only)[:1]
    assert [job.id for job in start] == [trunk.id]
    assert made._prepared(trunk) is None
    now = made._plan()
    assert {job.steps: job.branch and job.branch.step for job in now.jobs} == {16: None, 32: 24, 48: 24}
    assert {job.steps for jobs in ready(now, made.places.runs, made.only) for job in jobs} == {16, 32, 48}


def test_a_trunk_in_training_that_cannot_be_asked_to_save_is_named_once(
    tmp_path: Path, closes: Closes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, jobs, said = sweep_of(tmp_path, BUDGETS)
    trunk = next(job for job in jobs if job.role == "trunk")
    run = begin(trunk, tmp_path)
    told = json.loads((run / "run.json").read_text())
    tiny.edit(run / "run.json", branches=told["branches"][1:])
    closes(run)
    monkeypatch.setattr(folders, "is_held", lambda _: True)
    for _ in range(2):
        made._plan()
    assert said == [f"{run}: Permission denied: what leaves trunk {trunk.id} starts from the checkpoint before"]
    assert not branches.asked(run)


@pytest.mark.parametrize("name", ["checkpoints", "events.jsonl", "log.txt"])
def test_what_lies_in_the_way_in_a_run_s_folder_concerns_its_run_alone(tmp_path: Path, name: str) -> None:
    made, (one, other, _), said = sweep_of(tmp_path, SEEDS)
    run = tmp_path / "runs" / one.id
    run.mkdir(parents=True)
    (run / name).touch() if name == "checkpoints" else (run / name).mkdir()
    assert made._prepared(one) is None
    assert made._prepared(other) is not None
    assert f"{run / name} is a f" in said[0]
    assert (list(made.refused), made.refused_code) == ([one.id], MISSING)


def test_a_worker_that_ends_of_other_things_than_a_full_disk_ends_no_sweep(tmp_path: Path) -> None:
    made, jobs, said = sweep_of(tmp_path, SEEDS)
    run = begin(jobs[0], tmp_path)
    (run / "log.txt").write_text("step 1\nerror: x: Not a directory\nhint: move x away\n")
    made._full_disk(jobs)
    assert said[0].endswith(": x: Not a directory")
    assert made.refused[jobs[0].id].hint == "move x away"
    assert not made.stopping
    (run / "log.txt").write_text(f"error: x: {os.strerror(errno.ENOSPC)}\nhint: free some space\n")
    with pytest.raises(VitscaleError, match="free some disk space"):
        made._full_disk(jobs)
    assert made.stopping


def test_a_refused_run_and_what_would_start_from_it_are_rows_that_say_so(tmp_path: Path) -> None:
    made, jobs, _ = sweep_of(tmp_path, tiny.STUDY)
    run = begin(jobs[0], tmp_path)
    (run / "result.json").write_text("{}")
    made._ended()
    rows = read(tmp_path / "results" / "study").set_index("run_id")
    behind = {job.id for job in jobs if job.parent == jobs[0].id}
    assert set(rows.index) == {jobs[0].id, *behind}
    assert set(rows["attempt"]) == {0}
    assert (rows["status"] == "failed").all()
    assert (rows["failure"] == "setup").all()
    damaged = f"{run / 'result.json'} is damaged"
    assert rows.loc[jobs[0].id, "reason"].startswith(damaged)
    assert rows.loc[list(behind), "reason"].str.startswith(f"its pre-training {jobs[0].id} is refused: {damaged}").all()
    assert rows["value"].isna().all()


@pytest.fixture
def mounted() -> Iterator[list[Path]]:
    """Folders to be unmounted."""
    found: list[Path] = []
    yield found
    for folder in found:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_read_only_run_folder_is_refused_by_name_and_the_rest_goes_on(tmp_path: Path, mounted: list[Path]) -> None:
    _, (one, *others), _ = sweep_of(tmp_path, SEEDS)
    run = begin(one, tmp_path)
    if subprocess.run(["mount", "--bind", run, run], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    mounted.append(run)
    subprocess.run(["mount", "-o", "remount,bind,ro", run], check=True)
    ended = sweep(tmp_path)
    assert ended.returncode == MISSING
    assert ended.stderr.splitlines()[-2:] == [
        f"error: runs/{one.id}: Read-only file system",
        "hint: let its owner go on with the run, or move the folder away: it is then trained again",
    ]
    assert {folders.state_of(job, tmp_path / "runs") for job in others} == {"done"}
