"""The jobs of a study, what each is told, and their prices."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from studies import STUDY, finished, planned, pretraining, untuned, write
from vitscale import models
from vitscale.study.load import load
from vitscale.study.plan import plan


def test_every_cell_is_transferred_and_each_baseline_stands_once(tmp_path: Path) -> None:
    result = finished(load(write(tmp_path), base=tmp_path))
    transfers = [job for job in result.jobs if job.kind == "transfer" and job.role == "cell"]
    cells = {job.id for job in pretraining(result) if job.role == "cell"}
    assert {job.parent for job in transfers} == cells
    assert len(transfers) == 2 * len(cells)
    baselines = [job for job in result.jobs if job.role == "baseline"]
    kinds = sorted((j.run.transfer.protocol, j.run.transfer.init, j.arch.family) for j in baselines if j.run.transfer)
    assert kinds == [
        ("fewshot", "pixels", "vit"),
        ("fewshot", "untrained", "resnet"),
        ("fewshot", "untrained", "vit"),
        ("finetune", "untrained", "resnet"),
        ("finetune", "untrained", "vit"),
    ]
    assert all(job.parent is None and job.pretrain_flops == 0 for job in baselines)


def test_networks_that_differ_in_their_pre_training_s_head_alone_have_one_untrained_baseline(tmp_path: Path) -> None:
    """Nothing that a row records would tell two of them apart."""
    text = (
        untuned(STUDY)
        .replace('["ViT-nano/7", "R5"]', '"R5"')
        .replace("data.examples", "data.classes")
        .replace("[100, 400]", "[5, 10]")
    )
    baselines = [job for job in planned(tmp_path, text).jobs if job.role == "baseline"]
    kinds = [(job.run.transfer.protocol, job.run.transfer.init) for job in baselines if job.run.transfer]
    assert sorted(kinds) == [("fewshot", "pixels"), ("fewshot", "untrained"), ("finetune", "untrained")]


def test_flops_follow_the_paper_s_convention(tmp_path: Path) -> None:
    text = 'seed = 0\n[model]\nname = "ViT-B/16"\npre_logits = false\n[data]\nsize = 303_000_000\nnum_classes = 18_291\n[recipe]\nepochs = 7\n'
    (job,) = planned(tmp_path, text).jobs
    assert job.pretrain_flops == pytest.approx(224e18, rel=0.005)  # arXiv 2010.11929, Table 6: 224 exaFLOPs
    assert job.flops == job.pretrain_flops


def test_a_fine_tuning_with_several_rates_is_priced_with_its_search(tmp_path: Path) -> None:
    result = finished(load(write(tmp_path), base=tmp_path))
    job = next(j for j in result.jobs if j.run.transfer and j.run.transfer.protocol == "finetune" and j.role == "cell")
    macs = job.arch.macs(28, replace(job.head, num_classes=10, pre_logits=False)).total
    assert job.flops == 6 * macs * 5 * 10 * 3  # two rates and the final training


def test_transfers_of_one_task_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    text = STUDY + '\n[[transfer]]\ntask = "digits"\nprotocol = "finetune"\nlr = 0.01\nsteps = 50\nbatch_size = 10\n'
    result = finished(load(write(tmp_path, text), base=tmp_path))
    tuned = [j for j in result.jobs if j.run.transfer and j.run.transfer.protocol == "finetune" and j.role == "cell"]
    assert {j.varied["transfer.steps"] for j in tuned} == {5, 50}
    assert all("transfer.batch_size" not in j.varied for j in tuned)
    assert not any(
        "transfer.steps" in j.varied for j in result.jobs if j.run.transfer and j.run.transfer.protocol == "fewshot"
    )


def test_a_thousand_runs_are_planned_in_a_second_of_this_process(tmp_path: Path) -> None:
    text = STUDY[: STUDY.index("[[axes]]")] + '[[axes]]\n"model.name" = ["ViT-nano/7", "R5"]\nseed = [{}]\n'.format(
        ", ".join(map(str, range(500)))
    )
    study = load(write(tmp_path, text), base=tmp_path)
    start = time.process_time()
    assert len(plan(study, {}).jobs) == 1000
    assert time.process_time() - start < 10  # far above the aim: it catches a square, not a slow machine


def test_a_job_s_document_names_the_architecture_by_its_numbers(tmp_path: Path) -> None:
    job = planned(tmp_path).jobs[0]
    document = job.document()
    assert models.from_dict(document["arch"]) == job.arch
    assert document["steps"] == 10
    assert document["id"] == job.id


def test_memory_is_states_and_the_activations_of_a_micro_batch(tmp_path: Path) -> None:
    job = plan(load(write(tmp_path), base=tmp_path), {}).jobs[0]
    batch, params = job.run.recipe.batch_size, job.params.total
    kept = job.arch.activations(job.run.data.resolution, job.head)
    assert job.memory_bytes() == 16 * params + kept.bytes(batch)
    assert job.memory_bytes(devices=2, micro_batch=batch) == 20 * params + kept.bytes(batch // 2)
    assert job.memory_bytes(micro_batch=1) == 16 * params + kept.bytes(1)
    half, *_ = pretraining(planned(tmp_path, settings=("recipe.precision=bf16",)))
    assert half.memory_bytes() == 16 * params + kept.bytes(batch, "bf16") < job.memory_bytes()
    again = job.arch.activations(job.run.data.resolution, job.head, recompute=True)
    assert job.memory_bytes(recompute=True) == 16 * params + again.peak_bytes(batch)
