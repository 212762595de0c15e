"""Masked patch prediction in a study: ids, prices, baselines, and what it cannot be combined with."""

from pathlib import Path
from typing import Any

import pytest

from studies import STUDY, write
from vitscale.errors import INVALID_STUDY, VitscaleError
from vitscale.launch.folders import prepare
from vitscale.study.job import Job
from vitscale.study.load import load
from vitscale.study.plan import plan

MASKED = ('"model.name" = ["ViT-nano/7", "R5"]', '"model.name" = ["ViT-nano/7"]\n"recipe.objective" = ["masked-patch"]')
SELECT = STUDY[STUDY.index("[select]") : STUDY.index("[[transfer]]")]


def planned(folder: Path, *settings: str, text: str = STUDY.replace(SELECT, "").replace(*MASKED)) -> tuple[Job, ...]:
    return plan(load(write(folder, text), base=folder, settings=settings), {}).jobs


def pretraining(jobs: tuple[Job, ...]) -> list[Job]:
    return [job for job in jobs if job.kind == "pretrain"]


def ids(jobs: list[Job]) -> list[str]:
    return [job.id for job in jobs]


def mistakes(folder: Path, text: str) -> list[tuple[str, str]]:
    with pytest.raises(VitscaleError) as caught:
        load(write(folder, text), base=folder)
    assert caught.value.exit_code == INVALID_STUDY
    return [(problem.message, problem.hint) for problem in caught.value.problems]


@pytest.mark.parametrize(
    "setting", ["recipe.objective=classification", "recipe.masked_target=pixels", "recipe.masked_fraction=0.4"]
)
def test_what_is_predicted_is_part_of_the_id(tmp_path: Path, setting: str) -> None:
    text = STUDY.replace(SELECT, "").replace('"model.name" = ["ViT-nano/7", "R5"]\n', "")
    told = ("model.name=ViT-nano/7", "recipe.objective=masked-patch")
    base = ids(pretraining(planned(tmp_path, *told, text=text)))
    assert not set(base) & set(ids(pretraining(planned(tmp_path, *told, setting, text=text))))


@pytest.mark.parametrize("setting", ["recipe.masked_target=pixels", "recipe.masked_fraction=0.4"])
def test_a_classification_has_no_such_settings(tmp_path: Path, setting: str) -> None:
    text = STUDY.replace(SELECT, "")
    one, other = planned(tmp_path, text=text), planned(tmp_path, setting, text=text)
    assert ids(list(one)) == ids(list(other))
    told: dict[str, Any] = {"machine": {}}
    prepare(one[0], tmp_path / "runs", base=tmp_path, **told)
    prepare(other[0], tmp_path / "runs", base=tmp_path, **told)  # the same run, however it is written down


def test_a_pre_logits_layer_means_nothing_to_it(tmp_path: Path) -> None:
    one, other = pretraining(planned(tmp_path)), pretraining(planned(tmp_path, "model.pre_logits=false"))
    assert ids(one) == ids(other)
    assert one[0].head.pre_logits is None
    prepare(one[0], tmp_path / "runs", base=tmp_path, machine={})
    prepare(other[0], tmp_path / "runs", base=tmp_path, machine={})


@pytest.mark.parametrize(("target", "outputs"), [("mean-colour", 512), ("pixels", 3 * 7 * 7)])
def test_the_price_is_that_of_a_head_on_the_corrupted_patches(tmp_path: Path, target: str, outputs: int) -> None:
    job = pretraining(planned(tmp_path, f"recipe.masked_target={target}", "recipe.masked_fraction=0.3"))[0]
    assert job.head.patches == 5  # of 16, 4.8
    width, tokens = 64, 17
    block = tokens * (4 * width * width + 2 * tokens * width + 2 * width * 128)
    assert job.macs == 16 * 7 * 7 * 3 * width + 2 * block + 5 * width * outputs
    assert job.params.head == (width + 1) * outputs
    assert job.params.embedding == 7 * 7 * 3 * width + width + tokens * width + 2 * width  # class and mask token
    assert job.document()["flops_per_example"] == 6 * job.macs


def test_a_transfer_costs_what_its_own_pre_training_did(tmp_path: Path) -> None:
    jobs = planned(tmp_path)
    trunks = {job.id: job for job in pretraining(jobs)}
    transfers = [job for job in jobs if job.parent is not None]
    assert len(transfers) == 2 * len(trunks)
    for job in transfers:
        assert job.pretrain_flops == trunks[job.parent or ""].flops == 6 * trunks[job.parent or ""].macs * 500


def test_baselines_are_those_of_the_classification_study(tmp_path: Path) -> None:
    both = STUDY.replace(SELECT, "").replace(
        MASKED[0], '"model.name" = ["ViT-nano/7"]\n"recipe.objective" = ["classification", "masked-patch"]'
    )
    plain = both.replace(', "masked-patch"', "")
    masked = both.replace('"classification", ', "")
    told = [
        {job.id: (job.head, job.macs) for job in planned(tmp_path, text=text) if job.role == "baseline"}
        for text in (both, plain, masked)
    ]
    assert told[0] == told[1] == told[2]
    assert len(told[0]) == 3


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ('["ViT-nano/7"]', '["R5"]', "R5 has no patch embeddings", "[[axes]] table of their own"),
        ('["ViT-nano/7"]', '["R5+ViT-nano/7"]', "R5+ViT-nano/7 sees what is masked through the backbone", "[[axes]] table"),
        ("lr = 1e-3\n", "lr = 1e-3\nmixup = 0.2\n", "recipe.mixup = 0.2 means nothing to masked-patch", "[[axes]] table"),
        ("lr = 1e-3\n", "lr = 1e-3\nlabel_smoothing = 0.1\n", "recipe.label_smoothing = 0.1 means nothing", "[[axes]] table"),
        ("lr = 1e-3\n", "lr = 1e-3\nloss = 'sigmoid'\n", "recipe.loss = sigmoid means nothing", "[[axes]] table"),
        ('stem = "small"', 'stem = "small"\nhead_bias = -3.0', "model.head_bias = -3.0 means nothing", "[[axes]] table"),
        ("lr = 1e-3\n", "lr = 1e-3\nmasked_target = '4x4'\n", "patches of 7 px cannot be cut into 4x4 squares", "that 4 divides"),
        ("lr = 1e-3\n", "lr = 1e-3\nmasked_target = 'dalle'\n", "'dalle' is not 'mean-colour', '4x4' or 'pixels'", "one of"),
        ("lr = 1e-3\n", "lr = 1e-3\nmasked_fraction = 0.03\n", "masked_fraction = 0.03 corrupts none of 16 patches", "0.5"),
        ("lr = 1e-3\n", "lr = 1e-3\nmasked_fraction = 1.5\n", "recipe.masked_fraction is 1.5", "from 0 to 1"),
        ("lr = 1e-3\n", "lr = 1e-3\nmasked_fraction = nan\n", "recipe.masked_fraction is nan", "from 0 to 1"),
        ('["ViT-nano/7"]', '["ViT-nano/28"]', "ViT-nano/28 sees 28 px as one patch", "smaller patch"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_with_a_way_out(tmp_path: Path, old: str, new: str, message: str, hint: str) -> None:
    text = STUDY.replace(SELECT, "").replace(*MASKED)
    assert old in text
    found = mistakes(tmp_path, text.replace(old, new, 1))
    assert len(found) == 1, found
    assert message in found[0][0]
    assert hint in found[0][1]


def test_one_table_of_axes_may_hold_what_another_must_not(tmp_path: Path) -> None:
    text = STUDY.replace(SELECT, "").replace(MASKED[0], MASKED[0] + '\n"recipe.label_smoothing" = [0.1]')
    text += '\n[[axes]]\n"model.name" = "ViT-nano/7"\n"recipe.objective" = "masked-patch"\n'
    jobs = pretraining(planned(tmp_path, text=text))
    assert sorted(job.label for job in jobs) == ["R5"] * 4 + ["ViT-nano/7"] * 4 + ["ViT-nano/7 (masked-patch)"]


@pytest.mark.parametrize(
    "over",
    ['"recipe.objective" = ["masked-patch", "classification"]', '"recipe.masked_target" = ["mean-colour", "pixels"]',
     '"recipe.masked_fraction" = [0.4, 0.5]', '"data.resolution" = [28, 56]', '"model.patch" = [7, 14]'],
)  # fmt: skip
def test_scores_of_different_predictions_are_not_selected_by(tmp_path: Path, over: str) -> None:
    text = STUDY.replace('"recipe.lr" = [1e-3, 3e-3, 1e-2]', over)
    text = text.replace(MASKED[0], '"model.name" = ["ViT-nano/7"]').replace(
        "lr = 1e-3\n", "lr = 1e-3\nobjective = 'masked-patch'\n", 1
    )
    found = mistakes(tmp_path, text)
    assert found
    assert all("what the upstream score is a score of" in message for message, _ in found)


def test_rates_are_selected_by_its_score(tmp_path: Path) -> None:
    study = load(write(tmp_path, STUDY.replace(*MASKED)), base=tmp_path)
    tuning = [job for job in plan(study, {}).jobs if job.role == "tuning"]
    assert len(tuning) == 3
    scores = {job.id: -job.run.recipe.lr for job in tuning}  # minus a loss: the largest is the best
    assert {job.run.recipe.lr for job in plan(study, scores).jobs if job.role == "cell"} == {1e-3}


def test_a_published_checkpoint_is_not_trained_so_its_recipe_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"weights")
    text = STUDY.replace(SELECT, "").replace('"data.examples" = [100, 400]\nseed = [0, 1]', "")
    text = text.replace(MASKED[0], '"model.name" = "R5"\n"model.checkpoint" = "a.npz"')
    jobs = planned(tmp_path, "recipe.objective=masked-patch", text=text)
    assert [job.head.patches for job in jobs] == [0] * len(jobs)
