"""Where jobs stand: by folders that are whole, damaged or another run's, and by what they cannot begin without."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import tiny
from vitscale.cli.plan import plan
from vitscale.cli.plan_screen import totals
from vitscale.cli.transfer import fewshot
from vitscale.errors import INVALID_STUDY
from vitscale.failures import Failure
from vitscale.launch import folders
from vitscale.launch.board import board
from vitscale.launch.standing import scores, states
from vitscale.launch.sweep import current_plan, everything, ready
from vitscale.launch.unusable import Unusable
from vitscale.study.job import Job
from vitscale.study.load import load
from vitscale.study.plan import Plan

SHARED = tiny.STUDY.replace("steps = 12\n", 'schedule = "constant"\ncooldown = 0.25\n')
SHARED += '[[axes]]\n"recipe.steps" = [8, 16, 24]\n'
SELECT = '[select]\nover = { "recipe.lr" = [0.001, 0.01] }\nby = "upstream_val"\nper = ["model.name"]\n'
Planned = Callable[[str], tuple[Plan, Path]]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """The plan of a study beside the small one's data, and the folder of its runs."""

    def of(text: str = tiny.STUDY) -> tuple[Plan, Path]:
        study = load(tiny.write(tmp_path, text), base=tmp_path)
        return current_plan(study, tmp_path / "runs"), tmp_path / "runs"

    return of


def ended(job: Job, runs: Path, status: str = "done", **more: Any) -> Path:
    """The job's folder, with an outcome."""
    folder = folders.prepare(job, runs, base=runs.parent, machine={})
    facts = {"status": status, "reason": "it was so", "rows": [], "attempt": 1, "score": None, **more}
    (folder / "result.json").write_text(json.dumps(facts))
    return folder


def test_the_finished_folder_of_another_run_is_refused(planned: Planned) -> None:
    now, runs = planned(tiny.STUDY + "[[axes]]\nseed = [0, 1]\n")
    one, other = (job for job in now.jobs if job.kind == "pretrain")
    shutil.copytree(ended(one, runs), runs / other.id)
    assert folders.state_of(one, runs) == "done"
    assert folders.state_of(other, runs) == "refused"
    outcome = folders.outcome_of(other, runs) or {}
    assert outcome["reason"] == f"{runs / other.id} does not hold the run that its name says"
    assert folders.scores(runs, [one.id, other.id]) == {one.id: None}


@pytest.mark.parametrize(
    "edit", [lambda told: told["config"]["recipe"].update(lr=0.5), lambda told: told["dataset"].update(fingerprint="x")]
)
def test_a_finished_run_whose_record_was_edited_is_refused(
    planned: Planned, edit: Callable[[dict[str, Any]], None]
) -> None:
    now, runs = planned(tiny.STUDY)
    folder = ended(now.jobs[0], runs)
    assert folders.state(folder) == "done"
    told = folders.document(folder)
    edit(told)
    (folder / "run.json").write_text(json.dumps(told, indent=2))
    assert folders.state(folder) == "refused"


def test_every_kind_of_run_holds_what_its_name_says(planned: Planned) -> None:
    now, runs = planned(SHARED)
    assert {(job.role, job.kind) for job in now.jobs} >= {("trunk", "pretrain"), ("baseline", "transfer")}
    for job in now.jobs:
        ended(job, runs, reached=job.steps)
    assert set(states(now.jobs, runs).values()) == {"done"}


@pytest.mark.parametrize("name", ["run.json", "result.json"])
@pytest.mark.parametrize("damage", ["{", "", "\xff"])
def test_damage_concerns_its_run_alone(planned: Planned, name: str, damage: str) -> None:
    now, runs = planned(tiny.STUDY + "[[axes]]\nseed = [0, 1]\n")
    one, other = (job for job in now.jobs if job.kind == "pretrain")
    (ended(one, runs) / name).write_text(damage, encoding="latin-1")
    ended(other, runs)
    found = states(now.jobs, runs)
    assert (found[one.id], found[other.id]) == ("refused", "done")
    assert {found[job.id] for job in now.jobs if job.parent == one.id} == {f"waits for refused {one.id}"}
    could_start = {job.id for jobs in ready(now, runs, everything) for job in jobs}
    assert could_start == {job.id for job in now.jobs if found[job.id] == "to do"}
    assert f"{runs / one.id / name}" in (folders.outcome_of(one, runs) or {})["reason"]


def test_what_waits_for_a_failed_run_is_not_to_do(planned: Planned) -> None:
    now, runs = planned(tiny.STUDY)
    for job in now.jobs:
        if job.parent is None:
            ended(job, runs, "failed" if job.kind == "pretrain" else "done")
    failed = now.jobs[0].id
    found = states(now.jobs, runs)
    waiting = [job for job in now.jobs if job.parent]
    assert {found[job.id] for job in waiting} == {f"waits for failed {failed}"}
    seen = board(now, runs, everything)
    assert seen.over
    assert seen.summary().endswith(f"1 failed, 0 to do, {len(waiting)} cannot begin")
    assert not ready(now, runs, everything)
    *_, left, why = totals(now.jobs, found)
    assert left == "left to run: 0 jobs, 0.00e+00 FLOPs"
    assert why == f"1 failed, {len(waiting)} cannot begin; vitscale sweep STUDY --retry-failed tries again"


def test_a_failed_trunk_holds_back_those_that_had_yet_to_leave_it(planned: Planned) -> None:
    now, runs = planned(SHARED)
    trunk = next(job for job in now.jobs if job.role == "trunk")
    (ended(trunk, runs, "failed") / "checkpoints" / "step-00000012").mkdir(parents=True)
    found = states(now.jobs, runs)
    of = {job.steps: found[job.id] for job in now.jobs if job.branch}
    assert of == {8: "to do", 16: "to do", 24: f"waits for failed {trunk.id}"}
    last = next(job.id for job in now.jobs if job.branch and job.steps == 24)
    assert {found[job.id] for job in now.jobs if job.parent == last} == {f"waits for failed {trunk.id}"}


def test_a_diverged_trunk_s_trials_hold_no_choice_back(planned: Planned) -> None:
    """As they would not had each trained alone, and diverged."""
    at = 'at = { "recipe.steps" = [8, 16, 24] }\n'
    text = SHARED.replace("lr = 1e-2\n", "") + SELECT.replace('["model.name"]', '["model.name", "recipe.steps"]') + at
    now, runs = planned(text)
    bad, good = (job for job in now.jobs if job.role == "trunk")
    ended(bad, runs, "failed", failure="not finite")
    trials = [job for job in now.jobs if job.branch and job.branch.trunk == good.id]
    assert len(trials) == 3
    row = [{"flops_segment": float(good.flops_per_step), "trunk_id": good.id}]
    for job in trials[:-1]:
        ended(job, runs, score=0.5, rows=row)
    assert planned(text)[0].waiting  # the last trial of the good rate is still to come
    ended(trials[-1], runs, score=0.5, rows=row)
    chosen, _ = planned(text)
    assert not chosen.waiting
    assert {job.id for job in chosen.jobs if job.role == "cell" and job.kind == "pretrain"} == {*(j.id for j in trials)}
    assert {one["recipe.lr"]: one["score"] for one in chosen.jobs[0].tried} == {
        bad.run.recipe.lr: None,
        good.run.recipe.lr: 0.5,
    }


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("failure", [kind for kind in Failure if kind != Failure.NOT_FINITE])
def test_what_failed_of_something_else_is_not_chosen_without(planned: Planned, failure: str, shared: bool) -> None:
    """It says nothing of its rate: the choice waits until it is tried again."""
    text = (SHARED if shared else tiny.STUDY).replace("lr = 1e-2\n", "") + SELECT
    now, runs = planned(text)
    bad, good = (job for job in now.jobs if job.role == "tuning")
    trunk = next((job for job in now.jobs if bad.branch and job.id == bad.branch.trunk), bad)
    ended(trunk, runs, "failed", failure=failure)
    ended(good, runs, score=0.5, rows=[{"flops_segment": float(good.flops), "trunk_id": "x" if shared else None}])
    assert scores(now.jobs, runs, shared=True) == {good.id: 0.5}
    assert planned(text)[0].waiting
    (runs / trunk.id / "result.json").unlink()
    ended(trunk, runs, "failed", failure="not finite")
    assert scores(now.jobs, runs, shared=True) == {bad.id: None, good.id: 0.5}


def test_nothing_waits_for_a_selection_whose_runs_have_all_failed(planned: Planned) -> None:
    now, runs = planned(tiny.STUDY.replace("lr = 1e-2\n", "") + SELECT)
    assert now.waiting
    for job in now.jobs:
        ended(job, runs, "failed" if job.role == "tuning" else "done")
    seen = board(now, runs, everything)
    assert seen.over
    assert seen.stuck == len(now.waiting)


@pytest.fixture
def edited(planned: Planned) -> tuple[Job, Path]:
    """A finished run whose rate somebody has changed in its record, and the folder of all runs."""
    now, runs = planned(tiny.STUDY)
    folder = ended(now.jobs[0], runs)
    told = folders.document(folder)
    told["config"]["recipe"]["lr"] = 0.5
    (folder / "run.json").write_text(json.dumps(told, indent=2))
    return now.jobs[0], runs


def test_plan_takes_no_run_for_done_that_is_refused(
    edited: tuple[Job, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, runs = edited
    monkeypatch.chdir(runs.parent)
    plan(Path("study.toml"))
    out, err = capsys.readouterr()
    assert next(line for line in out.splitlines() if line.startswith(job.id)).endswith("\trefused")
    assert f"error: runs/{job.id} does not hold the run that its name says" in err
    plan(Path("study.toml"), json=True)
    found = {each["id"]: each["state"] for each in json.loads(capsys.readouterr().out)["jobs"]}
    assert found[job.id] == "refused"
    assert f"waits for refused {job.id}" in found.values()


def test_a_transfer_of_a_refused_run_says_why(edited: tuple[Job, Path], capsys: pytest.CaptureFixture[str]) -> None:
    job, runs = edited
    with pytest.raises(typer.Exit) as caught:
        fewshot(job.id, "digits", runs=runs)
    assert caught.value.exit_code == INVALID_STUDY
    assert capsys.readouterr().err.splitlines() == [
        f"error: {runs / job.id} does not hold the run that its name says",
        "hint: move the folder away; the run is then trained again",
    ]


def test_a_file_in_the_place_of_a_run_s_folder_concerns_that_run_alone(planned: Planned) -> None:
    now, runs = planned(tiny.STUDY + "[[axes]]\nseed = [0, 1]\n")
    one, other = (job for job in now.jobs if job.kind == "pretrain")
    runs.mkdir()
    (runs / one.id).touch()
    found = states(now.jobs, runs)
    assert (found[one.id], found[other.id]) == ("refused", "to do")
    assert (folders.outcome_of(one, runs) or {})["reason"] == f"{runs / one.id} is a file and no folder"
    assert not folders.is_held(runs / one.id)
    assert {job.id for jobs in ready(now, runs, everything) for job in jobs} >= {other.id}
    with pytest.raises(Unusable, match="is a file and no folder"):
        folders.prepare(one, runs, base=runs.parent, machine={})


def test_a_trunk_with_something_in_the_way_holds_back_those_that_had_yet_to_leave_it(planned: Planned) -> None:
    now, runs = planned(SHARED)
    trunk = next(job for job in now.jobs if job.role == "trunk")
    folder = folders.prepare(trunk, runs, base=runs.parent, machine={})
    (folder / "checkpoints").touch()
    found = states(now.jobs, runs)
    assert found[trunk.id] == "refused"
    assert {found[job.id] for job in now.jobs if job.branch} == {f"waits for refused {trunk.id}"}


def test_what_there_is_one_of_is_told_as_one(planned: Planned) -> None:
    now, _ = planned(tiny.STUDY.partition("[[transfer]]")[0] + '[[transfer]]\ntask = "digits"\nshots = [1]\n')
    first = totals([job for job in now.jobs if job.run.transfer is None or job.run.transfer.init != "pixels"], {})[0]
    assert first.startswith("1 pre-training run, 1 transfer, 1 baseline; ")
