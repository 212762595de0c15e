"""Small studies for tests: a data set's description without its images is all that planning reads."""

import json
from pathlib import Path
from typing import Any

from vitscale.study.job import Job
from vitscale.study.load import Study, load
from vitscale.study.plan import Plan, plan

STUDY = """\
title = "A small study"

[sizes.nano]
width = 64
depth = 2
mlp = 128
heads = 2

[sizes.R5]
blocks = [1]
channels = 8
groups = 4

[model]
stem = "small"

[data]
shards = "train"
resolution = 28
val_examples = 100
crop = "none"

[recipe]
batch_size = 50
examples = 500
lr = 1e-3
warmup_steps = 2
keep = "best"
validate_every = 250

[[axes]]
"model.name" = ["ViT-nano/7", "R5"]
"data.examples" = [100, 400]
seed = [0, 1]

[select]
over = { "recipe.lr" = [1e-3, 3e-3, 1e-2] }
by = "upstream_val"
per = ["model.name"]

[[transfer]]
task = "digits"
protocol = "fewshot"
shots = [1, 5]

[[transfer]]
task = "digits"
protocol = "finetune"
lr = [0.01, 0.03]
steps = 5
batch_size = 10
"""


def describe(
    folder: Path, *, samples: int = 1000, classes: int = 10, fingerprint: str = "f00d", empty_classes: int = 0
) -> None:
    """The `dataset.json` of a packed folder."""
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, object] = {
        "name": folder.name,
        "samples": samples,
        "num_classes": classes,
        "fingerprint": fingerprint,
    }
    full = classes - empty_classes
    facts["class_counts"] = [samples // full] * full + [0] * empty_classes
    (folder / "dataset.json").write_text(json.dumps(facts))


def write(folder: Path, text: str = STUDY, **facts: Any) -> Path:
    """A study file beside its data."""
    describe(folder / "train", **facts)
    path = folder / "study.toml"
    path.write_text(text)
    return path


def planned(folder: Path, text: str = STUDY, settings: tuple[str, ...] = (), **facts: Any) -> Plan:
    """The plan of a study over data with these facts."""
    return plan(load(write(folder, text, **facts), base=folder, settings=settings), {})


def ids(result: Plan) -> list[str]:
    return [job.id for job in [*result.jobs, *result.waiting]]


def untuned(text: str) -> str:
    """The study without its [select]: every cell has its id at once."""
    start = text.index("[select]")
    return text[:start] + text[text.index("[[transfer]]") :]


def finished(study: Study, best: float = 3e-3) -> Plan:
    """The plan after a tuning in which the rate `best` won."""
    scores = {job.id: 1.0 if job.run.recipe.lr == best else 0.5 for job in plan(study, {}).jobs if job.role == "tuning"}
    return plan(study, scores)


def pretraining(result: Plan) -> list[Job]:
    return [job for job in result.jobs if job.kind == "pretrain"]


def only_model(model: str) -> str:
    """The small study with one model and its options, none of which is tuned."""
    before, rest = STUDY.split("[model]")
    head, _ = rest.split("[[axes]]")
    return f"{before}[model]\n{model}\n{head}"
