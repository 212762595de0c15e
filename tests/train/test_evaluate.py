"""What is measured in small turns: the same numbers, from a run that moves and hears meanwhile, and loses nothing."""

import socket
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stopping import StopAfter
from test_stop import latest, validations
from test_watchdog import start
from vitscale.config import Data, Recipe
from vitscale.data.images import ArrayImages
from vitscale.data.preprocess import preprocess
from vitscale.errors import INTERRUPTED
from vitscale.processes import Together
from vitscale.train import checkpoint, evaluate, upstream
from vitscale.train.objective import Network
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Interrupted, Stop
from vitscale.train.worker import work
from worked import Make, done, measured, weights

COUNT = 1030
HOW = preprocess(Data(), 4)


class Watched(nn.Module):
    """A linear layer that notes how many images it is given at once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.sizes = nn.Linear(3 * 4 * 4, 5), list[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        return self.layer(images.flatten(1))


@pytest.fixture(scope="module")
def images() -> ArrayImages:
    return ArrayImages(np.random.default_rng(0).integers(0, 256, (COUNT, 4, 4, 3), dtype=np.uint8))


def score(images: ArrayImages, network: Network, at_once: int, stop: Stop | None = None) -> evaluate.Score:
    index = np.arange(COUNT, dtype=np.int64)
    told: dict[str, Any] = {"how": HOW, "recipe": Recipe(), "stop": stop or Stop(), "at_once": at_once}
    return evaluate.evaluate(network, images, index % 5, index, **told)


@pytest.mark.parametrize("at_once", [1, 7, 499])
def test_the_size_of_a_turn_changes_nothing_but_rounding(images: ArrayImages, at_once: int) -> None:
    whole, parts = Watched(), Watched()
    expected, found = score(images, whole, evaluate.CHUNK), score(images, parts, at_once)
    assert max(whole.sizes) == evaluate.CHUNK
    assert set(parts.sizes) == {at_once, COUNT % at_once or at_once}
    assert (found.accuracy, found.images) == (expected.accuracy, COUNT)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    index, told = np.arange(COUNT, dtype=np.int64), {"how": HOW, "stop": Stop()}
    ours, theirs = (evaluate.features(parts, images, index, **told, at_once=n) for n in (at_once, evaluate.CHUNK))  # type: ignore[arg-type]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_signal_is_heard_before_every_turn(images: ArrayImages) -> None:
    network = Watched()
    with pytest.raises(Interrupted):
        score(images, network, 2, StopAfter(3))
    assert network.sizes == [2, 2, 2]


@pytest.mark.parametrize(("macs", "images"), [(3_000_000, 500), (17_600_000_000, 11), (10**12, 1)])
def test_a_processor_forwards_no_more_than_seconds_of_work_at_once(macs: int, images: int) -> None:
    assert evaluate.images_at_once(macs) == images


def test_no_more_images_are_measured_at_once_than_are_trained_on(rundir: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole batch here, which is not accumulated."""
    sizes, loss = list[int](), evaluate.per_image_loss

    def noted(logits: Tensor, *arguments: Any) -> Tensor:
        sizes.append(len(logits))
        return loss(logits, *arguments)

    monkeypatch.setattr(evaluate, "per_image_loss", noted)
    for which in (0, 2):
        done(rundir(which=which))
        assert max(sizes) == 16
        sizes.clear()


@pytest.mark.parametrize(("keep_every", "dies_at"), [(None, 12), (6, 6)])
def test_what_was_trained_outlives_the_validation_that_follows(
    rundir: Make, monkeypatch: pytest.MonkeyPatch, keep_every: int | None, dies_at: int
) -> None:
    undisturbed, killed = (rundir(runs=name, keep_every=keep_every) for name in ("a", "b"))
    expected, measure = done(undisturbed), upstream.Upstream.score_validation
    seen: Iterator[int] = iter(range(3, 13, 3))

    def dies(data: upstream.Upstream, *arguments: Any) -> Any:
        if next(seen) == dies_at:
            raise SystemExit
        return measure(data, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(upstream.Upstream, "score_validation", dies)
        with pytest.raises(SystemExit):
            work(killed, Stop())
    saved = latest(killed)
    assert (saved.step, saved.validation_due) == (dies_at, True)
    assert dies_at not in validations(killed)
    result = done(killed)
    assert (result["checkpoint"], result["score"]) == (expected["checkpoint"], expected["score"])
    assert measured(result) == measured(expected)
    assert {row["flops_lost"] for row in result["rows"]} == {0.0}
    assert validations(killed) == validations(undisturbed)
    assert all(torch.equal(tensor, weights(undisturbed)[key]) for key, tensor in weights(killed).items())
    for run in (undisturbed, killed):
        assert not latest(run).validation_due
        assert latest(run).best_step == checkpoint.step_of(run.folder / result["checkpoint"])


HEARD = """
import os, signal, sys
from vitscale.train import evaluate, worker
loss = evaluate.per_image_loss
def heard(*arguments):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return loss(*arguments)
evaluate.per_image_loss = heard
worker.leave(worker.main(sys.argv[1:]))
"""
"""A worker of which the second gets a signal while it validates."""


@pytest.mark.slow
def test_a_signal_to_one_of_several_ends_the_validation_of_all(rundir: Make) -> None:
    run: RunDir = rundir("recipe.dropout=0", micro_batch=2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    crew = Together({rank: start([sys.executable, "-c", HEARD, str(run.folder)], rank, port) for rank in range(2)})
    assert set(crew.wait().values()) == {INTERRUPTED}
    assert (latest(run).step, latest(run).validation_due) == (3, True)
    assert validations(run) == {}
    assert done(run)["status"] == "done"
