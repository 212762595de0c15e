"""What a plan says of trunks and branches, by what lies in their run folders."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from trunk_folders import TEXT, begin, finish, left_at

from vitscale import branches, lease
from vitscale.launch import folders, standing, trunks
from vitscale.launch.changes import changes
from vitscale.launch.local_sweep import LocalSweep
from vitscale.launch.machine import Machine, Places
from vitscale.launch.progress import clock, goes_on
from vitscale.launch.surplus import surplus
from vitscale.launch.sweep import current_plan
from vitscale.launch.trunks import is_others, shares_left
from vitscale.results.store import Held
from vitscale.study.job import Job
from vitscale.study.load import load


@pytest.fixture
def planned(base: Path, tmp_path: Path) -> Callable[..., tuple[Job | None, dict[int, Job]]]:
    """(the trunk, if there is one; runs by their steps) of so many budgets, over the folders in `tmp_path`."""

    def made(*steps: int, only: Sequence[int] = (), extra: str = "") -> tuple[Job | None, dict[int, Job]]:
        path = base / "study.toml"
        path.write_text(f'{TEXT}{extra}[[axes]]\n"recipe.steps" = {list(steps)}\n')

        def wanted(job: Job) -> bool:
            return not only or job.role == "trunk" or job.steps in only

        jobs = current_plan(load(path, base=base), tmp_path, wanted).jobs
        found = [job for job in jobs if job.role == "trunk"]
        return (found[0] if found else None), {job.steps: job for job in jobs if job.role != "trunk"}

    return made


def test_branches_start_from_a_trunk_that_could_not_write_its_result(planned: Callable, tmp_path: Path) -> None:
    trunk, _ = planned(50, 100, 150)
    begin(trunk, tmp_path, 40, 80, 120)
    trunk, runs = planned(50, 100, 150)
    assert {steps: left_at(job) for steps, job in runs.items()} == {50: 40, 100: 80, 150: 120}
    assert trunk is not None  # whose outcome is still to be written
    assert trunk.steps == 120
    assert shares_left([trunk], tmp_path) == {trunk.id: 0.0}


def test_one_wanted_branch_of_a_stopped_trunk_starts_there(planned: Callable, tmp_path: Path) -> None:
    trunk, _ = planned(50, 100, 150)
    begin(trunk, tmp_path, 40, 47)
    trunk, runs = planned(50, 100, 150, only=[50])
    assert left_at(runs[50]) == 40
    assert trunk.steps == 40


def test_a_trunk_of_which_more_is_needed_was_not_stopped(planned: Callable, tmp_path: Path) -> None:
    trunk, _ = planned(50, 100)
    folder = begin(trunk, tmp_path, 40, 80)
    finish(trunk, tmp_path, steps=80)
    told = {"event": "step", "time": "2026-01-01T00:00:00+00:00", "attempt": 1, "step": 80, "steps": 80, "loss": 1.0, "lr": 0.1,
            "images_per_second": 10.0, "seconds_left": 0.0}  # fmt: skip
    (folder / "events.jsonl").write_text(json.dumps(told) + "\n")
    assert folders.state_of(trunk, tmp_path) == "done"
    longer, _ = planned(50, 100, 150)
    assert folders.state_of(longer, tmp_path) == "to do"
    left = clock(40 * longer.run.recipe.batch_size / 10)
    assert goes_on(folder, longer) == f"goes on from step 80/120, {left} left"
    (folder / "result.json").unlink()
    assert folders.state_of(longer, tmp_path) == "stopped"


def test_a_study_of_one_budget_has_the_trunk_that_its_run_has_left(planned: Callable, tmp_path: Path) -> None:
    trunk, runs = planned(50, 100)
    begin(trunk, tmp_path, 40, 80)
    finish(trunk, tmp_path, steps=80)
    finish(runs[100], tmp_path, steps=20, trunk=trunk.id)
    begin(runs[50], tmp_path, 45, branched_at=40)
    for steps, left in ((100, 80), (50, 40)):
        own, alone = planned(steps)
        assert (own.id, own.steps, left_at(alone[steps])) == (trunk.id, left, left)
        assert own.flops + alone[steps].flops == alone[steps].pretrain_flops
    assert planned(60)[0] is None  # it could, and nobody else would


def test_a_branch_waits_for_the_validation_of_where_it_leaves(planned: Callable, base: Path, tmp_path: Path) -> None:
    trunk, runs = planned(50, 100)
    folder = begin(trunk, tmp_path, 40)
    state = folder / "checkpoints" / "step-00000040" / "state.json"
    state.write_text(json.dumps({"progress": {"step": 40, "validation_due": True}}))
    _, runs = planned(50, 100)
    assert not trunks.waits(runs[50], tmp_path)  # nobody validates
    with lease.hold(folder):
        assert trunks.waits(runs[50], tmp_path)
        now = current_plan(load(base / "study.toml", base=base), tmp_path, lambda job: job.steps != 100)
        assert [is_others(job, "running") for job in now.jobs if job.role == "trunk"] == [True]
        sweep = LocalSweep(
            study=load(base / "study.toml", base=base),
            places=Places(runs=tmp_path, results=tmp_path / "results"),
            machine=Machine(jobs=1, threads=1),
            say=lambda _: None,
            only=lambda job: job.steps != 100,
        )
        assert sweep._others_at_work(now), "nothing else would make it look again"
        state.write_text(json.dumps({"progress": {"step": 40, "validation_due": False}}))
        assert not trunks.waits(runs[50], tmp_path)
        assert not sweep._others_at_work(now)


def test_what_a_trunk_took_that_is_gone_is_billed_to_who_left_it_last(planned: Callable, tmp_path: Path) -> None:
    trunk, runs = planned(50, 100, 150)
    begin(runs[150], tmp_path, 125, branched_at=120)
    for steps in (50, 100):
        finish(runs[steps], tmp_path, steps=steps // 5, trunk=trunk.id)
    own, now = planned(50, 100, 150)
    assert own is None
    assert {steps: left_at(job) for steps, job in now.items()} == {50: 40, 100: 80, 150: None}
    own, now = planned(100)
    assert (own, left_at(now[100])) == (None, None)
    begin(trunk, tmp_path, 20)  # by another study, from the start
    assert left_at(planned(100)[1][100]) is None


def test_a_half_done_branch_stays_one_where_runs_train_alone(planned: Callable, base: Path, tmp_path: Path) -> None:
    trunk, runs = planned(50, 100, 150)
    begin(trunk, tmp_path, 40, 80, 97)
    begin(runs[50], tmp_path, 45, branched_at=40)
    finish(runs[100], tmp_path, steps=20, trunk=trunk.id)
    now = current_plan(load(base / "study.toml", base=base), tmp_path, share=False)
    assert {job.steps: left_at(job) for job in now.jobs} == {50: 40, 100: None, 150: None}  # and no trunk to train
    finish(trunk, tmp_path, steps=97)
    now = current_plan(load(base / "study.toml", base=base), tmp_path, share=False)
    assert [(job.steps, job.role) for job in now.jobs if job.id == trunk.id] == [(80, "trunk")]
    assert {job.steps: left_at(job) for job in now.jobs if job.id != trunk.id} == {50: 40, 100: 80, 150: None}


def test_runs_do_not_wait_for_what_a_trunk_has_saved_and_lost(planned: Callable, tmp_path: Path) -> None:
    trunk, runs = planned(50, 100)
    begin(trunk, tmp_path)
    finish(trunk, tmp_path, steps=80)
    for job in runs.values():
        finish(job, tmp_path, steps=job.steps // 5, trunk=trunk.id)
    now, runs = planned(50, 60, 90, 100)
    assert {steps: left_at(job) for steps, job in runs.items()} == {50: 40, 60: None, 90: None, 100: 80}
    assert folders.state_of(now, tmp_path) == "done"
    assert standing.states([now, *runs.values()], tmp_path)[runs[60].id] == "to do"


def test_a_trunk_that_no_wanted_run_needs_is_left_as_it_is(planned: Callable, tmp_path: Path) -> None:
    trunk, runs = planned(50, 100, 150)
    assert planned(50, 100, 150, only=[7])[0] is None
    begin(trunk, tmp_path, 40, 47)
    assert planned(50, 100, 150, only=[7])[0] is None
    begin(trunk, tmp_path, 80, 120)
    for steps, job in runs.items():
        finish(job, tmp_path, steps=steps // 5, trunk=trunk.id)
    trunk, _ = planned(50, 100, 150, only=[50])
    assert trunk.steps == 40  # no more of it than that run has used


def test_a_trunk_that_another_study_takes_further_is_not_waited_for(planned: Callable, tmp_path: Path) -> None:
    trunk, _ = planned(50, 100, 150)
    folder = begin(trunk, tmp_path, 40, 80, 120, 500)
    with lease.hold(folder):
        trunk, runs = planned(50, 100, 150)
        assert is_others(trunk, folders.state_of(trunk, tmp_path))
    assert trunk.steps == 120
    assert {steps: left_at(job) for steps, job in runs.items()} == {50: 40, 100: 80, 150: 120}


def test_a_trunk_that_another_study_needs_further_is_done_as_far_as_it_is_needed_here(
    planned: Callable, tmp_path: Path
) -> None:
    trunk, _ = planned(50, 100)
    folder = begin(trunk, tmp_path, 40, 80)
    finish(trunk, tmp_path, steps=80)
    (folder / "result.json").rename(folder / "result-1.json")
    begin(trunk, tmp_path, 500)
    for later in (None, {"status": "failed", "reason": "no", "attempt": 2, "rows": []}):
        if later:
            (folder / "result.json").write_text(json.dumps(later))
        trunk, runs = planned(50, 100)
        assert trunk.steps == 80
        assert (folders.outcome_of(trunk, tmp_path) or {})["reached"] == 80
        assert {left_at(job) for job in runs.values()} == {40, 80}


def test_a_trunk_of_which_nothing_is_left_is_not_trained_again(planned: Callable, tmp_path: Path) -> None:
    trunk, runs = planned(50, 100)
    for job in runs.values():
        finish(job, tmp_path, steps=job.steps // 5, trunk=trunk.id)
    trunk, runs = planned(50, 100)
    assert trunk is None
    assert {steps: left_at(job) for steps, job in runs.items()} == {50: 40, 100: None}


def test_a_trunk_that_no_run_here_has_used_is_none_of_its_bill(planned: Callable, tmp_path: Path) -> None:
    trunk, _ = planned(50, 1000)
    begin(trunk, tmp_path, 800)
    finish(trunk, tmp_path, steps=800)
    trunk, runs = planned(10, 20)
    assert trunk is None
    assert {left_at(job) for job in runs.values()} == {None}


def test_what_another_study_needs_of_a_trunk_is_not_in_this_ones_sum(planned: Callable, tmp_path: Path) -> None:
    trunk, _ = planned(50, 100, 1000)
    begin(trunk, tmp_path, 40, 80, 800)
    finish(trunk, tmp_path, steps=800)
    trunk, runs = planned(50, 100)
    assert trunk.steps == 80
    together = trunk.flops + sum(job.flops for job in runs.values())
    assert together < sum(job.pretrain_flops for job in runs.values())


def test_a_branch_is_priced_from_the_checkpoint_that_is_there(planned: Callable, tmp_path: Path) -> None:
    trunk, _ = planned(50, 150)
    begin(trunk, tmp_path, 40, 120)
    finish(trunk, tmp_path, steps=120)
    _, runs = planned(20, 50, 100, 150)
    assert {steps: left_at(job) for steps, job in runs.items()} == {20: None, 50: 40, 100: 40, 150: 120}
    assert runs[100].flops == pytest.approx(0.6 * runs[100].pretrain_flops)
    assert runs[20].flops == runs[20].pretrain_flops


def test_what_has_ended_or_begun_is_priced_as_it_was_trained(planned: Callable, tmp_path: Path) -> None:
    trunk, runs = planned(50, 100, 150, 200)
    begin(trunk, tmp_path, 160)
    finish(trunk, tmp_path, steps=160)
    finish(runs[50], tmp_path, steps=50)
    finish(runs[100], tmp_path, steps=60, trunk=trunk.id)
    begin(runs[150], tmp_path, 70, 130, branched_at=70)
    _, runs = planned(50, 100, 150, 200)
    assert {steps: left_at(job) for steps, job in runs.items()} == {50: None, 100: 40, 150: 70, 200: 160}


@pytest.mark.parametrize("held", [False, True])
def test_a_trunk_at_work_or_in_a_queue_is_asked_for_branches_that_it_was_not_told_of(
    planned: Callable, base: Path, tmp_path: Path, held: bool
) -> None:
    trunk, runs = planned(50, 150)
    trunks.ask(runs.values(), tmp_path, load(base / "study.toml", base=base))
    assert not (tmp_path / trunk.id).exists()  # who begins it will be told
    folder = begin(trunk, tmp_path, 40)
    with lease.hold(folder) if held else nullcontext():
        for _ in range(2):
            _, runs = planned(50, 100, 150)
            trunks.ask(runs.values(), tmp_path, load(base / "study.toml", base=base))
    assert branches.asked(folder) == {(80, runs[100].id)}
    assert left_at(runs[100]) == 80


def test_what_runs_that_join_a_finished_trunk_will_start_from_is_kept(
    planned: Callable, base: Path, tmp_path: Path
) -> None:
    trunk, runs = planned(50, 100)
    folder = begin(trunk, tmp_path, 40, 80)
    finish(trunk, tmp_path, steps=80)
    result = {**json.loads((folder / "result.json").read_text()), "checkpoint": "step-00000080"}
    (folder / "result.json").write_text(json.dumps(result))
    for job in runs.values():
        finish(job, tmp_path, steps=job.steps // 5, trunk=trunk.id)
    assert [each.folder.name for each in surplus(tmp_path)] == ["step-00000040"]
    _, runs = planned(50, 55, 100)
    trunks.ask(runs.values(), tmp_path, load(base / "study.toml", base=base))
    assert branches.asked(folder) == {(40, runs[55].id)}
    assert not surplus(tmp_path)
    finish(runs[55], tmp_path, steps=15, trunk=trunk.id)
    assert [each.folder.name for each in surplus(tmp_path)] == ["step-00000040"]


def test_a_trunk_that_must_go_further_is_a_change(base: Path, planned: Callable, tmp_path: Path) -> None:
    trunk, _ = planned(50, 100)
    begin(trunk, tmp_path, 40, 80)
    finish(trunk, tmp_path, steps=80)
    now = current_plan(load(base / "study.toml", base=base), tmp_path)
    held = Held(frozenset(job.id for job in now.jobs))
    assert list(changes(now, held, tmp_path)) == []
    planned(50, 100, 150)
    longer = current_plan(load(base / "study.toml", base=base), tmp_path)
    new, further = sorted(changes(longer, held, tmp_path), key=lambda change: change.state, reverse=True)
    assert (new.state, further.state) == ("new", "further")
    assert further.words() == "steps: 80 -> 120"
