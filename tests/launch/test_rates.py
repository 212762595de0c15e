"""Device-hours by what was measured, or by a guess that is called one; and what a study has changed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from vitscale import lease
from vitscale.cli.engine import ENGINE
from vitscale.cli.plan_memory import HEADER, memory_document, memory_rows
from vitscale.cli.plan_screen import bill, document, row, totals
from vitscale.config import Transfer
from vitscale.errors import USAGE, VitscaleError
from vitscale.launch.changes import changes
from vitscale.launch.estimate import SECONDS_PER_JOB, SECONDS_PER_PROCESS, expected
from vitscale.launch.folders import prepare
from vitscale.launch.machine import Machine
from vitscale.launch.progress import title
from vitscale.launch.rates import GUESSED_MFU, Rates, keep, rates_of
from vitscale.launch.sweep import current_plan
from vitscale.launch.trunks import shares_left
from vitscale.models.counts import Head
from vitscale.results.store import Held
from vitscale.study.bill import Terms, disk_bytes, passing_bytes
from vitscale.study.cost import KEPT
from vitscale.study.datasets import load_task
from vitscale.study.job import Job
from vitscale.study.load import load
from vitscale.study.plan import transfer_job
from vitscale.train.keeping import Keep


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITSCALE_CACHE", str(tmp_path / "cache"))
    tiny.write(tmp_path, tiny.STUDY + '[[axes]]\n"model.name" = ["ViT-nano/7", "R5"]\n')
    return tmp_path


def planned(folder: Path, *settings: str) -> list[Job]:
    study = load(folder / "study.toml", base=folder, settings=settings)
    return list(current_plan(study, folder / "runs").jobs)


def trained(folder: Path, *settings: str) -> list[Job]:
    return [job for job in planned(folder, *settings) if job.kind == "pretrain"]


def test_what_was_measured_prices_all_runs_of_its_shape(folder: Path) -> None:
    vit, resnet = trained(folder)
    keep(vit, "Some GPU", {"images_per_second": 100.0, "devices": 2})
    keep(resnet, "Some GPU", {"images_per_second": 20.0, "devices": 1})
    rates = rates_of([vit, resnet], None, cores=2)
    assert rates.how == "as measured on Some GPU"
    images = 12 * 16
    assert rates.seconds(vit) == pytest.approx(images / 50)  # device-seconds: two devices for half the time
    assert rates.seconds(resnet) == pytest.approx(images / 20)
    (longer, _) = trained(folder, "recipe.steps=24")
    assert rates.seconds(longer) == pytest.approx(2 * rates.seconds(vit))
    (otherwise, _) = trained(folder, "recipe.batch_size=8")  # another shape
    assert rates.seconds(otherwise) != pytest.approx(images / 2 / 50)


def test_shapes_that_were_not_measured_are_guessed_by_those_that_were(folder: Path) -> None:
    vit, resnet = trained(folder)
    keep(vit, "Some GPU", {"images_per_second": 100.0, "devices": 1})
    rates = rates_of([vit, resnet], None, cores=2)
    assert "1 of 2 shapes were not, and are guessed" in rates.how
    assert rates.seconds(resnet) == pytest.approx(resnet.flops / (100 * 6 * vit.macs))


def test_a_device_that_was_not_measured_is_a_guess_by_its_peak(folder: Path) -> None:
    jobs = trained(folder)
    keep(jobs[0], "Some CPU", {"images_per_second": 1.0, "devices": 1})
    rates = rates_of(jobs, "H100", cores=2)
    assert rates.how == "a guess, 40% of the 67 TFLOP/s of H100"  # fp32
    assert rates.seconds(jobs[0]) == pytest.approx(jobs[0].flops / (GUESSED_MFU * 67e12))
    bf16 = [replace(job, run=replace(job.run, recipe=replace(job.run.recipe, precision="bf16"))) for job in jobs]
    assert "989 TFLOP/s" in rates_of(bf16, "H100", cores=2).how
    assert rates_of(jobs, None, cores=2).how.startswith("as measured on Some CPU")


def test_a_device_is_called_by_its_name_in_any_case_and_no_other(folder: Path) -> None:
    jobs = trained(folder)
    assert rates_of(jobs, "h100", cores=2) == rates_of(jobs, "H100", cores=2)
    with pytest.raises(VitscaleError, match="--device H1O0: no such device is known") as caught:
        rates_of(jobs, "H1O0", cores=2)
    assert caught.value.exit_code == USAGE
    assert caught.value.problems[0].hint.startswith("did you mean H100? known are H200, H100 PCIe, ")
    (other, _) = trained(folder, "recipe.batch_size=8")
    keep(other, "Some CPU", {"images_per_second": 1.0, "devices": 1})
    with pytest.raises(VitscaleError, match="V100") as caught:
        rates_of(jobs, "V100", cores=2)
    assert caught.value.problems[0].hint.endswith("vitscale bench has timed Some CPU")
    assert "20 GFLOP/s on each of 2 cores" in rates_of(jobs, "some cpu", cores=2).how, "timed, but no shape of these"


def test_a_damaged_memory_of_rates_is_none(folder: Path) -> None:
    jobs = trained(folder)
    keep(jobs[0], "Some GPU", {"images_per_second": "fast", "devices": 1})
    assert rates_of(jobs, None, cores=1).how.startswith("a guess")


MEMORY = {"images_per_second": 9.0, "devices": 1, "memory": 3 * 2**30}
AT_ONCE = {"micro_batch": 8, "zero_stage": 0, "activation_checkpointing": True, "offload": False}


def test_memory_that_was_measured_stands_beside_what_is_planned_for_the_same(folder: Path) -> None:
    vit, resnet = trained(folder)
    keep(vit, "Some GPU", {**MEMORY, "settings": AT_ONCE})
    keep(resnet, "Some GPU", {**MEMORY, "memory": "much", "settings": AT_ONCE})  # damaged
    terms = Terms(counting="dense", rates=rates_of([vit, resnet], None, cores=2), memory=2.0)
    planned = vit.memory_bytes(micro_batch=8, recompute=True)
    assert memory_document(vit, terms) == {
        "device": "Some GPU", "devices": 1, "micro_batch": 8, "zero": 0, "activation_checkpointing": True,
        "offload": False, "bytes": 3 * 2**30, "planned": planned, "ratio": 3 * 2**30 / planned,
    }  # fmt: skip
    assert memory_document(resnet, terms) is None
    rows = [dict(zip(HEADER, row, strict=True)) for row in memory_rows([vit, vit, resnet], terms)]
    told = [(row["model"], row["images"], row["recompute"], row["fits"]) for row in rows]
    assert told == [
        ("ViT-nano/7", "16", "no", "no"),  # by the ratio of what was measured
        ("ViT-nano/7", "16", "yes", "no"),
        ("ViT-nano/7", "8", "yes", "no"),  # as it was measured
        ("R5", "16", "no", "yes"),
        ("R5", "16", "yes", "yes"),
    ]
    assert [row["measured"] for row in rows] == ["-", "-", "3", "-", "-"]
    assert rows[2]["ratio"] == f"{3 * 2**30 / planned:.2f}"


def test_memory_is_planned_for_all_stages_where_devices_share_a_run(folder: Path) -> None:
    vit, _ = trained(folder)
    rates = rates_of([vit], None, cores=2)
    rows = list(memory_rows([vit], Terms(counting="dense", rates=rates, memory=2.0, devices=2)))
    assert [(row[4], row[5]) for row in rows] == [(str(stage), again) for stage in range(4) for again in ("no", "yes")]
    assert {(row[2], row[3]) for row in rows} == {("2", "8")}


def test_the_bill_counts_as_many_checkpoints_as_a_run_keeps() -> None:
    assert KEPT == Machine(jobs=1, threads=1).keep_last == ENGINE.keep_last == Keep().last


def test_the_bill_counts_what_clean_leaves(folder: Path) -> None:
    """One of a run, the best; of a trunk also the last, as longer runs go on from both."""
    run, _ = trained(folder)
    one = disk_bytes(run, cleaned=True)
    assert one == 4 * 3 * run.params.total
    trunk = replace(run, role="trunk", branches=((6, "a"), (9, "b")))
    assert disk_bytes(trunk, cleaned=True) == 2 * one
    last = replace(trunk, run=replace(run.run, recipe=replace(run.run.recipe, keep="last")))
    assert disk_bytes(last, cleaned=True) == one


def test_the_bill_tells_what_a_fine_tuning_keeps_for_a_time(folder: Path) -> None:
    """Its two last checkpoints and the one being written, of weights, momentum and average."""
    vit, resnet = trained(folder)
    task = load_task("digits", base=Path())
    plain, averaged, few = (
        transfer_job(vit, Transfer(task="digits", protocol=protocol, lr=(0.01,), steps=10, ema=ema), task)
        for protocol, ema in (("finetune", 0.0), ("finetune", 0.9), ("fewshot", 0.0))
    )
    net = vit.arch.params(28, Head(num_classes=10)).total
    assert passing_bytes([vit, resnet, few]) == 0
    assert passing_bytes([vit, few, plain]) == 3 * 4 * 2 * net
    assert passing_bytes([plain, averaged]) == 3 * 4 * 3 * net


def test_the_bill_is_of_what_is_left(folder: Path) -> None:
    jobs = planned(folder)
    vit, resnet = (job for job in jobs if job.kind == "pretrain")
    rates = Rates(device="x", measured={}, guess=vit.flops / 3600, how="by hand")
    left = {job.id: "done" for job in jobs if job.id != vit.id}
    found = list(bill(jobs, left, Terms(counting="dense", rates=rates, price=2.5, memory=80)))
    assert found[0].startswith("device-hours left: 1, 2.50 at 2.5 a device-hour (by hand)")
    one = 4 * 3 * vit.params.total / 1e9
    # Two and the best are kept, and the next is written before the oldest goes.
    assert found[1] == f"checkpoints of these: at most {4 * one:.3g} GB, {one:.3g} GB after vitscale clean"
    assert len(found) == 2
    (_, _, small) = bill(jobs, left, Terms(counting="dense", rates=rates, memory=1e-6))
    assert small.startswith(f"does not fit: {vit.id} ViT-nano/7: 0.0")
    assert resnet.id not in small


def test_of_what_has_begun_what_lies_behind_its_checkpoint_is_left(folder: Path) -> None:
    text = tiny.STUDY.replace("steps = 12\n", 'schedule = "constant"\ncooldown = 0.5\n')
    text = text[: text.index("[[transfer]]")] + '[[axes]]\n"recipe.steps" = [20, 40]\n'
    (folder / "study.toml").write_text(text)
    trunk, short, long = trained(folder)
    assert (trunk.steps, long.branch and long.branch.step) == (20, 20)
    for job, step in ((trunk, 15), (long, 35), (short, 10)):  # that of `short` is its trunk's still
        (folder / "runs" / job.id / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    begun = shares_left([trunk, short, long], folder / "runs")
    assert begun == {trunk.id: 0.25, long.id: 0.25}
    rates = Rates(device="x", measured={}, guess=trunk.flops / 3600, how="by hand")
    terms = Terms(counting="dense", rates=rates, begun=begun)
    assert terms.hours([trunk, short, long]) == pytest.approx(0.25 + 0.5 + 0.25)
    assert document(trunk, "stopped", terms)["share_left"] == 0.25
    left = trunk.flops * 0.25 + short.flops + long.flops * 0.25
    assert totals([trunk, short, long], {}, begun=begun)[-1] == f"left to run: 3 jobs, {left:.2e} FLOPs"
    numbers = replace(terms, price=2.0).totals([trunk, short, long], {short.id: "done"})
    assert numbers["flops_left"] == left - short.flops
    assert numbers["device_hours_left"] == pytest.approx(0.5)
    assert numbers["price_left"] == pytest.approx(1.0)
    assert numbers["pretrain_flops_alone"] == 60 / 20 * trunk.flops
    assert numbers["pretrain_flops_shared"] == 50 / 20 * trunk.flops == numbers["flops"]


def test_changes_are_told_by_the_run_that_differs_least(folder: Path) -> None:
    study = load(folder / "study.toml", base=folder)
    before = current_plan(study, folder / "runs")
    for job in before.jobs:
        prepare(job, folder / "runs", base=folder, machine={})
    held = Held(frozenset(job.id for job in before.jobs))
    assert list(changes(before, held, folder / "runs")) == []
    edited = load(folder / "study.toml", base=folder, settings=["recipe.lr=0.02"])
    found = list(changes(current_plan(edited, folder / "runs"), held, folder / "runs"))
    vit, resnet = (job.id for job in before.jobs if job.kind == "pretrain")
    assert [(change.state, change.model, change.like) for change in found[:2]] == [
        ("new", "ViT-nano/7", vit),
        ("new", "R5", resnet),
    ]
    assert found[0].words() == f"recipe.lr: 0.01 -> 0.02 (from {vit})"
    assert {change.id for change in found[2:]} == {vit, resnet}
    assert {change.state for change in found[2:]} == {"gone"}


@pytest.mark.slow
def test_bench_times_each_shape_and_plan_prices_with_it(folder: Path) -> None:
    def vitscale(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vitscale", *arguments], cwd=folder, capture_output=True, text=True
        )

    timed = vitscale("bench", "study.toml", "--threads", "1", "--json")
    assert timed.returncode == 0, timed.stderr
    shapes = json.loads(timed.stdout)["shapes"]
    assert [shape["model"] for shape in shapes] == ["ViT-nano/7", "R5"]
    assert all(shape["images_per_second"] > 0 and shape["memory"] > 0 for shape in shapes)
    assert not (folder / "runs").exists()
    document = json.loads(vitscale("plan", "study.toml", "--json").stdout)
    assert document["rates"] == f"as measured on {shapes[0]['device']}"
    seconds = [job["device_seconds"] for job in document["jobs"] if job["kind"] == "pretrain"]
    assert seconds == pytest.approx([12 * 16 / shape["images_per_second"] for shape in shapes])
    measured = [job["memory_measured"]["bytes"] for job in document["jobs"] if job["kind"] == "pretrain"]
    assert measured == [shape["memory"] for shape in shapes]


def test_what_is_left_of_a_branch_counts_from_where_it_left_its_trunk(folder: Path) -> None:
    text = tiny.STUDY.replace("steps = 12\n", 'schedule = "constant"\ncooldown = 0.5\n')
    (folder / "study.toml").write_text(text[: text.index("[[transfer]]")] + '[[axes]]\n"recipe.steps" = [20, 40]\n')
    jobs = trained(folder)
    (branch,) = [job for job in jobs if job.branch and job.steps == 40]

    def after(step: int) -> float:
        run = folder / "runs" / branch.id
        run.mkdir(parents=True, exist_ok=True)
        event = {"event": "step", "step": step, "steps": 40, "images_per_second": 1.0}
        (run / "events.jsonl").write_text(json.dumps(event) + "\n")
        with lease.hold(run):
            return expected(jobs, [branch], folder / "runs", processes=1).seconds

    assert after(20) - after(30) == pytest.approx(10 * 16)  # images, at one a second
    assert after(20) - after(40) == pytest.approx(20 * 16)


def test_what_cannot_fit_is_judged_by_what_was_measured(folder: Path) -> None:
    (vit, _) = trained(folder)

    def refused(gib: float) -> bool:
        terms = Terms(counting="dense", rates=rates_of([vit], None, cores=2), memory=gib)
        return any(line.startswith("does not fit") for line in bill([vit], {}, terms))

    counted = Terms(counting="dense", rates=rates_of([vit], None, cores=2)).least_gib(vit)
    assert (refused(counted * 1.01), refused(counted * 0.99)) == (False, True)
    keep(
        vit, "Some CPU", {**MEMORY, "memory": 4 * vit.memory_bytes(micro_batch=8, recompute=True), "settings": AT_ONCE}
    )
    assert (refused(counted * 3.9), refused(counted * 4.1)) == (True, False), "four times what is counted"


def test_runs_that_differ_in_more_than_the_rate_do_not_look_alike(folder: Path) -> None:
    text = tiny.STUDY + '[[axes]]\n"recipe.weight_decay" = [0.03, 0.3]\nseed = [0, 1]\n'
    (folder / "study.toml").write_text(text)
    jobs = trained(folder)
    terms = Terms(counting="dense", rates=rates_of(jobs, None, cores=2))
    assert {row(job, "to do", terms)[2] for job in jobs} == {f"ViT-nano/7, weight_decay {n}" for n in (0.03, 0.3)}
    assert len({title(job).partition(" ")[2] for job in jobs}) == 4


def test_runs_that_differ_in_their_cool_down_do_not_look_alike(folder: Path) -> None:
    over = (
        '"recipe.cooldown" = [0.25, 0.5], "recipe.cooldown_shape" = ["linear", "sqrt"], "recipe.end_lr" = [0.0, 1e-5]'
    )
    select = f"[select]\nover = {{ {over} }}\n"
    (folder / "study.toml").write_text(tiny.STUDY.replace("lr = 1e-2", 'lr = 1e-2\nschedule = "constant"') + select)
    runs = [job for job in planned(folder) if job.kind == "pretrain" and job.role != "trunk"]
    assert len(runs) == 8
    terms = Terms(counting="dense", rates=rates_of(runs, None, cores=2))
    assert len({row(job, "to do", terms)[2] for job in runs}) == 8
    assert len({title(job).partition(" ")[2] for job in runs}) == 8
    assert "ViT-nano/7, cooldown 0.25, cooldown_shape sqrt, end_lr 1e-05" in {
        row(job, "to do", terms)[2] for job in runs
    }


def test_one_slow_line_moves_no_time_that_is_left(folder: Path) -> None:
    vit, _ = jobs = trained(folder)
    run = folder / "runs" / vit.id
    run.mkdir(parents=True)

    def after(*rates: float) -> float:
        told = {"event": "step", "step": 6, "steps": 12}
        lines = [{"event": "start"}, *({**told, "images_per_second": rate} for rate in rates)]
        (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        with lease.hold(run):
            return expected(jobs, [vit], folder / "runs", processes=1).seconds

    assert after(2.0, 2.0, 2.0, 0.1) == after(2.0) == pytest.approx(6 * 16 / 2), "and what has begun, starts no more"


def test_the_first_step_of_a_run_is_no_rate(folder: Path) -> None:
    """It has start-up in it, and of a short run it is half of its lines."""
    vit, resnet = jobs = trained(folder)
    run = folder / "runs" / vit.id
    run.mkdir(parents=True)
    first = {"event": "step", "step": 1, "steps": 12, "images_per_second": 0.1, "seconds_left": None}
    (run / "events.jsonl").write_text(json.dumps(first) + "\n")
    assert expected(jobs, [resnet], folder / "runs", processes=1).how == "a guess before anything has run here"
    last = {**first, "step": 12, "images_per_second": 2.0, "seconds_left": 0.0}
    (run / "events.jsonl").write_text(json.dumps(first) + "\n" + json.dumps(last) + "\n")
    found = expected(jobs, [vit], folder / "runs", processes=1)
    assert found.seconds - SECONDS_PER_PROCESS - SECONDS_PER_JOB == pytest.approx(12 * 16 / 2)


def test_what_a_stopped_run_has_left_counts_from_its_checkpoint_and_it_has_to_start(folder: Path) -> None:
    vit, _ = jobs = trained(folder)
    run = folder / "runs" / vit.id
    run.mkdir(parents=True)
    event = {"event": "step", "step": 11, "steps": 12, "images_per_second": 2.0}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n")

    def steps_left() -> float:
        seconds = expected(jobs, [vit], folder / "runs", processes=1).seconds - SECONDS_PER_PROCESS - SECONDS_PER_JOB
        return seconds * 2 / 16

    assert steps_left() == pytest.approx(12), "what it logged after its last checkpoint is lost"
    (run / "checkpoints" / "step-00000009").mkdir(parents=True)
    assert steps_left() == pytest.approx(3)


def test_of_a_fine_tuning_what_lies_behind_its_checkpoint_is_left(folder: Path) -> None:
    """Steps count over its trainings: here two rates and a repetition."""
    vit, _ = trained(folder)
    tuned, few = (
        transfer_job(
            vit, Transfer(task="digits", protocol=kind, lr=(0.01, 0.1), steps=10), load_task("digits", base=Path())
        )
        for kind in ("finetune", "fewshot")
    )
    (folder / "runs" / tuned.id / "checkpoints" / "step-00000024").mkdir(parents=True)
    assert shares_left([tuned, few], folder / "runs") == {tuned.id: pytest.approx(0.2)}


def test_before_a_run_of_its_shape_has_begun_a_study_takes_as_long_as_bench_says(folder: Path) -> None:
    vit, resnet = jobs = trained(folder)
    runs = folder / "runs"

    def seconds(job: Job, **more: int) -> tuple[float, str]:
        found = expected(jobs, [job], runs, processes=1, **more)
        return found.seconds - SECONDS_PER_PROCESS - SECONDS_PER_JOB, found.how

    assert seconds(vit, threads=2) == (pytest.approx(vit.flops / 4e10), "a guess before anything has run here")
    keep(vit, "Some CPU", {"images_per_second": 10.0, "devices": 1, "threads": 2})
    assert seconds(vit, threads=2) == (pytest.approx(12 * 16 / 10), "as vitscale bench has timed it")
    assert seconds(vit, threads=1)[0] == pytest.approx(12 * 16 / 5)
    assert seconds(vit, threads=2, devices=3)[0] == pytest.approx(12 * 16 / 30)
    assert seconds(resnet, threads=2)[0] == pytest.approx(resnet.flops / (10 * 6 * vit.macs))
    keep(resnet, "Some CPU", {"images_per_second": 40.0, "devices": 1, "threads": 2})
    (runs / vit.id).mkdir(parents=True)
    event = {"event": "step", "step": 0, "steps": 12, "images_per_second": 1.0}
    (runs / vit.id / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert seconds(vit, threads=2) == (pytest.approx(12 * 16), "at the rate of its runs so far")
    assert seconds(resnet, threads=2)[0] == pytest.approx(12 * 16 / 40)
