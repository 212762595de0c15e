"""The paper's own Table 6 as results: what `vitscale report --paper` draws, and what lies over a study's figures."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import pandas as pd

from vitscale import models
from vitscale.models.counts import Head
from vitscale.report.notes import Note
from vitscale.results.schema import SCHEMA
from vitscale.results.store import frame_of

TITLE = "An Image is Worth 16x16 Words: its scaling study, drawn from its Table 6"
SOURCE = "arXiv 2010.11929v2, Table 6"
IMAGES = 303_000_000  # of JFT-300M, by the paper's section 4.1
NOTES = (
    Note(f"These numbers are the paper's ({SOURCE}), one run each; nothing here was trained by vitscale."),
    Note("Its R50x1+ViT-L/16 at 7 epochs (859 exaFLOPs) does not fit its own row at 14 epochs (1668)."),
)
RESOLUTION = 224  # of pre-training
TASKS = {
    "average": "Average of five",  # what the left half of the paper's Figure 5 shows
    "imagenet": "ImageNet",
    "imagenet_real": "ImageNet ReaL",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "pets": "Oxford-IIIT Pets",
    "flowers": "Oxford Flowers-102",
}
FIVE = ("imagenet", "cifar10", "cifar100", "pets", "flowers")


def table() -> pd.DataFrame:
    """Table 6 as result rows: each accuracy is one fine-tuning of one pre-training run."""
    with (resources.files("vitscale") / "reference" / "vit_table6.csv").open("r", encoding="utf-8") as file:
        printed = pd.read_csv(file)
    printed = printed.assign(average=printed[list(FIVE)].mean(axis=1))
    return frame_of([row for printed_row in printed.to_dict("records") for row in _rows(printed_row)])


def _rows(printed: Mapping[Any, Any]) -> list[dict[str, Any]]:
    name = printed["name"].replace("ResNet", "R")
    arch = models.parse(name)
    assert arch is not None, name
    shared = {
        "study": "paper",
        "run_id": f"{printed['name']}, {printed['epochs']} epochs",
        "attempt": 1,
        "status": "done",
        "role": "cell",
        "init": "pretrained",
        "family": printed["family"],
        "model": name,
        "patch": arch.ratio,
        "params_total": arch.params(RESOLUTION, Head(num_classes=0)).total,
        "dataset": "JFT-300M",
        "examples": IMAGES,
        "examples_seen": IMAGES * printed["epochs"],
        "epochs": float(printed["epochs"]),
        "flops_standalone": 1e18 * printed["exaflops"],
        "protocol": "finetune",
        "metric": "accuracy",
        "schema": SCHEMA,
    }
    return [{**shared, "task": title, "value": printed[column] / 100} for column, title in TASKS.items()]
