"""What `vitscale clean` would free: never what a transfer or a restart reads."""

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tiny import edit
from vitscale.cli.main import app
from vitscale.errors import DONE, MISSING
from vitscale.launch import folders
from vitscale.launch.surplus import free, surplus
from vitscale.launch.unusable import Unusable


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that is done, one that is stopped, one that failed and a transfer; four checkpoints each."""
    monkeypatch.setattr(folders, "check", lambda _: None)  # their names are made up
    outcomes = {
        "done": {"status": "done", "checkpoint": "step-00000030"},
        "failed": {"status": "failed", "checkpoint": None},
        "transfer": {"status": "done", "checkpoint": None},
        "stopped": None,
    }
    for name, outcome in outcomes.items():
        run = tmp_path / "runs" / name
        for step in (10, 20, 30, 40):
            folder = run / "checkpoints" / f"step-{step:08d}"
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_bytes(bytes(100))
        told = {"id": name, "kind": "pretrain", "config": {}, "provenance": {}, "machine": {"keep_every": 20}}
        (run / "run.json").write_text(json.dumps(told))
        if outcome:
            (run / "result.json").write_text(json.dumps({**outcome, "rows": [], "attempt": 1}))
    return tmp_path / "runs"


def names(runs: Path) -> list[str]:
    return sorted(str(path.relative_to(runs)) for path in runs.glob("*/checkpoints/*"))


def test_only_what_a_finished_run_does_not_transfer_is_surplus(runs: Path) -> None:
    found = list(surplus(runs))
    assert [(each.folder.parent.parent.name, each.folder.name, each.bytes) for each in found] == [
        ("done", "step-00000010", 100)
    ]
    with_milestones = [each.folder.name for each in surplus(runs, milestones=True)]
    assert with_milestones == ["step-00000010", "step-00000020", "step-00000040"]


@pytest.mark.parametrize("every", [None, 40])
def test_milestones_of_an_earlier_command_stay_until_they_are_asked_for(runs: Path, every: int | None) -> None:
    run = runs / "done"
    edit(run / "run.json", machine={"keep_every": every})
    for name in ("step-00000020", ".step-00000020.7"):  # the second was never whole
        (run / "checkpoints" / name).mkdir(exist_ok=True)
        (run / "checkpoints" / name / "state.json").write_text('{"milestone": true}')
    freed = [".step-00000020.7", "step-00000010", *(() if every else ("step-00000040",))]
    assert [each.folder.name for each in surplus(runs)] == freed
    assert "step-00000020" in [each.folder.name for each in surplus(runs, milestones=True)]


def test_what_a_crash_left_half_written_is_surplus_of_a_finished_run(runs: Path) -> None:
    for run in ("done", "stopped"):
        (runs / run / "checkpoints" / ".step-00000050.partial").mkdir()
    assert ".step-00000050.partial" in [each.folder.name for each in surplus(runs)]
    assert all(each.folder.parent.parent.name == "done" for each in surplus(runs))


def test_what_a_sweep_needs_by_the_time_of_the_answer_stays(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def confirmed(*_: object, **__: object) -> bool:
        (runs / "done" / "branches").mkdir()
        (runs / "done" / "branches" / "10-stopped").touch()
        return True

    monkeypatch.setattr("typer.confirm", confirmed)
    monkeypatch.setattr("vitscale.cli.clean.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    before = names(runs)
    found = CliRunner().invoke(app, ["clean", "--runs", str(runs)])
    assert found.stderr == "freed: 0 checkpoints, 0.0 MB\n"
    assert names(runs) == before


def test_freeing_removes_it_and_nothing_else(runs: Path) -> None:
    before = names(runs)
    for each in surplus(runs):
        free(each)
    assert names(runs) == [name for name in before if name != "done/checkpoints/step-00000010"]


def test_a_damaged_run_keeps_everything(runs: Path) -> None:
    (runs / "done" / "result.json").write_text("{")
    assert list(surplus(runs, milestones=True)) == []


def test_without_a_terminal_it_only_says_what_it_would_free(runs: Path) -> None:
    def clean(*arguments: str) -> Result:
        found = CliRunner().invoke(app, ["clean", "--runs", str(runs), *arguments])
        assert found.exit_code == DONE
        return found

    before = names(runs)
    said = clean()
    assert said.stdout.splitlines()[1].startswith(str(runs / "done" / "checkpoints" / "step-00000010"))
    assert said.stderr == "1 checkpoint, 0.0 MB could be freed; --yes does it\n"
    assert json.loads(clean("--json").stdout)["freed"] is False
    assert names(runs) == before
    assert clean("--yes").stderr == "freed: 1 checkpoint, 0.0 MB\n"
    assert len(names(runs)) == len(before) - 1
    assert clean().stderr == f"nothing to free in {runs}\n"


def test_a_refused_run_keeps_everything(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "check", lambda folder: Unusable(f"{folder} holds another run", hint="", exit_code=3))
    assert list(surplus(runs, milestones=True)) == []


def test_a_folder_that_takes_no_changes_keeps_no_other_from_being_freed(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs / "done", runs / "also")
    rename = Path.rename

    def refuses(path: Path, target: Path) -> Path:
        if "also" in path.parts:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuses)
    found = CliRunner().invoke(app, ["clean", "--runs", str(runs), "--yes"])
    assert found.exit_code == MISSING
    assert found.stderr.splitlines() == [
        "freed: 1 checkpoint, 0.0 MB",
        f"error: {runs / 'also' / 'checkpoints' / 'step-00000010'}: Read-only file system",
        "hint: what is said to be freed is; the rest is for whoever may write there",
    ]
    assert [each.folder.parts[-3] for each in surplus(runs)] == ["also"]


def test_a_trunk_keeps_what_its_branches_start_from_until_they_are_done(runs: Path) -> None:
    """And no more: a run that its study has lost since will never be done."""
    told = json.loads((runs / "done" / "run.json").read_text())
    (runs / "done" / "run.json").write_text(json.dumps({**told, "branches": [[10, "a"], [15, "b"], [20, "c"]]}))
    for branch in "ab":
        assert not list(surplus(runs))
        (runs / branch).mkdir()
        (runs / branch / "result.json").write_text(json.dumps({"status": "done", "rows": [], "attempt": 1}))
    assert {each.folder.name for each in surplus(runs)} == {"step-00000010"}


def test_what_is_linked_from_a_run_that_stays_is_not_counted_as_freed(runs: Path) -> None:
    surplus_of_done = runs / "done" / "checkpoints" / "step-00000010" / "model.safetensors"
    linked = runs / "stopped" / "checkpoints" / "step-00000010" / "model.safetensors"
    linked.unlink()
    linked.hardlink_to(surplus_of_done)
    assert [each.bytes for each in surplus(runs)] == [0]
    linked.unlink()
    twice = runs / "done" / "checkpoints" / "step-00000015"
    twice.mkdir()
    (twice / "model.safetensors").hardlink_to(surplus_of_done)
    assert sorted(each.bytes for each in surplus(runs)) == [0, 100]  # one file under two names


def test_a_trunk_keeps_the_best_that_its_last_checkpoint_goes_back_to(runs: Path) -> None:
    run = runs / "done"
    told = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**told, "branches": [[10, "a"]], "machine": {}}))
    (runs / "a").mkdir()
    (runs / "a" / "result.json").write_text(json.dumps({"status": "done", "rows": [], "attempt": 1}))
    state = {"progress": {"step": 30, "best_step": 20}}
    (run / "checkpoints" / "step-00000030" / "state.json").write_text(json.dumps(state))
    assert {each.folder.name for each in surplus(runs)} == {"step-00000010", "step-00000040"}
