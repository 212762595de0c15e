"""What is chosen for a device's memory, and that measuring it leaves no trace in the run."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vitscale import models
from vitscale.config import Recipe
from vitscale.errors import DONE, MISSING, RUN_FAILED, VitscaleError
from vitscale.models.counts import Activations, Head
from vitscale.remember import recalled, remember
from vitscale.study import cost
from vitscale.train import capacity, group, keeping, worker
from vitscale.train.capacity import Settings, Work, choose
from vitscale.train.device import GPU_SHARE, is_out_of_memory, memory_held, memory_limit
from vitscale.train.engine import Engine, Stepped
from vitscale.train.objective import Batch, Classification, to_device
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Interrupted, Stop

Make = Callable[..., RunDir]

FREE = dict.fromkeys(("micro_batch", "zero_stage", "activation_checkpointing", "offload"))
MB = 2**20
SIZES = {
    "pico": {"width": 64, "depth": 4, "mlp": 256, "heads": 2},
    "deep": {"width": 64, "depth": 16, "mlp": 256, "heads": 2},
    "R11": {"blocks": [1, 1, 1], "channels": 8, "groups": 4},
}


def blank(images: int) -> Batch:
    return Batch(
        images=torch.zeros(images, 3, 28, 28, dtype=torch.uint8),
        labels=torch.zeros(images, dtype=torch.int64),
        weights=torch.ones(images),
    )


def work_of(batch_size: int, *, name: str = "ViT-pico/7") -> Work:
    """Of a net whose activations are estimated at 1 GiB an image: nothing is taken unmeasured."""
    recipe = Recipe(batch_size=batch_size, steps=10)
    return Work(
        net=models.create(name, num_classes=10, resolution=28, sizes=SIZES, stem="small"),
        recipe=recipe,
        objective=Classification(recipe),
        blank=blank,
        activations=lambda _: Activations(per_image=2**28),
    )


def told(work: Work, each: int, *, recomputed: int | None = None) -> list[tuple[int, bool]]:
    """Has every pass take `each` MB an image; returns the list of those that are asked for."""
    asked: list[tuple[int, bool]] = []

    def take(images: int, recompute: bool) -> float:
        asked.append((images, recompute))
        return float((recomputed if recompute and recomputed else each) * images * MB)

    work.__dict__["_measure"] = take
    return asked


def room(megabytes: int) -> int:
    """A limit that leaves so much for states and passes of a small net."""
    return memory_held() + megabytes * MB


def test_the_micro_batch_grows_until_it_no_longer_fits() -> None:
    work = work_of(64)
    asked = told(work, 10)
    assert choose(work, FREE, room(250), Stop()).micro_batch == 16
    assert asked == [(n, False) for n in (1, 2, 4, 8, 16)], "what cannot fit is not tried"


def test_divisors_between_the_doublings_are_tried_too() -> None:
    work = work_of(48)
    told(work, 10)
    assert choose(work, FREE, room(150), Stop()).micro_batch == 12


def test_a_pass_that_takes_more_than_was_foreseen_is_given_up() -> None:
    work = work_of(64)
    work.measured.update({(n, False): n * 10.0 * MB for n in (1, 2, 4, 8)} | {(16, False): float("inf")})
    assert choose(work, FREE, room(1000), Stop()).micro_batch == 8


def test_what_surely_fits_is_not_measured() -> None:
    work = work_of(64)
    asked = told(work, 10)
    limit = memory_held() + 64 * 2**30 * capacity.SAFE**2 + 2**30
    assert choose(work, FREE, limit, Stop()) == Settings(
        micro_batch=64, zero_stage=0, activation_checkpointing=False, offload=False
    )
    assert not asked


def test_activations_are_computed_again_where_too_few_images_fit() -> None:
    work = work_of(64)
    told(work, 100, recomputed=5)
    found = choose(work, FREE, room(250), Stop())
    assert (found.micro_batch, found.activation_checkpointing) == (32, True)


def test_few_images_are_better_than_none() -> None:
    work = work_of(64)
    told(work, 100, recomputed=90)
    found = choose(work, FREE, room(350), Stop())
    assert (found.micro_batch, found.activation_checkpointing) == (2, False)


def test_what_is_given_stays_as_it_is() -> None:
    work = work_of(64)
    asked = told(work, 100, recomputed=5)
    found = choose(work, {**FREE, "micro_batch": 32, "zero_stage": 2}, room(350), Stop())
    assert found == Settings(micro_batch=32, zero_stage=2, activation_checkpointing=True, offload=False)
    assert asked == [(32, False), (32, True)]


def test_where_nothing_fits_it_says_so() -> None:
    work = work_of(64)
    told(work, 1000)
    with pytest.raises(VitscaleError, match="not even 1 image at a time fit into the") as caught:
        choose(work, FREE, room(350), Stop())
    assert caught.value.exit_code == MISSING


@pytest.mark.parametrize(("megabytes", "stage"), [(3300, 0), (2150, 1), (1650, 2), (1500, 3)])
def test_several_devices_share_what_is_short(monkeypatch: pytest.MonkeyPatch, megabytes: int, stage: int) -> None:
    monkeypatch.setattr(group, "world_size", lambda: 4)
    monkeypatch.setattr(group, "least", lambda number: number)
    monkeypatch.setattr(Work, "params", 160 * MB)
    monkeypatch.setattr(cost, "BUCKET", 40 * MB)
    work = work_of(64)
    told(work, 1)
    limit = megabytes * MB + work.copy_bytes + max(memory_held() - 4 * sum(p.numel() for p in work.net.parameters()), 0)
    assert choose(work, FREE, limit, Stop()).zero_stage == stage


def test_the_copy_that_a_checkpoint_is_written_from_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the process that writes; the moving average is a part of it."""
    monkeypatch.setattr(Work, "params", 10 * MB)
    plain = Settings(micro_batch=1, zero_stage=0, activation_checkpointing=False, offload=False)
    work = work_of(64)
    averaged = replace(work, recipe=replace(work.recipe, ema=0.9))
    assert work.state_bytes(plain) == 4 * 10 * MB * (4 + 3)
    assert averaged.state_bytes(plain) == 4 * 10 * MB * (5 + 4)
    told(work, 10)
    few, more = (choose(work, FREE, room(megabytes), Stop()).micro_batch for megabytes in (300, 620))
    assert (few, more) == (2, 32)
    monkeypatch.setattr(group, "is_first", lambda: False)
    assert work.state_bytes(plain) == 4 * 10 * MB * 4


def test_nothing_is_copied_while_the_checkpoint_before_is_written(
    rundir: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, met, write, copy = threading.Event(), list[bool](), keeping.save, Engine.weights

    def slow(*arguments: Any, **named: Any) -> Path:
        writing.set()
        time.sleep(0.3)
        written = write(*arguments, **named)
        writing.clear()
        return written

    def watched(engine: Engine) -> dict[str, torch.Tensor]:
        met.append(writing.is_set())
        return copy(engine)

    monkeypatch.setattr(keeping, "save", slow)
    monkeypatch.setattr(Engine, "weights", watched)
    assert worker.work(rundir("recipe.steps=4", save_every=0.0), Stop()) == DONE
    assert met == [False] * 4


@pytest.mark.parametrize("name", ["ViT-pico/7", "R11"])
def test_a_measurement_is_about_what_the_architecture_counts(name: str) -> None:
    work = work_of(256, name=name)
    arch = models.parse(name, sizes=SIZES, stem="small")
    plain = work.pass_bytes(256, recompute=False)
    assert arch is not None
    counted = arch.activations(28, Head(num_classes=10)).bytes(256)
    assert 0.7 * counted < plain < 3 * counted, "beside what is kept there is what is worked with"


def test_checkpointing_is_measured_as_well() -> None:
    work = work_of(1024, name="ViT-deep/7")
    plain, again = (work.pass_bytes(1024, recompute) for recompute in (False, True))
    assert again < 0.85 * plain


def test_measuring_leaves_weights_gradients_and_draws_as_they_were() -> None:
    work = work_of(8)
    before = {name: tensor.clone() for name, tensor in work.net.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    work.pass_bytes(8, True)
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in work.net.state_dict().items())
    assert all(parameter.grad is None for parameter in work.net.parameters())


def settings_of(run: RunDir) -> list[dict[str, object]]:
    return [event for event in run.events() if event["event"] == "engine"]


def test_a_run_remembers_what_was_measured(rundir: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And another run of the same shape is spared the measurement; a run that goes on does as it began."""
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(capacity, "_limit", lambda _: 2**40)
    monkeypatch.setattr(capacity, "SAFE", 10**6)
    first, second = (rundir(f"recipe.lr={lr}", runs=str(lr), zero_stage=None) for lr in (1e-3, 2e-3))
    assert [worker.work(run, Stop()) for run in (first, second)] == [0, 0]
    (measured,), (remembered,) = settings_of(first), settings_of(second)
    assert (measured["how"], remembered["how"]) == ("measured", "remembered")
    assert measured["micro_batch"] == remembered["micro_batch"] == first.run.recipe.batch_size
    (tmp_path / "cache" / capacity.FILE).unlink()
    (first.folder / "result.json").unlink()
    assert worker.work(first, Stop()) == 0
    assert settings_of(first)[-1]["how"] == "remembered"


def test_a_run_goes_on_with_what_it_began_with_whatever_memory_there_is(
    rundir: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "cache"))
    run = rundir(zero_stage=None)
    batch = {"batch_size": run.run.recipe.batch_size, "devices": 1}
    told = {"micro_batch": 2, "zero_stage": 0, "activation_checkpointing": True, "offload": False}
    run.log("engine", {"task": {**batch, "asked": FREE}, "how": "measured", **told})
    assert worker.work(run, Stop()) == 0
    assert {name: settings_of(run)[-1][name] for name in told} == told


def test_after_running_out_of_memory_fewer_images_are_taken_and_remembered(
    rundir: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "cache"))
    run, other = rundir(zero_stage=None), rundir("recipe.lr=2e-3", zero_stage=None)
    step = Engine.step

    def short_of_memory(engine: Engine, *arguments: Any) -> Stepped:
        if engine.micro_batch > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(engine, *arguments)

    monkeypatch.setattr(Engine, "step", short_of_memory)
    codes, failures = [], []
    for _ in range(3):
        (run.folder / "result.json").unlink(missing_ok=True)
        codes.append(worker.work(run, Stop()))
        failures.append([(run.result() or {}).get(key) for key in ("failure", "retry")])
    assert failures == [["out of memory", True], ["out of memory", True], [None, None]]
    given = rundir("recipe.lr=3e-3", micro_batch=8)
    assert worker.work(given, Stop()) == RUN_FAILED
    assert (given.result() or {})["retry"] is False, "it was told to take so many"
    assert codes == [RUN_FAILED, RUN_FAILED, 0]
    assert [event["micro_batch"] for event in settings_of(run)] == [16, 8, 4]
    assert worker.work(other, Stop()) == 0
    assert [(event["how"], event["micro_batch"]) for event in settings_of(other)] == [("remembered", 4)]


def test_less_memory_than_was_remembered_for_is_measured_anew(
    rundir: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "cache"))
    found = []
    for number, limit in enumerate((2**40, 2**40 * 99 // 100, 2**39, 2**40)):
        monkeypatch.setattr(capacity, "_limit", lambda _, limit=limit: limit)
        run = rundir(f"seed={number}", zero_stage=None)
        assert worker.work(run, Stop()) == 0
        found.append(settings_of(run)[-1]["how"])
    assert found == ["estimated", "remembered", "estimated", "estimated"]


def test_a_given_micro_batch_is_at_most_a_device_s_part_and_divides_a_transfer_s(rundir: Make) -> None:
    run = rundir(which=2, micro_batch=15)  # its batch has 16 images
    parent = rundir()
    assert [worker.work(each, Stop()) for each in (parent, run)] == [0, 0]
    assert {event["micro_batch"] for event in settings_of(run)} == {8}


def test_a_signal_ends_the_measuring() -> None:
    work, stop = work_of(64), Stop()
    asked = told(work, 10)
    stop.requested = True
    with pytest.raises(Interrupted):
        choose(work, FREE, room(250), stop)
    assert not asked


def test_a_memory_that_is_no_table_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path))
    (tmp_path / "some.json").write_text("[1, 2]")
    assert recalled("some.json", "key") is None
    remember("some.json", "key", 3)
    assert recalled("some.json", "key") == 3


def test_no_memory_at_all_is_a_failure_with_a_reason(rundir: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = rundir(micro_batch=4, activation_checkpointing=False, offload=False)
    monkeypatch.setattr("vitscale.train.engine.Engine.step", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    assert worker.work(run, Stop()) == RUN_FAILED
    outcome = run.result()
    assert outcome is not None
    assert outcome["reason"].startswith("out of memory: ")
    assert "smaller --micro-batch" in outcome["hint"]


def test_a_validation_holds_no_more_images_than_a_step(rundir: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def noted(images: torch.Tensor, device: torch.device) -> torch.Tensor:
        seen.append(len(images))
        return to_device(images, device)

    monkeypatch.setattr("vitscale.train.evaluate.to_device", noted)
    for micro_batch, most in ((4, 4), (16, 16)):  # of a batch of 16, and of 20 validation images
        seen.clear()
        assert worker.work(rundir(f"seed={micro_batch}", "data.test=", micro_batch=micro_batch), Stop()) == DONE
        assert max(seen) == most
        assert sum(seen) % 20 == 0


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "stage"), [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)])
def test_states_take_the_bytes_that_are_counted(devices: int, stage: int) -> None:
    """Within 10 %, of 86M parameters; every tensor is mapped by itself, so that what is freed is given back."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={devices}", "--standalone"]
    script = Path(__file__).with_name("state_bytes.py")
    done = subprocess.run(
        [*command, str(script), str(stage)], env=environment, capture_output=True, text=True, check=True
    )
    measured, counted = map(int, done.stdout.split())
    assert 0.9 * counted < measured < 1.1 * counted


def test_runs_that_share_a_gpu_have_equal_parts_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (79 * 2**30, 80 * 2**30))
    assert memory_limit() == int(GPU_SHARE * 79 * 2**30)
    assert memory_limit(per_gpu=4) == int(GPU_SHARE * 20 * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * 2**30, 80 * 2**30))
    assert memory_limit(per_gpu=4) == int(GPU_SHARE * 10 * 2**30), "others have more than their part"
