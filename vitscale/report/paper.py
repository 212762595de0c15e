"""The paper's own tables: Table 6 as results, and of Tables 5 and 6 what lies over a study's figures."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import pandas as pd

from vitscale import models
from vitscale.analysis.curves import curves
from vitscale.models.counts import Head
from vitscale.report.notes import Note
from vitscale.report.overlay import PAPER
from vitscale.results.schema import SCHEMA
from vitscale.results.store import frame_of

TITLE = "An Image is Worth 16x16 Words: its scaling study, drawn from its Table 6"
SOURCE = f"{PAPER}, Table 6"
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
ALIASES = {  # what tasks are also called, in lower case and without signs
    "imagenet": ("imagenet", "imagenet1k", "ilsvrc2012"),
    "imagenet_real": ("imagenetreal", "real"),
    "cifar10": ("cifar10",),
    "cifar100": ("cifar100",),
    "pets": ("pets", "oxfordpets", "oxfordiiitpets", "oxfordiiitpet"),
    "flowers": ("flowers", "flowers102", "oxfordflowers", "oxfordflowers102"),
}
SETS = {"ImageNet": 1_281_167, "ImageNet-21k": 14_197_122, "JFT-300M": IMAGES}  # images, of Table 5's pre-training
FIVE = ("imagenet", "cifar10", "cifar100", "pets", "flowers")


def table() -> pd.DataFrame:
    """Table 6 as result rows: each accuracy is one fine-tuning of one pre-training run."""
    printed = _printed("vit_table6.csv")
    printed = printed.assign(average=printed[list(FIVE)].mean(axis=1))
    return frame_of([row for printed_row in printed.to_dict("records") for row in _rows(printed_row)])


def overlay(points: pd.DataFrame) -> pd.DataFrame:
    """What Tables 5 and 6 (`source`) have of the tasks that `points` were fine-tuned on, under their names there."""
    ours = points.loc[points["protocol"] == "finetune", "task"].dropna().unique()
    both = pd.concat([_table_5(), curves(table()).points.assign(source=6)], ignore_index=True)
    parts = [both[both["task"].isin(_titles(str(task)))].assign(task=task) for task in ours]
    return pd.concat(parts, ignore_index=True) if parts else both.iloc[:0]


def _titles(task: str) -> list[str]:
    """Those that the paper's tables have under another name of the same task."""
    plain = "".join(letter for letter in task.lower() if letter.isalnum())
    return [TASKS[column] for column, names in ALIASES.items() if plain in names]


def overlay_note(theirs: pd.DataFrame) -> Note:
    if theirs.empty:
        text = "Nothing of the paper's tables is drawn: no task here is one that its models were fine-tuned on."
        return Note(text, tuple(TASKS[column] for column in ALIASES))
    tasks = ", ".join(sorted(theirs["task"].unique()))
    return Note(
        f"Grey: the paper's own numbers on {tasks} ({PAPER}, Tables 5 and 6), not trained by vitscale:"
        " other pre-training images, and fine-tuned at a higher resolution."
    )


def _table_5() -> pd.DataFrame:
    printed = _printed("vit_table5.csv").melt(["pretrain", "dataset"], var_name="model", value_name="value").dropna()
    title = printed["dataset"].replace({"Oxford-IIIT-Pets": TASKS["pets"]})
    return printed.assign(
        task=title, value=printed["value"] / 100, examples=printed["pretrain"].map(SETS), source=5, n=1,
        family="vit", variant="", protocol="finetune", metric="accuracy",
    )  # fmt: skip


def _printed(name: str) -> pd.DataFrame:
    with (resources.files("vitscale") / "reference" / name).open("r", encoding="utf-8") as file:
        return pd.read_csv(file)


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
