"""How a line of a figure looks and what it is called: one colour and marker per family, in every figure."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from vitscale.wording import count

INK = "#202020"
GREY = "#707070"
# Okabe and Ito, "Color Universal Design" (2008); their yellow and black are left out: one fades, one is text.
KNOWN = {"vit": ("#0072B2", "o"), "hybrid": ("#009E73", "s"), "resnet": ("#D55E00", "^"), "raw": (GREY, "")}
OTHERS = [("#CC79A7", "D"), ("#56B4E9", "v"), ("#E69F00", "P"), ("#5B4B8A", "X")]
NAMES = {"vit": "ViT", "hybrid": "Hybrid", "resnet": "ResNet"}
BASELINE_NAMES = {
    ("fewshot", "pixels"): "raw pixels",
    ("fewshot", "untrained"): "untrained",
    ("finetune", "untrained"): "from scratch",
}
Dash = str | tuple[int, tuple[float, ...]]
DASHES: list[Dash] = [
    "-", (0, (6, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (6, 1.5, 1.2, 1.5, 1.2, 1.5)), (0, (2.5, 3)),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    label: str
    color: str
    marker: str
    dash: Dash


def looks(points: pd.DataFrame, keys: list[str]) -> dict[tuple[str, ...], Look]:
    """A look for every combination of `keys` (family first); a family of one model is called by the family's name."""
    lines = points[keys].drop_duplicates().fillna("").sort_values(keys)
    family_looks = family_styles(points)
    found: dict[tuple[str, ...], Look] = {}
    for family, group in lines.groupby("family", sort=True):
        color, marker = family_looks[str(family)]
        one_model = "model" not in group or group["model"].nunique() == 1
        for number, line in enumerate(group.itertuples(index=False, name=None)):
            named = dict(zip(keys, line, strict=True))
            name = NAMES.get(str(family), str(family)) if one_model else str(named["model"])
            label = ", ".join(filter(None, [name, str(named.get("variant", ""))]))
            found[tuple(map(str, line))] = Look(label, color, marker, DASHES[number % len(DASHES)])
    return found


def family_styles(points: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Colour and marker of every family; a new family takes the next free pair in the order of names."""
    new = sorted(set(points["family"].dropna().astype(str)) - set(KNOWN))
    colors, markers = zip(*OTHERS, strict=True)
    pairs = [(colors[i % len(OTHERS)], markers[(i + i // len(OTHERS)) % len(OTHERS)]) for i in range(len(new))]
    return {**KNOWN, **dict(zip(new, pairs, strict=True))}


def measure_title(task: str, protocol: str, shots: int | None) -> str:
    if protocol == "pretrain":
        return {"upstream_test": "Upstream, test set", "upstream_val": "Upstream, validation set"}.get(task, task)
    if protocol == "fewshot" and shots is not None:
        return f"{task}, {count(shots, 'shot')} a class"
    return f"{task}, fine-tuned" if protocol == "finetune" else f"{task}, {protocol}"


def line_name(line: tuple[str, ...]) -> str:
    """Of a line by family and variant."""
    family, *variant = line
    return ", ".join(filter(None, [NAMES.get(family, family), *variant]))


def upstream_task(points: pd.DataFrame) -> str | None:
    """The task that speaks for pre-training: the test set where it was measured."""
    tasks = set(points.loc[points["protocol"] == "pretrain", "task"])
    return next((task for task in ("upstream_test", "upstream_val") if task in tasks), None)


def short(number: float) -> str:
    """1000 -> 1k, 55000 -> 55k, 1281167 -> 1.28M, 303000000 -> 303M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"
