"""Masked patch prediction: its targets and losses against slow loops, and runs from folder to transfer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from stopping import StopAfter
from tiny import edit
from vitscale import models
from vitscale.cli.main import app
from vitscale.config import MaskedTarget, Recipe
from vitscale.data.masking import MASK
from vitscale.errors import INTERRUPTED
from vitscale.models import convert
from vitscale.models.masked import outputs
from vitscale.train import pretrain, upstream
from vitscale.train.engine import Engine
from vitscale.train.finetune import fine_tuning_net
from vitscale.train.masked import MaskedPatches, per_image_accuracy, per_image_loss, targets
from vitscale.train.objective import Batch
from vitscale.train.optim import make_optimizer
from vitscale.train.rundir import RunDir
from vitscale.train.worker import work
from worked import done, weights

Make = Callable[..., RunDir]
TARGETS: list[MaskedTarget] = ["mean-colour", "4x4", "pixels"]
MASKED = ("recipe.objective=masked-patch",)
BY_HEART = ("data.examples=16", "data.crop=none", "data.flip=false", "recipe.dropout=0.0", "recipe.weight_decay=0.0")


def images(count: int = 3, side: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    found[0] = 255  # the edges of the scale
    found[1, :, : side // 2] //= 8
    return found


def slow_colour(square: np.ndarray) -> int:
    """The mean of each channel in the upper 3 of its 8 bits, red first."""
    red, green, blue = (sum(int(v) for v in channel.ravel()) // channel.size >> 5 for channel in square)
    return (red << 6) | (green << 3) | blue


@pytest.mark.parametrize("patch", [4, 8, 12])
@pytest.mark.parametrize("target", TARGETS)
def test_targets_equal_a_loop_over_patches(target: MaskedTarget, patch: int) -> None:
    batch = images()
    found = targets(batch, patch, target)
    for image, wanted in zip(batch.numpy(), found.numpy(), strict=True):
        cut = [
            image[:, y : y + patch, x : x + patch]
            for y in range(0, image.shape[1], patch)
            for x in range(0, image.shape[2], patch)
        ]
        assert len(cut) == len(wanted)
        for square, truth in zip(cut, wanted, strict=True):
            if target == "pixels":
                np.testing.assert_allclose(truth, square.ravel() / 127.5 - 1, atol=1e-6)
                continue
            side = patch if target == "mean-colour" else patch // 4
            parts = [
                square[:, y : y + side, x : x + side] for y in range(0, patch, side) for x in range(0, patch, side)
            ]
            assert truth.tolist() == [slow_colour(part) for part in parts]


def test_white_is_the_last_colour_and_black_the_first() -> None:
    assert targets(images()[:1], 12, "mean-colour").unique().tolist() == [511]
    assert targets(torch.zeros_like(images()[:1]), 12, "4x4").unique().tolist() == [0]
    red = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    red[:, 0] = 32
    assert targets(red, 4, "mean-colour").tolist() == [[[64]]]


def test_a_colour_loss_is_the_mean_over_patches_and_squares() -> None:
    predicted = torch.randn(2, 3, 4 * 512)
    wanted = torch.randint(512, (2, 3, 4))
    for image in range(2):
        losses, right = [], []
        for patch in range(3):
            for square in range(4):
                logits = predicted[image, patch, 512 * square : 512 * square + 512]
                truth = int(wanted[image, patch, square])
                losses.append(float(-logits[truth] + torch.logsumexp(logits, 0)))
                right.append(int(logits.argmax()) == truth)
        assert float(per_image_loss(predicted, wanted)[image]) == pytest.approx(np.mean(losses), rel=1e-5)
        assert float(per_image_accuracy(predicted, wanted)[image]) == np.mean(right)


def test_a_pixel_loss_is_the_mean_square() -> None:
    predicted, wanted = torch.randn(2, 3, 48), torch.randn(2, 3, 48)
    expected = [((predicted[i] - wanted[i]) ** 2).mean() for i in range(2)]
    torch.testing.assert_close(per_image_loss(predicted, wanted), torch.stack(expected))


RECIPE = Recipe(batch_size=8, steps=5)
SIZES = {"nano": {"width": 32, "depth": 1, "mlp": 64, "heads": 2}}


def objective(target: MaskedTarget = "mean-colour") -> MaskedPatches:
    return MaskedPatches(target=target, patch=4, patches=36, corrupted=18)


def net_of(target: MaskedTarget = "mean-colour") -> torch.nn.Module:
    torch.manual_seed(3)
    arch = models.parse("ViT-nano/4", sizes=SIZES)
    assert arch is not None
    return models.build(arch, num_classes=outputs(target, 4), resolution=24, patches=18)


def batch_of(samples: Sequence[int], bad: int = 0) -> Batch:
    index = np.array(samples, dtype=np.int64)
    pixels = images(16)[torch.from_numpy(index)]
    return Batch(
        images=pixels,
        labels=torch.zeros(len(index), dtype=torch.int64),
        weights=torch.tensor([0.0] * bad + [1.0] * (len(index) - bad)),
        corrupted=objective().draw(np.zeros_like(index), index, seed=0),
    )


@pytest.mark.parametrize("target", TARGETS)
def test_micro_batches_and_bad_images_change_nothing_but_what_they_must(target: MaskedTarget) -> None:
    whole, parts, batch = net_of(target), net_of(target), batch_of(range(8), bad=3)
    one = Engine(whole, RECIPE, objective=objective(target))
    several = Engine(parts, RECIPE, objective=objective(target), micro_batch=2)
    for _ in range(3):
        at_once, in_parts = one.step(batch, 1e-3), several.step(batch, 1e-3)
        assert in_parts.loss == pytest.approx(at_once.loss, rel=1e-5)
        assert in_parts.grad_norm == pytest.approx(at_once.grad_norm, rel=1e-4)
    one.close()
    several.close()
    good = net_of(target)
    alone = Engine(good, replace(RECIPE, batch_size=5), objective=objective(target))
    first = alone.step(batch_of(range(3, 8)), 1e-3).loss
    alone.close()
    assert first == pytest.approx(first_loss(target, batch), rel=1e-5)


def first_loss(target: MaskedTarget, batch: Batch) -> float:
    engine = Engine(net_of(target), RECIPE, objective=objective(target))
    loss = engine.step(batch, 1e-3).loss
    engine.close()
    return loss


def test_the_mask_token_does_not_decay() -> None:
    groups = make_optimizer(net_of(), RECIPE, "adamw").param_groups
    kept = {id(p) for p in groups[1]["params"]}
    assert groups[1]["weight_decay"] == 0
    assert {n for n, p in net_of().named_parameters() if p.ndim > 1 and "weight" not in n} == {
        "mask_token",
        "class_token",
        "pos_embedding",
    }
    net = net_of()
    kept = {id(p) for p in make_optimizer(net, RECIPE, "adamw").param_groups[1]["params"]}
    assert id(net.mask_token) in kept


def best_constant(truth: Tensor) -> float:
    """The loss of who always says the same: the colours' entropy, or the pixels' variance."""
    if truth.is_floating_point():
        return float((truth - truth.mean(dim=(0, 1))).square().mean())
    share = truth.flatten().bincount().double() / truth.numel()
    return -float(torch.xlogy(share, share).sum())


@pytest.mark.parametrize(("target", "share"), [("mean-colour", 0.75), ("4x4", 0.85), ("pixels", 0.5)])
def test_a_run_learns_far_more_than_the_commonest_colours(rundir: Make, target: MaskedTarget, share: float) -> None:
    small = ("model.name='ViT-nano/4'", "data.resolution=16", f"recipe.masked_target={target}")
    run = rundir(*MASKED, *BY_HEART, *small, "recipe.steps=240", "recipe.validate_every=3840")
    result = done(run)
    data = upstream.Upstream(run)
    pixels, _ = data.images.eval_batch(data.split.train, data.how)
    constant = best_constant(targets(torch.from_numpy(pixels), 4, target))
    steps = {event["step"]: event["loss"] for event in run.events() if event["event"] == "step"}
    assert steps[1] > constant
    assert steps[240] < share * constant
    metrics = {"patch_loss"} if target == "pixels" else {"patch_loss", "patch_accuracy"}
    assert {(row["task"], row["metric"]) for row in result["rows"]} == {
        (task, metric) for task in ("upstream_val", "upstream_test") for metric in metrics
    }
    assert {row["n_test"] for row in result["rows"]} == {20, 40}
    assert run.document["head"] == {"num_classes": outputs(target, 4), "pre_logits": None, "patches": 8}


def test_the_score_is_that_of_a_loop_over_the_images(rundir: Make) -> None:
    run = rundir(*MASKED, "recipe.steps=6")
    result = done(run)
    data, net = upstream.Upstream(run), pretrain.new_net(run)
    net.load_state_dict(weights(run))
    net.eval()
    assert data.masked is not None
    shares, losses = [], []
    for sample in data.split.validation:
        index = np.array([sample])
        pixels, _ = data.images.eval_batch(index, data.how)
        drawn = data.masked.draw(np.zeros_like(index), index, seed=None)
        with torch.no_grad():
            logits = net(torch.from_numpy(pixels) / 127.5 - 1, drawn.places, drawn.sources)[0]
        truth = targets(torch.from_numpy(pixels), 7, "mean-colour")[0, drawn.places[0], 0]
        shares.append(float((logits.argmax(1) == truth).double().mean()))
        losses.append(float(torch.nn.functional.cross_entropy(logits, truth)))
    found = {row["metric"]: row for row in result["rows"] if row["task"] == "upstream_val"}
    assert found["patch_accuracy"]["value"] == pytest.approx(np.mean(shares))
    assert found["patch_accuracy"]["value_se"] == pytest.approx(np.std(shares) / math.sqrt(20))
    assert found["patch_loss"]["value"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert result["score"] == found["patch_accuracy"]["value"]


@pytest.mark.parametrize(("target", "name"), [("mean-colour", "patch_accuracy"), ("pixels", "negative_patch_loss")])
def test_the_checkpoint_with_the_best_score_is_kept(rundir: Make, target: MaskedTarget, name: str) -> None:
    run = rundir(*MASKED, f"recipe.masked_target={target}", "recipe.steps=24", "recipe.lr=3e-2")
    result = done(run)
    validations = {e["step"]: e[name] for e in run.events() if e["event"] == "validate"}
    assert sorted(validations) == [3, 6, 9, 12, 15, 18, 21, 24]
    best = max(validations, key=lambda step: validations[step])
    assert result["checkpoint"] == f"step-{best:08d}"
    assert result["score"] == validations[best]


def test_an_interrupted_run_resumes_to_the_bit_in_other_micro_batches_of_workers(rundir: Make) -> None:
    """With dropout, crops and a corruption of each image that is new in each epoch."""
    undisturbed, resumed = rundir(*MASKED, runs="a", workers=1), rundir(*MASKED, runs="b", workers=3)
    expected = done(undisturbed)
    assert work(resumed, StopAfter(4)) == INTERRUPTED
    assert work(resumed, StopAfter(3)) == INTERRUPTED
    result = done(resumed)
    assert result["attempt"] == 3
    varying = {"device_seconds", "mfu", "flops_lost", "flops_eval"}
    for row, other in zip(result["rows"], expected["rows"], strict=True):
        assert {k: v for k, v in row.items() if k not in varying} == {
            k: v for k, v in other.items() if k not in varying
        }
    ours, theirs = weights(resumed), weights(undisturbed)
    assert "mask_token" in ours
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_batches_carry_corruption_that_changes_with_the_epoch_alone(rundir: Make) -> None:
    data = upstream.Upstream(rundir(*MASKED, "data.examples=16"))
    seen: dict[int, list[list[int]]] = {}
    for step in range(2):  # an epoch each
        batch = data.batch(step)
        assert batch.corrupted is not None
        assert ((batch.corrupted.sources == MASK).sum(dim=1) <= 8).all()
        for sample, places in zip(data.positions(step)[0], batch.corrupted.places, strict=True):
            seen.setdefault(int(sample), []).append(places.tolist())
    assert all(len(places) == 2 for places in seen.values())
    assert sum(first != second for first, second in seen.values()) > 12
    again = data.batch(1)
    assert again.corrupted is not None
    assert again.corrupted.places.tolist() == [seen[int(i)][1] for i in data.positions(1)[0]]


def test_a_classification_carries_none(rundir: Make) -> None:
    assert upstream.Upstream(rundir()).batch(0).corrupted is None


@pytest.mark.parametrize("options", [(), ("model.pool=gap", "model.pos_embedding=2d")])
def test_a_run_is_transferred_without_mask_token_and_head(rundir: Make, options: tuple[str, ...]) -> None:
    fast = (*MASKED, *options, "recipe.steps=4")
    trunk = rundir(*fast)
    done(trunk)
    net, stored = pretrain.trained_net(trunk), weights(trunk)
    own = net.state_dict()
    assert set(stored) - set(own) == {"mask_token"}
    assert all(torch.equal(own[name], stored[name]) for name in own if not name.startswith("head."))
    assert torch.equal(net(torch.randn(2, 3, 28, 28)), torch.zeros(2, 4))  # four classes, zeros
    few, fine = rundir(*fast, which=1), rundir(*fast, which=2)
    tuned = fine_tuning_net(net, fine, fine.task, 28)
    assert {n for n, t in tuned.state_dict().items() if n not in stored or not torch.equal(t, stored[n])} == {
        "head.weight",
        "head.bias",
    }
    for run in (few, fine):
        assert all(0 < row["value"] <= 1 for row in done(run)["rows"])


def test_a_run_is_transferred_at_another_resolution(rundir: Make) -> None:
    done(rundir(*MASKED, "recipe.steps=4"))
    for which in (1, 2):
        folder = rundir(*MASKED, "recipe.steps=4", which=which).folder
        config = RunDir(folder).document["config"]
        config["transfer"] |= {"resolution": 42, "lr": [0.01], "seeds": 1}
        edit(folder / "run.json", config=config)
        assert all(0 < row["value"] <= 1 for row in done(RunDir(folder))["rows"])


def test_untrained_baselines_are_those_of_a_classification(rundir: Make, jobs: Callable[..., Any]) -> None:
    plain = {
        (job.run.transfer.protocol, job.run.transfer.init): (n, job.id)
        for n, job in enumerate(jobs())
        if job.role == "baseline"
    }
    for number, job in enumerate(jobs(*MASKED)):
        if job.role != "baseline" or job.run.transfer.init != "untrained":
            continue
        which, id_ = plain[(job.run.transfer.protocol, "untrained")]
        assert job.id == id_
        one, other = rundir(which=which, runs="plain"), rundir(*MASKED, which=number, runs="masked")
        ours, theirs = pretrain.new_net(other).state_dict(), pretrain.new_net(one).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert [row["value"] for row in done(other)["rows"]] == [row["value"] for row in done(one)["rows"]]


@pytest.mark.parametrize("kind", ["npz", "timm", "safetensors"])
def test_an_exported_run_is_read_again_as_a_classification(rundir: Make, tmp_path: Path, kind: str) -> None:
    trunk = rundir(*MASKED, "recipe.steps=4")
    done(trunk)
    file = tmp_path / ("a.npz" if kind == "npz" else "a.safetensors")
    told = CliRunner().invoke(app, ["checkpoint", "export", str(trunk.folder), str(file), "--format", kind])
    assert told.exit_code == 0, told.output
    assert "its mask token is left out, and its head is zero" in told.stderr
    net, own = models.build(trunk.arch, num_classes=4, resolution=28), pretrain.trained_net(trunk)
    net.load_state_dict(convert.from_file(file, trunk.arch))
    images = torch.randn(2, 3, 28, 28)
    assert torch.equal(net.eval().features(images), own.eval().features(images))
