"""What may happen to a run in this process: refused or failing in words, damaged, and what it lost counted."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stopping import StopAfter
from tiny import edit
from vitscale.errors import INTERRUPTED, MISSING, RUN_FAILED
from vitscale.launch.progress import progress
from vitscale.launch.surplus import surplus
from vitscale.train import checkpoint, keeping, pretrain, upstream
from vitscale.train.engine import Engine
from vitscale.train.objective import Batch
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.worker import work
from worked import Make, done, measured, weights


def test_a_full_disk_is_no_failure_of_the_run(rundir: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = rundir()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pretrain, "pretrain", full)
        with pytest.raises(OSError, match="No space left"):
            work(run, Stop())
    assert run.result() is None
    assert done(run)["attempt"] == 2


def test_a_transfer_without_its_checkpoint_fails_in_words(rundir: Make) -> None:
    rundir()
    few = rundir(which=1)
    assert work(few, Stop()) == MISSING
    result = few.result()
    assert result is not None
    assert result["status"] == "failed"
    assert "is not finished" in result["reason"]
    assert result["rows"] == []


def test_checkpoints_of_another_run_are_refused(rundir: Make) -> None:
    other = rundir("recipe.steps=3", runs="other")
    done(other)
    run = rundir()
    (other.folder / "checkpoints").rename(run.folder / "checkpoints")
    assert work(run, Stop()) == MISSING
    assert f"is of run {other.id}" in (run.result() or {})["reason"]
    assert (run.folder / "checkpoints" / "step-00000003").is_dir()


def test_checkpoints_of_a_later_version_are_refused_and_kept(rundir: Make) -> None:
    run = rundir()
    assert work(run, StopAfter(4)) == INTERRUPTED
    folder = keeping.newest(run.folder)
    assert folder is not None
    later = {**json.loads((folder / "state.json").read_text()), "schema": checkpoint.SCHEMA + 1}
    edit(folder / "state.json", **{**later, "seal": checkpoint._seal(later)})
    assert work(run, Stop()) == MISSING
    assert "later version" in (run.result() or {})["reason"]
    assert (run.result() or {})["failure"] == "setup"
    assert folder.is_dir()


def test_other_data_than_planned_are_refused(rundir: Make, base: Path) -> None:
    run = rundir()
    machine = {**run.machine, "shards": str(base / "test")}
    edit(run.folder / "run.json", machine=machine)
    assert work(RunDir(run.folder), Stop()) == MISSING
    assert "not those that the run was planned with" in (run.result() or {})["reason"]
    assert (run.result() or {})["failure"] == "bad data"


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(rundir: Make) -> None:
    run = rundir("recipe.lr=1e30", "recipe.grad_clip=0.0")
    assert work(run, Stop()) == RUN_FAILED
    reason = (run.result() or {})["reason"]
    assert (run.result() or {})["failure"] == "not finite"
    assert "at step " in reason
    assert "samples of the batch: " in reason
    keys = {str(key) for key in upstream.Upstream(run).shards.keys}
    assert reason.split("samples of the batch: ")[1].split(",")[0] in keys


def test_steps_that_are_not_finite_are_skipped_as_often_as_is_allowed(
    rundir: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their samples are named, and the result is that of a run whose weights they never touched."""
    broken = {2, 5}
    plain = upstream.Upstream.batch

    def batch(self: upstream.Upstream, step: int) -> Batch:
        found = plain(self, step)
        return replace(found, weights=found.weights * float("inf")) if step in broken else found

    monkeypatch.setattr(upstream.Upstream, "batch", batch)
    allowed, refused = rundir(runs="a", skip_nonfinite=2), rundir(runs="b", skip_nonfinite=1)
    done(allowed)
    skipped = [event for event in allowed.events() if event["event"] == "skipped"]
    assert [(event["step"], event["skipped"]) for event in skipped] == [(3, 1), (6, 2)]
    assert all(event["keys"] for event in skipped)
    assert work(refused, Stop()) == RUN_FAILED
    assert "at step 6, after 1 skipped step" in (refused.result() or {})["reason"]


def test_lost_work_after_a_crash_is_counted(rundir: Make) -> None:
    run = rundir()
    assert work(run, StopAfter(4)) == INTERRUPTED
    folder = keeping.newest(run.folder)
    assert folder is not None
    saved = checkpoint.load(folder)
    run.log("lost", {"steps": 2})  # of an earlier attempt
    # Three steps that no checkpoint holds, and half an hour.
    run.log("step", {"step": saved.progress.step + 3, "device_seconds": saved.progress.device_seconds + 1800})
    row = done(run)["rows"][0]
    assert row["flops_lost"] == 5 * 16 * run.document["flops_per_example"]
    assert 1800 < row["device_seconds"] - saved.progress.device_seconds < 1900


def test_what_a_validation_cost_that_no_checkpoint_holds_is_counted(rundir: Make) -> None:
    run = rundir()
    assert work(run, StopAfter(4)) == INTERRUPTED
    folder = keeping.newest(run.folder)
    assert folder is not None
    saved = checkpoint.load(folder).progress
    spent = {"device_seconds": saved.device_seconds + 1800, "flops_eval": saved.flops_eval + 1e15}
    run.log("validate", {"step": saved.step + 3, "accuracy": 0.5, **spent})
    row = done(run)["rows"][0]
    assert row["flops_lost"] == 3 * 16 * run.document["flops_per_example"]
    assert 1800 < row["device_seconds"] - saved.device_seconds < 1900
    assert row["flops_eval"] > 1e15


def test_a_damaged_checkpoint_is_an_event_and_a_word_of_the_progress(rundir: Make) -> None:
    run = rundir()
    assert work(run, StopAfter(4)) == INTERRUPTED
    folder = keeping.newest(run.folder)
    assert folder is not None
    edit(folder / "state.json", run=run.id, progress={"step": 1})
    done(run)
    (event,) = (event for event in run.events() if event["event"] == "damaged_checkpoint")
    assert event["step"] == int(folder.name.removeprefix("step-"))
    assert "does not have its checksum" in event["reason"]
    assert progress(run.folder).endswith(f"; checkpoint {event['step']} was damaged: trained again from step 0")


def test_a_damaged_best_checkpoint_costs_none_of_those_after_it(rundir: Make) -> None:
    settings = ("recipe.keep=best", "recipe.validate_every=48")
    undisturbed, run = (rundir(*settings, runs=runs) for runs in "ab")
    expected = done(undisturbed)
    edit(run.folder / "run.json", machine={**run.machine, "save_every": 0.0, "keep_every": 4})
    run = RunDir(run.folder)
    assert work(run, StopAfter(10)) == INTERRUPTED
    there = sorted((run.folder / "checkpoints").glob("step-*"))
    best = checkpoint.load(there[-1]).progress.best_step
    assert best is not None
    (checkpoint.folder_of(run.folder, best) / checkpoint.MODEL).write_bytes(b"")
    assert work(run, StopAfter(2)) == INTERRUPTED
    assert all((path / checkpoint.STATE).is_file() for path in there)
    assert measured(done(run)) == measured(expected)
    ours, theirs = weights(run), weights(undisturbed)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_half_written_event_is_left_out_and_not_glued_to_the_next(rundir: Make) -> None:
    run = rundir()
    run.log("start", {})
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"event": "st')
    run.log("done", {})
    assert [event["event"] for event in run.events()] == ["start", "done"]


def test_a_folder_that_a_person_has_put_beside_the_checkpoints_stays(rundir: Make) -> None:
    run = rundir("recipe.keep=last")
    assert work(run, StopAfter(4)) == INTERRUPTED
    folder = keeping.newest(run.folder)
    assert folder is not None
    copies = [folder.with_name(name) for name in (f"{folder.name}.bak", "mine")]
    for copy in copies:
        shutil.copytree(folder, copy)
    done(run)
    assert all((copy / checkpoint.MODEL).is_file() for copy in copies)
    assert not [each for each in surplus(run.folder.parent) if each.folder in copies]


def test_a_run_whose_folder_is_moved_away_says_so_and_leaves_nothing_at_its_place(
    rundir: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = rundir("recipe.keep=last", runs="moved")
    away = run.folder.with_name("away")
    step = Engine.step

    def moving(engine: Engine, *arguments: object) -> object:
        if run.folder.exists():
            run.folder.rename(away)
        return step(engine, *arguments)

    monkeypatch.setattr(Engine, "step", moving)
    assert work(run, Stop()) == MISSING
    assert f"error: {run.folder}: the run's folder is gone\nhint: put it back" in capsys.readouterr().out
    assert not run.folder.exists()
    away.rename(run.folder)
    monkeypatch.undo()
    assert done(run)["status"] == "done"
