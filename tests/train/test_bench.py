"""`vitscale bench` on one run folder: what it finds, and that `plan` counts about the memory that is taken."""

from collections.abc import Callable

import pytest

from vitscale import models
from vitscale.models.counts import Precision
from vitscale.study.cost import model_state_bytes
from vitscale.train import bench
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop

Make = Callable[..., RunDir]


@pytest.mark.parametrize(
    ("name", "precision", "least", "most"),
    [("ViT-nano/4", "fp32", 0.9, 1.8), ("ViT-nano/4", "bf16", 0.9, 2.2), ("R5x2", "fp32", 0.9, 4.5)],
)
def test_the_memory_that_is_taken_is_within_a_factor_of_what_is_counted(
    rundir: Make, monkeypatch: pytest.MonkeyPatch, name: str, precision: Precision, least: float, most: float
) -> None:
    """A ResNet's convolutions work with copies of what they keep."""
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    depth = ("model.depth=6",) if name.startswith("ViT") else ()
    run = rundir(
        f"model.name={name}",
        *depth,
        "recipe.batch_size=128",
        "recipe.dropout=0",
        f"recipe.precision={precision}",
        micro_batch=128,
    )
    found = bench.bench(run, Stop())
    arch = models.from_dict(run.document["arch"])
    states = model_state_bytes(arch.params(28, run.head).total)
    counted = states + arch.activations(28, run.head).bytes(128, precision)
    assert least * counted < found["memory"] < most * counted
    assert found["settings"]["micro_batch"] == 128
