"""The smallest study that walks the whole path, and the data for it."""

import json
from pathlib import Path

from vitscale.data import fractals

STUDY = """\
[sizes.nano]
width = 32
depth = 1
mlp = 64
heads = 2
[sizes.R5]
blocks = [1]
channels = 8
groups = 4
[model]
name = "ViT-nano/7"
stem = "small"
[data]
shards = "train"
test = "test"
resolution = 28
val_examples = 20
[recipe]
batch_size = 16
steps = 12
lr = 1e-2
warmup_steps = 2
keep = "best"
validate_every = 48
dropout = 0.1
[[transfer]]
task = "digits"
shots = [1, 5]
[[transfer]]
task = "digits"
protocol = "finetune"
lr = [0.01, 0.1]
steps = 4
batch_size = 16
seeds = 2
"""


def write(folder: Path, text: str = STUDY) -> Path:
    """`study.toml` beside its data, `train` and `test`."""
    fractals.write(folder / "train", classes=4, per_class=30, resolution=28, seed=0, workers=1)
    fractals.write(folder / "test", classes=4, per_class=10, resolution=28, seed=1, workers=1)
    path = folder / "study.toml"
    path.write_text(text)
    return path


def edit(path: Path, **values: object) -> None:
    """Changes top-level keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
