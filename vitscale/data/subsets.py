"""Which samples of a data set are trained on, and which are held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from vitscale.config import Data
from vitscale.data.order import split_validation, subset
from vitscale.errors import MISSING, VitscaleError
from vitscale.exclusions import Exclusions
from vitscale.sampling import choose_classes, fraction_of

AGAIN = "make the list again with vitscale data dedup"


@dataclass(frozen=True)
class Split:
    """Sorted indices into a data set, and its classes that take part; None: all of them."""

    train: Int64[np.ndarray, " t"]
    validation: Int64[np.ndarray, " v"]
    classes: tuple[int, ...] | None = None

    def labels(self, labels: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Classes numbered anew where some take part only; -1 for an image of the others."""
        if self.classes is None:
            return labels
        number = np.full(max(self.classes[-1], int(labels.max(initial=0))) + 2, -1, dtype=np.int64)
        number[list(self.classes)] = np.arange(len(self.classes))
        renumbered: np.ndarray = number[labels]  # -1 reads the last place, which is no class's
        return renumbered


def split(
    keys: np.ndarray,
    labels: Int64[np.ndarray, " n"],
    data: Data,
    *,
    num_classes: int,
    seed: int,
    excluded: Exclusions | None = None,
) -> Split:
    """What a run trains on and validates on.

    Validation images are held out first, the same for every run. Then a share of the rest is taken (`fraction`), the
    chosen classes of it (`classes`), and `examples` of those. Every step nests, so that with one seed a smaller set
    lies inside every larger one. `study.subsets` counts the same without the data.

    Raises:
        VitscaleError: there are fewer images than asked for, or an excluded one is not in the data set.
    """
    kept = _kept(keys, labels, excluded)
    inside, held_out = split_validation(keys[kept], labels[kept], examples=data.val_examples)
    train, validation = kept[inside], kept[held_out]
    if data.fraction is not None:
        train = _subset(keys, labels, train, fraction_of(len(train), data.fraction), seed)
    classes = None
    if data.classes is not None and data.classes != num_classes:
        present = np.unique(labels[kept])
        present = present[present >= 0]
        if len(present) < data.classes:
            what = f"{data.classes:,} classes were asked for and {len(present):,} have images"
            raise VitscaleError(what, hint=f"ask for at most {len(present):,}", exit_code=MISSING)
        classes = tuple(choose_classes(present.tolist(), data.classes, seed=seed))
        train = train[np.isin(labels[train], classes)]
        validation = validation[np.isin(labels[validation], classes)]
    if data.examples is not None:
        train = _subset(keys, labels, train, data.examples, seed)
    return Split(train=train, validation=validation, classes=classes)


def _subset(
    keys: np.ndarray, labels: Int64[np.ndarray, " n"], index: Int64[np.ndarray, " i"], examples: int, seed: int
) -> Int64[np.ndarray, " examples"]:
    return index[subset(keys[index], labels[index], examples=examples, seed=seed)]


def _kept(keys: np.ndarray, labels: Int64[np.ndarray, " n"], excluded: Exclusions | None) -> Int64[np.ndarray, " k"]:
    if excluded is None or not excluded:
        return np.arange(len(keys), dtype=np.int64)
    left_out: Bool[np.ndarray, " n"] = np.isin(keys, np.array(list(excluded.labels), dtype=np.str_))
    if left_out.sum() != len(excluded):
        unknown = sorted(set(excluded.labels) - set(keys[left_out].tolist()))
        what = f"{unknown[0]!r} is excluded and not in the data set" if unknown else "an excluded key names two images"
        raise VitscaleError(what, hint=AGAIN, exit_code=MISSING)
    told = dict(zip(keys[left_out].tolist(), labels[left_out].tolist(), strict=True))
    wrong = next((key for key, label in excluded.labels.items() if told[key] != label), None)
    if wrong is not None:
        what = f"{wrong!r} is excluded with label {excluded.labels[wrong]} and has {told[wrong]} in the data set"
        raise VitscaleError(what, hint=AGAIN, exit_code=MISSING)
    if left_out.all():
        raise VitscaleError("all images are excluded", hint=AGAIN, exit_code=MISSING)
    return np.flatnonzero(~left_out)
