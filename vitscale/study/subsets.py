"""How many images a run trains on, of which classes: the arithmetic of `vitscale.data.subsets` without the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from vitscale.config import Data, Run
from vitscale.sampling import VALIDATION_SEED, choose_classes, fraction_of, quotas
from vitscale.study.datasets import Dataset

BAD = -1
"""The label of samples that have none: they keep their places in the order, with weight 0."""


@dataclass(frozen=True, slots=True)
class Selected:
    """Unique training images, validation images, and the classes that they are of; None: all of the data set's."""

    examples: int
    validation: int
    classes: tuple[int, ...] | None = None


def subset_seed(run: Run) -> int:
    return run.seed if run.data.subset_seed is None else run.data.subset_seed


def num_classes(dataset: Dataset, data: Data) -> int:
    """Outputs of the head in pre-training."""
    return data.classes or dataset.num_classes


def training_examples(dataset: Dataset, run: Run) -> int:
    """Unique images that a run trains on."""
    return selected(dataset, run.data, subset_seed(run)).examples


def available(dataset: Dataset, data: Data) -> int:
    """Training images before a subset is taken: all but the validation images."""
    return dataset.samples - data.val_examples


def selected(dataset: Dataset, data: Data, seed: int) -> Selected:
    """What a run with these settings and this subset seed trains on."""
    if data.classes is None or data.classes == dataset.num_classes:
        held_in = available(dataset, data)
        whole = held_in if data.fraction is None else fraction_of(held_in, data.fraction)
        return Selected(whole if data.examples is None else data.examples, data.val_examples)
    return _of_classes(dataset, data.classes, data.val_examples, data.fraction, data.examples, seed)


@lru_cache(maxsize=4096)
def _of_classes(
    dataset: Dataset, classes: int, val_examples: int, fraction: float | None, examples: int | None, seed: int
) -> Selected:
    counts = {label: count for label, count in strata(dataset).items() if count}
    chosen = choose_classes([label for label in counts if label != BAD], classes, seed=seed)
    held_out = _quotas(counts, val_examples, VALIDATION_SEED)
    held_in = {label: count - held_out[label] for label, count in counts.items() if count > held_out[label]}
    if fraction is not None:
        held_in = _quotas(held_in, fraction_of(sum(held_in.values()), fraction), seed)
    total = sum(held_in.get(label, 0) for label in chosen)
    validation = sum(held_out[label] for label in chosen)
    return Selected(total if examples is None else examples, validation, tuple(chosen))


@lru_cache(maxsize=64)
def strata(dataset: Dataset) -> Mapping[int, int]:
    """Images of each label; even shares where nobody counted."""
    counts = dataset.class_counts
    if not counts:
        share, more = divmod(dataset.samples, dataset.num_classes)
        counts = tuple(share + (label < more) for label in range(dataset.num_classes))
    return {BAD: dataset.samples - sum(counts), **dict(enumerate(counts))}


def _quotas(counts: dict[int, int], examples: int, seed: int) -> dict[int, int]:
    found = quotas(list(counts.values()), list(counts), examples=examples, seed=seed)
    return dict(zip(counts, found, strict=True))
