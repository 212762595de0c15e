"""What a fine-tuning trains with, and which weights of it are tested."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitscale.config import Recipe, Transfer
from vitscale.errors import DONE
from vitscale.launch.folders import prepare
from vitscale.study.datasets import load_task
from vitscale.study.job import Job
from vitscale.study.plan import transfer_job
from vitscale.train import finetune
from vitscale.train.engine import Engine
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.worker import work

ONE_STEP = Transfer(task="digits", protocol="finetune", init="untrained", lr=(0.1,), steps=1, batch_size=64)


@pytest.fixture
def fine_tune(
    base: Path, tmp_path: Path, jobs: Callable[..., tuple[Job, ...]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Recipe, Engine, dict[str, Tensor]]]:
    """Runs such a transfer; what its engine was given, and the weights that were tested."""
    engines: list[Engine] = []
    tested: list[dict[str, Tensor]] = []
    measure = finetune.evaluate

    def engine_of(*arguments: Any, **settings: Any) -> Engine:
        engines.append(Engine(*arguments, **settings))
        return engines[-1]

    def watched(network: Any, *arguments: Any, **settings: Any) -> Any:
        tested.append({name: tensor.clone() for name, tensor in network.__self__.state_dict().items()})
        return measure(network, *arguments, **settings)

    monkeypatch.setattr(finetune, "Engine", engine_of)
    monkeypatch.setattr(finetune, "evaluate", watched)

    def run(**settings: Any) -> tuple[Recipe, Engine, dict[str, Tensor]]:
        job = transfer_job(jobs()[0], replace(ONE_STEP, **settings), load_task("digits", base=base))
        folder = prepare(job, tmp_path / "runs", base=base, machine={"threads": 1})
        assert work(RunDir(folder), Stop()) == DONE
        return engines[-1].recipe, engines[-1], tested[-1]

    return run


def test_the_average_is_what_is_tested(fine_tune: Callable[..., tuple[Recipe, Engine, dict[str, Tensor]]]) -> None:
    """After one step from a head of zeros it is a quarter of the head that the step made."""
    _, _, plain = fine_tune()
    _, _, averaged = fine_tune(ema=0.75)
    assert plain["head.weight"].abs().max() > 0
    assert torch.equal(averaged["head.weight"], 0.25 * plain["head.weight"])


def test_it_is_trained_as_in_the_paper(fine_tune: Callable[..., tuple[Recipe, Engine, dict[str, Tensor]]]) -> None:
    """SGD with momentum 0.9, cosine decay, no weight decay, no dropout, gradients clipped at norm 1 (arXiv 2010.11929,
    B.1.1)."""
    recipe, engine, _ = fine_tune()
    assert isinstance(engine.optimizer, torch.optim.SGD)
    (group,) = engine.optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 0, False)
    assert (recipe.schedule, recipe.grad_clip, recipe.dropout, recipe.ema) == ("cosine", 1.0, 0.0, 0.0)
    assert all(module.p == 0 for module in engine.net.modules() if isinstance(module, torch.nn.Dropout))


def test_it_took_what_it_computed_and_not_what_was_planned(
    base: Path, tmp_path: Path, jobs: Callable[..., tuple[Job, ...]]
) -> None:
    """The second rate diverges behind its first step, and is not evaluated; an attempt before was killed."""
    grid = replace(ONE_STEP, lr=(0.01, 1e35), steps=4, batch_size=16)
    job = transfer_job(jobs()[0], grid, load_task("digits", base=base))
    folder = prepare(job, tmp_path / "runs", base=base, machine={"threads": 1})
    earlier = [("start", {"attempt": 1}), ("engine", {}), ("step", {"step": 3, "device_seconds": 0.1})]
    earlier += [("scored", {"flops_eval": 5.0})]
    (folder / "events.jsonl").write_text("".join(json.dumps({"event": e, **f}) + "\n" for e, f in earlier))
    assert work(RunDir(folder), Stop()) == DONE
    (row,) = (RunDir(folder).result() or {})["rows"]
    took = next(event["step"] for event in RunDir(folder).events() if event["event"] == "diverged")
    assert 0 < took < 4
    assert row["flops_segment"] == (4 + took + 4) * job.flops_per_step
    assert row["flops_tuning"] == (4 + took) * job.flops_per_step
    assert row["flops_lost"] == 3 * job.flops_per_step
    scored = [event["flops_eval"] for event in RunDir(folder).events() if event["event"] == "scored"]
    assert len(scored) == 3, "of the attempt before, on the dev split, on the test images"
    assert row["flops_eval"] == sum(scored)
    assert job.flops == 3 * 4 * job.flops_per_step, "what `plan` prices"
