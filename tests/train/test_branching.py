"""A run that starts from a trunk ends as the same run alone, to the bit."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from stopping import StopAfter
from vitscale import branches, lease
from vitscale.errors import DONE, INTERRUPTED
from vitscale.launch import trunks
from vitscale.launch.folders import prepare
from vitscale.launch.progress import passed_over
from vitscale.launch.surplus import free, surplus
from vitscale.study.job import Job
from vitscale.study.load import load
from vitscale.study.plan import plan
from vitscale.train import branching, checkpoint, keeping
from vitscale.train.checkpoint import Checkpoint
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.worker import work


def study(steps: list[int], **recipe: object) -> str:
    """Budgets of the tiny model, which validates every 3 steps, with dropout."""
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in recipe.items())
    text = tiny.STUDY[: tiny.STUDY.index("[[transfer]]")].replace("steps = 12\n", lines)
    return f'{text}schedule = "constant"\ncooldown = 0.25\n[[axes]]\n"recipe.steps" = {steps}\n'


@pytest.fixture
def train(base: Path, tmp_path: Path) -> Callable[..., list[Job]]:
    """Trains the runs of a study into a folder, one after another, with trunks or each alone."""

    def trained(text: str, runs: str, *, share: bool, **machine: object) -> list[Job]:
        path = base / f"{runs}.toml"
        path.write_text(text)
        folder = tmp_path / runs
        everything = plan(load(path, base=base), {}).jobs
        path.unlink()
        wanted = trunks.as_needed(everything, folder, lambda _: True) if share else trunks.alone(everything, folder)
        jobs = [job for job in wanted if job.kind == "pretrain"]
        told = {"threads": 1, "micro_batch": None, "zero_stage": 0, **machine}
        for job in sorted(jobs, key=lambda job: job.role != "trunk"):
            rundir = RunDir(prepare(job, folder, base=base, machine=told))
            if job.role == "trunk" or rundir.result() is None:
                assert work(rundir, Stop()) == 0, rundir.result()
        return jobs

    return trained


def outcome(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def tensors(run: Path) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / outcome(run)["checkpoint"]
    return {f"{path.name} {name}": t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    values = [[(row["task"], row["metric"], row["value"]) for row in outcome(run)["rows"]] for run in (one, other)]
    assert values[0] == values[1]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_branches_equal_the_runs_alone(train: Callable[..., list[Job]], tmp_path: Path, keep: str) -> None:
    text = study([4, 8, 16], ema=0.9, mixup=0.2).replace('keep = "best"', f'keep = "{keep}"')
    shared, alone = train(text, "shared", share=True), train(text, "alone", share=False)
    assert [job.id for job in shared if job.branch] == [job.id for job in alone]
    for job in alone:
        assert_same(tmp_path / "shared" / job.id, tmp_path / "alone" / job.id)


def test_the_bill_is_the_trunk_and_what_each_branch_did_itself(train: Callable[..., list[Job]], tmp_path: Path) -> None:
    jobs = train(study([4, 8, 16]), "shared", share=True)
    rows = {job.id: outcome(tmp_path / "shared" / job.id)["rows"][0] for job in jobs}
    (trunk,) = [job for job in jobs if job.role == "trunk"]
    step = rows[trunk.id]["flops_segment"] / 12
    assert {job.steps: rows[job.id]["flops_segment"] / step for job in jobs} == {12: 12, 4: 1, 8: 2, 16: 4}
    assert {job.flops for job in jobs} == {int(row["flops_segment"]) for row in rows.values()}
    assert {row["trunk_id"] for row in rows.values()} == {None, trunk.id}
    assert rows[trunk.id]["trunk_id"] is None
    branch = next(job for job in jobs if job.steps == 4)
    events = [json.loads(line) for line in (tmp_path / "shared" / branch.id / "events.jsonl").read_text().splitlines()]
    first = next(event for event in events if event["event"] == "step")
    assert first["step"] == 4
    assert rows[branch.id]["device_seconds"] < rows[trunk.id]["device_seconds"]


def test_a_branch_goes_on_where_nobody_knows_its_trunk_any_more(
    train: Callable[..., list[Job]], base: Path, tmp_path: Path
) -> None:
    """As another study's run, or a single one: it has what it needs of the trunk."""
    (trunk, *_, job) = train(study([4, 8, 16]), "shared", share=True)
    folder = tmp_path / "shared" / job.id
    undisturbed = outcome(folder)
    shutil.rmtree(folder)
    told = {"threads": 1, "micro_batch": None, "zero_stage": 0}
    assert work(RunDir(prepare(job, folder.parent, base=base, machine=told)), StopAfter(2)) == INTERRUPTED
    prepare(replace(job, branch=None), folder.parent, base=base, machine=told)
    assert work(RunDir(folder), Stop()) == DONE
    varies = ("device_seconds", "mfu", "flops_lost", "flops_eval")
    again = outcome(folder)
    for row in (*undisturbed["rows"], *again["rows"]):
        for key in varies:
            row.pop(key)
    assert again["rows"] == undisturbed["rows"]
    assert again["rows"][0]["trunk_id"] == trunk.id


def test_a_trunk_at_work_is_looked_at_again_before_an_older_checkpoint_is_taken(
    train: Callable[..., list[Job]], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lets go of a best checkpoint as soon as it has a better one, and the branch has just read which it was."""
    (trunk, *_, job) = train(study([4, 8, 16]), "shared", share=True)
    shutil.rmtree(tmp_path / "shared" / job.id)
    told = {"threads": 1, "micro_batch": None, "zero_stage": 0}
    run = RunDir(prepare(job, tmp_path / "shared", base=base, machine=told))
    found, looks = keeping.whole, []

    def whole(folder: Path, *given: Any, **named: Any) -> Iterator[Checkpoint]:
        if folder.name == trunk.id:
            looks.append(folder)
        until = 6 if len(looks) == 1 else given[0]
        return found(folder, until, *given[1:], **named)

    monkeypatch.setattr(keeping, "whole", whole)
    with lease.hold(tmp_path / "shared" / trunk.id):
        start = branching.start_of(run)
    assert start is not None
    assert checkpoint.step_of(start) == 12
    assert len(looks) == 2
    assert [event["step"] for event in run.events() if event["event"] == "branch"] == [12]


def test_a_longer_budget_goes_on_from_the_end_of_the_trunk(train: Callable[..., list[Job]], tmp_path: Path) -> None:
    before = train(study([4, 8]), "grown", share=True)
    after = train(study([4, 8, 16]), "grown", share=True)
    (trunk,) = [job for job in after if job.role == "trunk"]
    assert trunk.id in {job.id for job in before}
    lines = (tmp_path / "grown" / trunk.id / "events.jsonl").read_text().splitlines()
    second = lines[1 + max(i for i, line in enumerate(lines) if '"event": "start"' in line) :]
    assert next(e["step"] for e in map(json.loads, second) if e["event"] == "step") == 7  # of 6 it had trained
    assert outcome(tmp_path / "grown" / trunk.id)["attempt"] == 2
    steps = {job.steps: outcome(tmp_path / "grown" / job.id)["rows"][0]["flops_segment"] for job in after}
    assert steps[12] == 12 * steps[4]  # both attempts'
    train(study([4, 8, 16]), "alone", share=False)
    for job in after:
        if job.branch:
            assert_same(tmp_path / "grown" / job.id, tmp_path / "alone" / job.id)


def test_where_the_trunk_is_past_a_branch_it_starts_from_the_checkpoint_before(
    train: Callable[..., list[Job]], tmp_path: Path
) -> None:
    train(study([4, 16]), "late", share=True)
    jobs = train(study([4, 8, 16]), "late", share=True)
    late = next(job for job in jobs if job.steps == 8)
    row = outcome(tmp_path / "late" / late.id)["rows"][0]
    assert row["flops_segment"] == pytest.approx(late.pretrain_flops * 5 / 8)  # from step 3 on
    train(study([4, 8, 16]), "alone", share=False)
    assert_same(tmp_path / "late" / late.id, tmp_path / "alone" / late.id)


def test_a_damaged_trunk_costs_compute_and_no_result(train: Callable[..., list[Job]], tmp_path: Path) -> None:
    jobs = train(study([4, 8]), "torn", share=True)
    (trunk,) = [job for job in jobs if job.role == "trunk"]
    for job in jobs:
        if job.branch:
            shutil.rmtree(tmp_path / "torn" / job.id)
    torn = tmp_path / "torn" / trunk.id / "checkpoints" / "step-00000006" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-5] + b"aaaaa")
    train(study([4, 8]), "torn", share=True)
    train(study([4, 8]), "alone", share=False)
    for job in jobs:
        if job.branch:
            assert_same(tmp_path / "torn" / job.id, tmp_path / "alone" / job.id)
    late = next(job for job in jobs if job.branch and job.steps == 8)
    words = f"checkpoint 6 of trunk {trunk.id} was damaged: trained again from step 3"
    assert passed_over(tmp_path / "torn" / late.id) == words


@pytest.mark.parametrize("taken", ["the start", "the start and the best"])
def test_a_process_that_ends_while_it_takes_a_trunk_s_checkpoints_costs_nothing(
    train: Callable[..., list[Job]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    jobs = train(study([4, 16]), "runs", share=True)
    (trunk,) = [job for job in jobs if job.role == "trunk"]
    late = next(job for job in jobs if job.steps == 16)
    expected = outcome(tmp_path / "runs" / late.id)["rows"]
    checkpoints = tmp_path / "runs" / late.id / "checkpoints"
    best = json.loads((tmp_path / "runs" / trunk.id / "checkpoints" / "step-00000012" / "state.json").read_text())
    assert 0 < best["progress"]["best_step"] < 12
    shutil.rmtree(checkpoints.parent)
    adopt, calls = checkpoint.adopt, []

    def dying(*arguments: Any, **how: Any) -> Path:
        calls.append(arguments)
        if taken == "the start" and len(calls) == 2:
            raise KeyboardInterrupt
        return adopt(*arguments, **how)

    log = RunDir.log

    def dying_then(rundir: RunDir, event: str, *more: Any) -> None:
        if event == "branch":
            raise KeyboardInterrupt
        log(rundir, event, *more)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "adopt", dying)
        patched.setattr(RunDir, "log", dying_then)
        with pytest.raises(KeyboardInterrupt):
            train(study([4, 16]), "runs", share=True)
    assert len(calls) == 2
    train(study([4, 16]), "runs", share=True)
    rows = outcome(tmp_path / "runs" / late.id)["rows"]
    assert [row["flops_segment"] for row in rows] == [row["flops_segment"] for row in expected]
    assert "damaged" not in (checkpoints.parent / "events.jsonl").read_text()


def test_a_trunk_that_lets_go_of_its_best_meanwhile_costs_compute_and_no_result(
    train: Callable[..., list[Job]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = train(study([4, 16]), "moving", share=True)
    (last,) = [job for job in jobs if job.steps == 16]
    shutil.rmtree(tmp_path / "moving" / last.id)
    whole, gone = keeping.whole, []

    def moving(run: Path, *arguments: Any, **more: Any) -> Iterator[Checkpoint]:
        for found in whole(run, *arguments, **more):
            best = found.progress.best_step
            if not gone and best is not None and best < found.progress.step:
                gone.append(best)
                shutil.rmtree(checkpoint.folder_of(run, best))
            yield found

    monkeypatch.setattr(keeping, "whole", moving)
    train(study([4, 16]), "moving", share=True)
    assert gone, "else this shows nothing"
    monkeypatch.undo()
    train(study([4, 16]), "alone", share=False)
    assert_same(tmp_path / "moving" / last.id, tmp_path / "alone" / last.id)


def test_after_a_clean_a_longer_budget_still_goes_on_from_the_trunk(
    train: Callable[..., list[Job]], tmp_path: Path
) -> None:
    (trunk, *_) = train(study([4, 16]), "cleaned", share=True)
    best = json.loads((tmp_path / "cleaned" / trunk.id / "checkpoints" / "step-00000012" / "state.json").read_text())
    assert best["progress"]["best_step"] < 12  # else this shows nothing
    for each in surplus(tmp_path / "cleaned"):
        free(each)
    jobs = train(study([4, 16, 20]), "cleaned", share=True)
    train(study([4, 16, 20]), "alone", share=False)
    for job in jobs:
        if job.branch and job.steps == 20:
            assert_same(tmp_path / "cleaned" / job.id, tmp_path / "alone" / job.id)


def test_a_branch_whose_own_checkpoints_are_damaged_leaves_its_trunk_again(
    train: Callable[..., list[Job]], tmp_path: Path
) -> None:
    jobs = train(study([4, 16]), "damaged", share=True)
    train(study([4, 16]), "alone", share=False)
    branch = next(job for job in jobs if job.steps == 16 and job.branch)
    run = tmp_path / "damaged" / branch.id
    (run / "result.json").unlink()
    for model in run.glob("checkpoints/step-*/model.safetensors"):
        torn = model.read_bytes()[:-5]
        model.unlink()  # a link: the trunk's is to stay whole
        model.write_bytes(torn)
    train(study([4, 16]), "damaged", share=True)
    assert_same(run, tmp_path / "alone" / branch.id)


def test_a_run_whose_best_checkpoint_is_lost_goes_back_to_where_it_can_be_had_again(
    train: Callable[..., list[Job]], tmp_path: Path
) -> None:
    (job,) = train(study([16]), "lost", share=False)
    train(study([16]), "alone", share=False)
    run = tmp_path / "lost" / job.id
    best = outcome(run)["checkpoint"]
    assert best != "step-00000016"
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoints" / best)
    train(study([16]), "lost", share=False)
    assert_same(run, tmp_path / "alone" / job.id)


def test_keep_every_makes_the_checkpoints_that_it_keeps(train: Callable[..., list[Job]], tmp_path: Path) -> None:
    (job,) = train(study([16]), "kept", share=False, keep_every=5, save_every=1e9)
    names = {path.name for path in (tmp_path / "kept" / job.id / "checkpoints").glob("step-*")}
    assert {"step-00000005", "step-00000010", "step-00000015", "step-00000016"} <= names
    for name in names:
        state = json.loads((tmp_path / "kept" / job.id / "checkpoints" / name / "state.json").read_text())
        assert state["progress"]["best_step"] is None or f"step-{state['progress']['best_step']:08d}" in names


def test_a_trunk_that_trains_saves_for_branches_that_come_later(
    base: Path, train: Callable[..., list[Job]], tmp_path: Path
) -> None:
    """As a study that is extended meanwhile asks it to: no step of its branch is then trained twice."""
    (base / "asked.toml").write_text(study([4, 16]))
    everything = plan(load(base / "asked.toml", base=base), {}).jobs
    folder = tmp_path / "asked"
    (trunk,) = [job for job in trunks.as_needed(everything, folder, lambda _: True) if job.role == "trunk"]
    told = {"threads": 1, "micro_batch": None, "zero_stage": 0, "keep_last": 1}
    rundir = RunDir(prepare(trunk, folder, base=base, machine=told))
    assert work(rundir, StopAfter(3)) == INTERRUPTED
    branches.ask(folder / trunk.id, 6, "later")
    assert work(rundir, Stop()) == DONE
    assert (folder / trunk.id / "checkpoints" / "step-00000006").is_dir()
    assert not any((folder / trunk.id).glob("checkpoints/step-*5"))
    late = next(job for job in train(study([4, 8, 16]), "asked", share=True) if job.steps == 8)
    assert late.flops == outcome(folder / late.id)["rows"][0]["flops_segment"] == late.pretrain_flops * 2 / 8
    train(study([8]), "alone", share=False)
    assert_same(folder / late.id, tmp_path / "alone" / late.id)
