"""Runs in this process, from folder to result: resumed to the bit, measured, transferred."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stopping import StopAfter
from tiny import edit
from vitscale.errors import DONE, INTERRUPTED
from vitscale.study.job import Job
from vitscale.train import checkpoint, keeping, loop, meter, pretrain, upstream
from vitscale.train.engine import Engine
from vitscale.train.finetune import _Tuner
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.worker import work
from worked import Make, done, measured, weights


@pytest.mark.parametrize("name", ["ViT-nano/7", "R5+ViT-nano/7", "R5"])
def test_a_run_learns_and_is_measured(rundir: Make, name: str) -> None:
    settings = ("data.examples=16", "data.crop=none", "data.flip=false", "recipe.dropout=0.0")  # to be learnt by heart
    run = rundir(f"model.name='{name}'", "recipe.steps=30", *settings)
    result = done(run)
    steps = [event for event in run.events() if event["event"] == "step"]
    assert steps[-1]["loss"] < 0.85 * steps[0]["loss"]
    assert {(row["task"], row["metric"]) for row in result["rows"]} == {
        (task, metric) for task in ("upstream_val", "upstream_test") for metric in ("accuracy", "loss")
    }
    assert result["rows"][0]["flops_segment"] == run.document["flops_per_example"] * 30 * 16
    assert result["rows"][0]["n_test"] == 20
    assert result["rows"][2]["n_test"] == 40


def test_an_interrupted_run_resumes_to_the_bit(rundir: Make) -> None:
    undisturbed, resumed = rundir(runs="a"), rundir(runs="b")
    expected = done(undisturbed)
    assert work(resumed, StopAfter(4)) == INTERRUPTED
    assert resumed.result() is None
    assert work(resumed, StopAfter(3)) == INTERRUPTED
    result = done(resumed)
    assert result["attempt"] == 3
    assert measured(result) == measured(expected)
    assert result["checkpoint"] == expected["checkpoint"]
    ours, theirs = weights(resumed), weights(undisturbed)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert {e["step"]: e["loss"] for e in resumed.events() if e["event"] == "step"}[12] == {
        e["step"]: e["loss"] for e in undisturbed.events() if e["event"] == "step"
    }[12]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_averaged_run_at_a_zero_stage_resumes_to_the_bit_and_is_transferred(rundir: Make, stage: int) -> None:
    settings = ("recipe.ema=0.8", "recipe.keep=best", "recipe.validate_every=48")
    undisturbed, resumed = (rundir(*settings, runs=name, zero_stage=stage) for name in "ab")
    expected = done(undisturbed)
    assert work(resumed, StopAfter(4)) == INTERRUPTED
    result = done(resumed)
    assert measured(result) == measured(expected)
    for name in (checkpoint.MODEL, checkpoint.AVERAGES, checkpoint.OPTIMIZER):
        last = keeping.newest(resumed.folder), keeping.newest(undisturbed.folder)
        ours, theirs = (load_file(folder / name) for folder in last if folder is not None)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    few_shot = rundir(*settings, which=1, runs="b", zero_stage=stage)
    taken = pretrain.trained_net(few_shot.parent()).state_dict()
    kept = checkpoint.load(resumed.folder / "checkpoints" / result["checkpoint"])
    assert all(torch.equal(taken[key], kept.averages[key]) for key in kept.averages)
    assert not torch.equal(taken["head.weight"], kept.weights["head.weight"])
    done(few_shot)


def test_a_run_may_go_on_at_another_stage(rundir: Make) -> None:
    undisturbed, moved = rundir("recipe.dropout=0.0", runs="a"), rundir("recipe.dropout=0.0", runs="b")
    done(undisturbed)
    assert work(moved, StopAfter(3)) == INTERRUPTED
    edit(moved.folder / "run.json", machine={**moved.machine, "zero_stage": 3})
    assert work(RunDir(moved.folder), StopAfter(3)) == INTERRUPTED
    edit(moved.folder / "run.json", machine={**moved.machine, "zero_stage": 1})
    done(RunDir(moved.folder))
    ours, theirs = weights(moved), weights(undisturbed)
    for key in (key for key in theirs if "qkv.bias" not in key):
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=2e-5)


def test_log_lines_say_where_the_time_goes(rundir: Make) -> None:
    run = rundir()
    done(run)
    last = [event for event in run.events() if event["event"] == "step"][-1]
    assert {"wait", "forward", "backward", "step", "checkpoint"} >= last["seconds"].keys() - {"validate"}
    assert all(last["seconds"][part] > 0 for part in ("forward", "backward", "step"))
    assert 0 < last["mfu"] < 1
    assert last["memory_peak"] > 50e6
    assert last["images_per_second"] > 0


def test_the_start_up_of_a_training_is_no_part_of_its_time_left(rundir: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step has it all, and tells no time by itself."""
    clock, step = 0.0, Engine.step
    seconds = iter([1000.0, *[10.0] * 11])

    def slow(*arguments: Any) -> Any:
        nonlocal clock
        clock += next(seconds)
        return step(*arguments)

    monkeypatch.setattr(Engine, "step", slow)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock))
    run = rundir()
    done(run)
    left = {event["step"]: event["seconds_left"] for event in run.events() if event["event"] == "step"}
    assert left == {1: None, **{step: 10.0 * (12 - step) for step in range(2, 13)}}


def test_measuring_the_processor_takes_no_device_seconds(rundir: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def measured_slowly(_: str) -> float:
        nonlocal clock
        clock += 1000.0
        return 1e12

    monkeypatch.setattr(meter, "peak_flops", measured_slowly)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock))
    run = rundir()
    done(run)
    assert {event["device_seconds"] for event in run.events() if event["event"] == "step"} == {0.0}


def test_the_number_of_loader_workers_changes_no_bit(rundir: Make) -> None:
    """Not even where a run goes on with another one."""
    expected = rundir("data.crop_area=0.3", runs="a", workers=1)
    resumed = rundir("data.crop_area=0.3", runs="b", workers=3)
    done(expected)
    assert work(resumed, StopAfter(4)) == INTERRUPTED
    edit(resumed.folder / "run.json", machine={**resumed.machine, "workers": 2})
    done(RunDir(resumed.folder))
    ours, theirs = weights(resumed), weights(expected)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_best_checkpoint_by_validation_is_kept(rundir: Make) -> None:
    run = rundir("recipe.steps=24")
    result = done(run)
    validations = {e["step"]: e["accuracy"] for e in run.events() if e["event"] == "validate"}
    assert sorted(validations) == [3, 6, 9, 12, 15, 18, 21, 24]
    best = max(validations, key=lambda step: validations[step])
    assert result["checkpoint"] == f"step-{best:08d}"
    assert result["score"] == max(validations.values()) == result["rows"][0]["value"]


def test_validation_images_are_never_trained_on(rundir: Make) -> None:
    data = upstream.Upstream(rundir("data.examples=50"))
    seen = {int(i) for step in range(40) for i in data.positions(step)[0]}
    assert len(seen) == 50
    assert seen == set(data.split.train.tolist())
    assert not seen & set(data.split.validation.tolist())
    assert len(data.split.validation) == 20


def test_transfers_of_a_run(rundir: Make, jobs: Callable[..., tuple[Job, ...]]) -> None:
    done(rundir())
    few, fine = rundir(which=1), rundir(which=2)
    shots = done(few)["rows"]
    assert len(shots) == 2 * 20
    assert {row["shots"] for row in shots} == {1, 5}
    tuned = done(fine)["rows"]
    assert [row["draw"] for row in tuned] == [0, 1]
    assert tuned[0]["lr"] in (0.01, 0.1)
    planned = next(job for job in jobs() if job.id == fine.id)
    for row in tuned:  # what two rates and two repetitions took together
        assert row["flops_segment"] == 2 * row["flops_tuning"] == planned.flops
        assert row["flops_lost"] == 0
    chose = next(e for e in fine.events() if e["event"] == "chose")
    assert max(chose["grid"], key=lambda lr: chose["grid"][lr]) == str(tuned[0]["lr"])
    assert {row["task"] for row in [*shots, *tuned]} == {"digits"}


def test_an_interrupted_fine_tuning_computes_nothing_twice(rundir: Make, jobs: Callable[..., tuple[Job, ...]]) -> None:
    done(rundir())
    fine = rundir(which=2)
    # A look before the first step and after each of four; 100 dev images, 16 at a time; then the same, to the 2nd step.
    assert work(fine, StopAfter(1 + 4 + 7 + 2)) == INTERRUPTED
    trained = [event["step"] for event in fine.events() if event["event"] == "step"]
    assert trained == [1, 4, 1, 2]  # the first rate's, and the beginning of the other's
    (result,) = {(row["flops_lost"], row["flops_segment"]) for row in done(fine)["rows"]}
    planned = next(job for job in jobs() if job.id == fine.id)
    assert result == (0, planned.flops)
    assert [event["step"] for event in fine.events() if event["event"] == "training"] == [0, 0, 2, 0, 0]


@pytest.mark.parametrize(
    "options",
    [
        ("model.pool=gap",),
        ("model.pos_embedding=2d",),
        ("model.pos_embedding=none", "model.gelu=tanh"),
        ("model.pool=gap", "model.attention=axial", "model.depth=2"),
        ("model.name=R5+ViT-nano/7", "model.pool=gap", "model.weight_standardization=timm"),
    ],
)
def test_every_option_is_trained_and_transferred_at_another_resolution(rundir: Make, options: tuple[str, ...]) -> None:
    fast = ("recipe.steps=4", "data.crop=none")
    done(rundir(*options, *fast))
    for which in (1, 2):
        folder = rundir(*options, *fast, which=which).folder
        document = json.loads((folder / "run.json").read_text())
        document["config"]["transfer"] |= {"resolution": 42, "pos_resize": "bicubic", "lr": [0.01], "seeds": 1}
        edit(folder / "run.json", **document)
        assert all(0 < row["value"] <= 1 for row in done(RunDir(folder))["rows"])


def test_the_head_starts_at_its_bias(rundir: Make) -> None:
    images = torch.randn(1, 3, 28, 28)
    for settings, bias in (((), 0.0), (("recipe.loss=sigmoid",), -10.0), (("model.head_bias=-3.0",), -3.0)):
        net = pretrain.new_net(rundir(*settings))
        assert torch.equal(net.eval()(images), torch.full((1, 4), bias))


def test_a_rate_is_chosen_without_dev_or_test_images_and_the_last_training_has_all(
    rundir: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(rundir())
    trained, measured_on = [], []

    tune = _Tuner.tune

    def watched(self: _Tuner, lr: float, repetition: int, train: Any, on: Any, images: Any, labels: Any) -> Any:
        trained.append(set(train.tolist()))
        measured_on.append((images is self.data.test, set(on.tolist())))
        return tune(self, lr, repetition, train, on, images, labels)

    monkeypatch.setattr(_Tuner, "tune", watched)
    done(rundir(which=2))
    everything = set(range(1000))
    assert [len(images) for images in trained] == [900, 900, 1000, 1000]  # two rates, then two repetitions
    for images, (is_test, scored) in zip(trained[:2], measured_on[:2], strict=True):
        assert not is_test
        assert not images & scored
        assert images | scored == everything
    for images, (is_test, scored) in zip(trained[2:], measured_on[2:], strict=True):
        assert is_test
        assert images == everything
        assert scored == set(range(797))


def test_a_stop_between_two_transfers_ends_the_worker(rundir: Make) -> None:
    done(rundir())
    few = rundir(which=1)
    stop = Stop()
    stop.requested = True
    assert work(few, stop) == INTERRUPTED
    assert few.result() is None
    assert done(few)["attempt"] == 2


def test_baselines_need_no_pre_training(rundir: Make, jobs: Callable[..., Any]) -> None:
    inits = {}
    for which, job in enumerate(jobs()):
        if job.role == "baseline":
            inits[(job.run.transfer.protocol, job.run.transfer.init)] = done(rundir(which=which))["rows"][0]["value"]
    assert set(inits) == {("fewshot", "pixels"), ("fewshot", "untrained"), ("finetune", "untrained")}


def test_a_run_is_held_by_one_worker_at_a_time(rundir: Make) -> None:
    run = rundir()
    with run.lease():
        assert work_refused(run)
    assert done(run)["status"] == "done"
    before = (run.folder / "result.json").read_text()
    assert work(run, Stop()) == DONE  # done already: nothing is trained again
    assert (run.folder / "result.json").read_text() == before
    assert json.loads(before)["attempt"] == 1


def work_refused(run: RunDir) -> bool:
    from vitscale.errors import VitscaleError

    with pytest.raises(VitscaleError, match="is being worked on by process"):
        work(RunDir(run.folder), Stop())
    return True
