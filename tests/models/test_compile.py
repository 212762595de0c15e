"""torch.compile, in processes of their own: it cannot trace the type checks that the tests put on every function."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NAMES = ["ViT-nano/7", "R5+ViT-nano/7", "R5"]


def test_training_steps_of_every_family_and_option_are_traced_without_a_graph_break() -> None:
    subprocess.run([sys.executable, HERE / "compiled.py", "trace"], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiling_through_the_engine_changes_nothing_but_rounding(name: str) -> None:
    subprocess.run([sys.executable, HERE / "compiled.py", "train", name], check=True)
