"""Which runs a study holds, while sweeps of several versions of its file are at work: what its results count."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import tiny
from vitscale.errors import VitscaleError
from vitscale.launch import record
from vitscale.launch.folders import prepare
from vitscale.launch.local_sweep import LocalSweep
from vitscale.launch.machine import Machine, Places
from vitscale.launch.sweep import current_plan, everything
from vitscale.results.store import Held, read_plan, write_plan
from vitscale.study.job import Job
from vitscale.study.load import load

SEEDS = "[[axes]]\nseed = [{}]\n"
SELECT = '[select]\nover = { "recipe.lr" = [0.001, 0.01] }\nby = "upstream_val"\nper = ["model.name"]\n'
TUNED = tiny.STUDY.replace("lr = 1e-2\n", "", 1) + SELECT


class Person:
    """Who edits a study and sweeps it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "study.toml"
        self.said: list[str] = []
        self.edit(tiny.STUDY + SEEDS.format("0, 1"))

    def edit(self, text: str) -> None:
        self.file.write_text(text)

    def start(
        self, *settings: str, only: Callable[[Job], bool] = everything, share: bool = True, runs: str = "runs"
    ) -> LocalSweep:
        """A sweep that has looked once for what it could do."""
        again = partial(load, self.file, base=self.folder, settings=settings)
        sweep = LocalSweep(
            study=again(),
            places=Places(runs=self.folder / runs, results=self.folder / "results"),
            machine=Machine(jobs=1, threads=1),
            say=self.said.append,
            only=only,
            share=share,
            overrides=settings,
            reload=again,
        )
        self.look(sweep)
        return sweep

    def look(self, sweep: LocalSweep) -> None:
        """What a sweep does about every half minute."""
        sweep._record(sweep._plan())

    def planned(self, *settings: str) -> frozenset[str]:
        study = load(self.file, base=self.folder, settings=settings)
        return frozenset(job.id for job in current_plan(study, self.folder / "runs").jobs)

    def ends(self, job: Job, **facts: object) -> None:
        folder = prepare(job, self.folder / "runs", base=self.folder, machine={})
        told = {"status": "done", "rows": [], "attempt": 1, "score": None, **facts}
        (folder / "result.json").write_text("{}")
        tiny.edit(folder / "result.json", **told)

    @property
    def held(self) -> Held | None:
        return read_plan(self.folder / "results" / "study")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.write(folder)
    return folder


@pytest.fixture
def person(data: Path, tmp_path: Path) -> Person:
    for name in ("train", "test"):
        (tmp_path / name).symlink_to(data / name)
    return Person(tmp_path)


def test_a_sweep_of_before_leaves_an_extension_on_record(person: Person) -> None:
    older = person.start()
    person.edit(tiny.STUDY + SEEDS.format("0, 1, 2"))
    person.start(only=lambda job: job.run.seed == 2)
    assert person.held == Held(person.planned())
    person.look(older)
    assert person.held == Held(person.planned())
    person.edit(tiny.STUDY + SEEDS.format("0, 1, 2, 3"))  # of which no sweep knows yet
    before = person.held
    person.look(older)
    assert person.held == before


def test_a_run_that_left_the_study_is_not_put_back_by_a_sweep_of_before(person: Person) -> None:
    older = person.start()
    assert older.record.beside(older._plan()) == 0
    person.edit(tiny.STUDY + SEEDS.format("0"))
    person.start()
    person.look(older)
    assert person.held == Held(person.planned())
    assert older.record.beside(older._plan()) > 0


def test_another_study_of_the_same_name_is_said(person: Person, tmp_path: Path) -> None:
    """Not of a file that was moved, copied as it is, edited, or swept with --set."""
    first = person.folder / "study.toml"
    assert not person.said
    assert person.start().record.displaces() is None
    person.edit(tiny.STUDY + SEEDS.format("0, 1, 2"))
    person.start()
    person.file = tmp_path / "other" / "study.toml"
    person.file.parent.mkdir()
    shutil.copy(first, person.file)
    person.start()
    assert not person.said
    person.edit(tiny.STUDY + SEEDS.format("5"))
    person.start("recipe.lr=0.5")
    assert not person.said
    sweep = person.start()
    (note, hint) = person.said
    assert note.startswith(f"note: {sweep.record.place} held the results of {os.path.relpath(first)}, another study")
    assert hint.startswith("hint: ")
    person.look(sweep)
    person.start()
    assert len(person.said) == 2, "once"
    moved = tmp_path / "moved"
    for name in ("other", "results"):
        shutil.move(tmp_path / name, moved / name)
    held = read_plan(moved / "results" / "study")
    assert held is not None
    assert held.file == "../../other/study.toml"
    assert (moved / "results" / "study" / held.file).is_file()


def test_a_moved_study_is_no_other_one(person: Person, tmp_path: Path) -> None:
    person.start()
    (tmp_path / "later").mkdir()
    person.file = (tmp_path / "study.toml").rename(tmp_path / "later" / "study.toml")
    person.edit(tiny.STUDY + SEEDS.format("5"))
    person.start()
    assert not person.said


def test_a_version_that_comes_back_is_recorded_by_whichever_sweep_has_it(person: Person) -> None:
    first = person.start()
    two = person.planned()
    person.edit(tiny.STUDY + SEEDS.format("0, 1, 2"))
    second = person.start()
    person.edit("# as before\n" + tiny.STUDY + SEEDS.format("0, 1"))
    person.start()
    for sweep in (second, first):
        person.look(sweep)
        assert person.held == Held(two)


def test_what_an_older_sweep_has_chosen_counts_in_the_newer_version(person: Person) -> None:
    """Its runs are those of the file, which the newer sweep did not wait for."""
    person.edit(TUNED + SEEDS.format("0, 1"))
    older = person.start()
    person.edit(TUNED + SEEDS.format("0, 1, 2"))
    newer = person.start(only=lambda job: job.run.seed == 2)
    assert person.held is not None
    assert person.held.waiting
    for job in newer._plan().jobs:
        if job.role == "tuning":
            person.ends(job, score=job.run.recipe.lr)
    person.look(older)
    assert (person.held.waiting, person.held.runs) == (0, person.planned())


def test_a_sweep_without_a_place_for_its_runs_takes_no_record_over(person: Person) -> None:
    person.start()
    before = person.held
    person.edit(tiny.STUDY + SEEDS.format("0, 1"))
    with pytest.raises(VitscaleError):
        person.start(runs="/proc/none")
    assert person.held == before


def test_an_edit_that_no_sweep_has_read_is_not_on_record(person: Person) -> None:
    """So that `plan --diff` says what it changes while an older version is under way."""
    sweep = person.start()
    before = person.held
    person.edit("nonsense =")
    person.look(sweep)
    person.edit(tiny.STUDY + SEEDS.format("7"))
    person.look(sweep)
    assert person.held == before


def test_only_and_no_share_leave_nothing_out(person: Person) -> None:
    budgets = tiny.STUDY.replace("steps = 12\n", 'schedule = "constant"\ncooldown = 0.25\n', 1)
    person.edit(budgets + '[[axes]]\n"recipe.steps" = [8, 16, 24]\n')
    person.start(only=lambda job: job.role == "baseline", share=False)
    assert person.held == Held(person.planned())
    assert any(job.role == "trunk" and job.id in person.held.runs for job in person.start()._plan().jobs)


def test_settings_of_the_command_line_hide_no_run_of_the_study(person: Person) -> None:
    person.start()
    beside = person.start("recipe.steps=20", "seed=0")
    assert person.held == Held(person.planned())
    assert beside.record.beside(beside._plan()) > 0
    person.look(beside)
    assert person.held == Held(person.planned())


def test_a_study_that_was_only_swept_with_settings_holds_those_of_the_last(person: Person) -> None:
    for steps in (20, 24):
        person.start(f"recipe.steps={steps}")
        assert person.held == Held(person.planned(f"recipe.steps={steps}"))
    person.start()
    assert person.held == Held(person.planned())


def test_an_extension_counts_that_was_swept_with_the_path_of_the_data_here(person: Person) -> None:
    person.start()
    (person.folder / "elsewhere").symlink_to(person.folder / "train")
    person.edit(tiny.STUDY.replace('"train"', '"gone"') + SEEDS.format("0, 1, 2"))
    person.start("data.shards=elsewhere")
    assert person.held == Held(person.planned("data.shards=elsewhere"))
    person.edit(tiny.STUDY + SEEDS.format("0, 1, 2"))
    person.start("recipe.steps=20")
    assert person.held == Held(person.planned())


def test_a_record_without_a_version_or_a_damaged_one_is_written_anew(person: Person) -> None:
    place = person.folder / "results" / "study"
    write_plan(place, Held(frozenset({"older"})))
    person.start()
    assert person.held == Held(person.planned())
    (place / "_plan.json").write_text("{")
    person.start()
    assert person.held == Held(person.planned())
    assert [path.name for path in place.iterdir()] == ["_plan.json"]


def test_what_is_on_record_already_is_not_written_again(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a lock taken: the folder may lie on a read-only disk."""
    person.start()
    monkeypatch.setattr(record, "locked", None)
    person.start()
    person.edit("title = 'another'\n" + tiny.STUDY + SEEDS.format("0, 1"))
    person.start()
    shutil.rmtree(person.folder / "results")
    with pytest.raises(TypeError):
        person.start()


@pytest.mark.parametrize(("text", "error"), [('{"schema": 1, "ru', None), ('{"schema": 99, "runs": []}', "schema 99")])
def test_a_damaged_record_is_written_anew_and_a_newer_one_is_left(person: Person, text: str, error: str | None) -> None:
    """Also of a study that waits for what it selects, whose record grows."""
    person.edit(TUNED)
    path = person.folder / "results" / "study" / "_plan.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    if error is None:
        person.start()
        assert (person.held or Held(frozenset())).waiting
    else:
        with pytest.raises(VitscaleError, match=error):
            person.start()
        assert path.read_text() == text
