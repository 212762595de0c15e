"""Attempts are numbered so that each keeps its row, also those that ended before they began."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from sweeps import sweep

import tiny
from vitscale.errors import DONE, RUN_FAILED
from vitscale.failures import Failure
from vitscale.launch import folders
from vitscale.launch.collect import collect
from vitscale.launch.progress import event_words
from vitscale.launch.sweep import current_plan
from vitscale.study.job import Job
from vitscale.study.load import load
from vitscale.train.rundir import RunDir


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Job, Path]:
    """A job of the small study, and its folder."""
    text = tiny.STUDY.partition("[[transfer]]")[0]
    job = current_plan(load(tiny.write(tmp_path, text), base=tmp_path), tmp_path / "runs").jobs[0]
    return job, folders.prepare(job, tmp_path / "runs", base=tmp_path, machine={"shards": str(tmp_path / "train")})


def fail(folder: Path) -> int:
    """An attempt that ends as those do which can say nothing themselves; its number."""
    folders.record_failure(folder, Failure.SETUP, "no such module", "how", RUN_FAILED)
    return int((folders.result(folder) or {})["attempt"])


def unmet(folder: Path) -> int:
    """The same of one whose processes did not meet."""
    RunDir(folder).fail("no answer", failure=Failure.SETUP, hint="how", code=RUN_FAILED)
    return int((folders.result(folder) or {})["attempt"])


def begin(folder: Path) -> int:
    """As a worker begins: its number."""
    rundir = RunDir(folder)
    attempt = 1 + sum(event["event"] == "start" for event in rundir.events())
    rundir.log("start", {"attempt": attempt, "device": "cpu"})
    return attempt


@pytest.mark.parametrize("ending", [fail, unmet])
def test_no_two_attempts_have_one_number(prepared: tuple[Job, Path], ending: Callable[[Path], int]) -> None:
    _, folder = prepared
    numbers = []
    for begins in (False, False, True, True, False, True):
        numbers.append(begin(folder) if begins else ending(folder))
        if begins:
            assert ending(folder) == numbers[-1]
            assert folders.has_begun(folder)
        folders.set_aside(folder)
    assert numbers == [1, 2, 3, 4, 5, 6]
    assert len(list(folder.glob("result-*.json"))) == 6


def test_an_attempt_that_was_only_interrupted_leaves_its_number_to_what_fails_next(prepared: tuple[Job, Path]) -> None:
    _, folder = prepared
    assert begin(folder) == 1
    assert fail(folder) == 1
    folders.set_aside(folder)
    assert begin(folder) == 2


def test_a_line_that_was_cut_off_hides_no_attempt(prepared: tuple[Job, Path]) -> None:
    _, folder = prepared
    (folder / "events.jsonl").write_text('{"event": "sta')
    assert fail(folder) == 1
    folders.set_aside(folder)
    assert begin(folder) == 2
    words = [event_words(event) for event in RunDir(folder).events()]
    assert words == ["attempt 1 ended before it began", "attempt 2 begins on cpu"]


def test_a_failure_before_the_first_step_stays_a_row_beside_the_run_that_then_begins(
    prepared: tuple[Job, Path],
) -> None:
    job, folder = prepared
    base = folder.parent.parent
    fail(folder)
    assert collect(job, base / "runs", base / "results", "study")
    again = sweep(base, "--retry-failed", "--only", job.id)
    assert again.returncode == DONE, again.stderr
    rows = pd.read_parquet(base / "results" / "study").query(f"run_id == '{job.id}'")
    assert sorted(set(zip(rows["attempt"], rows["status"], strict=True))) == [(1, "failed"), (2, "done")]
    assert json.loads((folder / "result.json").read_text())["attempt"] == 2
