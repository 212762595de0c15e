"""What planning needs to know of data: sizes, classes and fingerprints, from the small files beside the shards."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING as MISSING_DEFAULT
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from math import inf
from pathlib import Path
from typing import Any

from vitscale.config import Task
from vitscale.errors import INVALID_STUDY, MISSING, USAGE, VitscaleError
from vitscale.exclusions import Exclusions
from vitscale.files import text_of
from vitscale.locations import DESCRIPTION, Location, is_tar, locate
from vitscale.study.fields import convert
from vitscale.study.fields import types as field_types


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A set of shards, or the size of one that is not at hand (no fingerprint)."""

    name: str
    samples: int
    num_classes: int
    fingerprint: str | None
    empty_classes: int = 0
    """Classes without an image: the keys and labels behind the fingerprint do not tell of them."""
    smallest_class: int | None = None
    """Images of the class that has fewest; None where nobody counted."""
    class_counts: tuple[int, ...] = field(default=(), repr=False)
    """Images of each class; none where nobody counted."""
    problems: int = 0
    """Samples that were found bad when the set was indexed."""
    excluded: int = 0
    """Images that a list of exclusions leaves out; `samples` and `class_counts` are without them."""
    exclusions: str | None = None
    """The digest of that list."""

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Dataset:
        """The data set as a run's `run.json` tells of it."""
        return cls(**{**facts, "class_counts": tuple(facts.get("class_counts", ()))})

    def without(self, exclusions: Exclusions) -> Dataset:
        """The data set without the images of a list; one that is empty changes nothing."""
        if not exclusions:
            return self
        left_out = Counter(exclusions.labels.values())
        return replace(
            self,
            samples=self.samples - len(exclusions),
            class_counts=tuple(count - left_out[label] for label, count in enumerate(self.class_counts)),
            excluded=len(exclusions),
            exclusions=exclusions.digest,
        )


_known: ContextVar[dict[tuple[str, Path], Dataset] | None] = ContextVar("_known", default=None)


@contextmanager
def described_once() -> Iterator[None]:
    """Looks up each data set once, for the thousands of runs that are checked meanwhile."""
    before = _known.set({})
    try:
        yield
    finally:
        _known.reset(before)


def describe(place: str, *, base: Path) -> Dataset:
    """Reads the description of the data set at a folder, a list or a URL; a relative path is looked up from `base`.

    Raises:
        VitscaleError: there are no shards there, or they lack the description (exit 5); no place is named so (exit 3).
    """
    known = _known.get()
    if known is None:
        return _describe(place, base)
    if (place, base) not in known:
        known[place, base] = _describe(place, base)
    return known[place, base]


def _describe(place: str, base: Path) -> Dataset:
    try:
        location = locate(place, base=base)
    except VitscaleError as error:
        raise VitscaleError.of(
            error.problems, exit_code=INVALID_STUDY if error.exit_code == USAGE else MISSING
        ) from None
    folder = location.described
    if folder is None:
        shown = place if location.folder is None else str(base / place)
        raise VitscaleError(
            f"no data set at {shown}: {_found(location, shown)}", hint=_way_out(place, location), exit_code=MISSING
        )
    path = folder / DESCRIPTION
    try:
        return _described(location, path, path.stat().st_mtime_ns)
    except (ValueError, KeyError, TypeError) as error:
        raise VitscaleError(
            f"{path} is damaged ({type(error).__name__}: {error})",
            hint="delete it: vitscale data index LOCATION makes it again from the shards",
            exit_code=MISSING,
        ) from None
    except OSError as error:
        raise VitscaleError(
            f"{path} cannot be read: {error.strerror}", hint="make it readable", exit_code=MISSING
        ) from None


@lru_cache(maxsize=64)
def _described(location: Location, path: Path, written: int) -> Dataset:  # noqa: ARG001  # a changed file is another key
    """Reads the description and compares local shards' sizes with it, once for all runs of a study."""
    facts = json.loads(path.read_text())
    for shard in [] if location.remote else facts.get("shards", []):
        file = Path(location.shard(shard["name"]))
        size = file.stat().st_size if file.is_file() else None
        if size != shard["bytes"]:
            what = "is missing" if size is None else f"has {size:,} bytes and should have {shard['bytes']:,}"
            raise VitscaleError(
                f"{file}: the shard {what}",
                hint="copy or pack it again; vitscale data verify checks all",
                exit_code=MISSING,
            )
    counts = [int(count) for count in facts.get("class_counts", [])]
    return Dataset(
        name=facts["name"],
        samples=facts["samples"],
        num_classes=facts["num_classes"],
        fingerprint=facts["fingerprint"],
        empty_classes=sum(count == 0 for count in counts),
        smallest_class=min(counts, default=None),
        class_counts=tuple(counts),
        problems=facts.get("problems", 0),
    )


@lru_cache(maxsize=64)
def class_names(place: str, *, base: Path) -> tuple[str, ...]:
    """The names of a described set's classes by label; none where they are not told."""
    folder = locate(place, base=base).described
    if folder is None:
        return ()
    try:
        return tuple(map(str, json.loads((folder / "classes.json").read_text("utf-8"))))
    except (OSError, ValueError, TypeError):
        return ()


def _found(location: Location, shown: str) -> str:
    folder = location.folder
    if folder is None:
        return "its shards have no index yet"
    if not folder.is_dir():
        return "there is no such folder" if Path(shown).is_absolute() else f"there is no folder {folder.absolute()}"
    if _has_tars(folder):
        return "its shards have no dataset.json"
    return "the folder holds no shards" if any(folder.iterdir()) else "the folder is empty"


def _way_out(place: str, location: Location) -> str:
    if location.folder is not None and "fashion" in place:
        return "vitscale data fetch fashion-mnist"
    if location.folder is not None and "fractal" in place:
        return f"vitscale data fractals {place} makes one; how large, the study may say in its first lines"
    if location.folder is None or _has_tars(location.folder):
        return f"vitscale data index {location.text} reads them once"
    return "vitscale data pack SOURCE OUT makes shards; vitscale data index LOCATION indexes shards from elsewhere"


def _has_tars(folder: Path) -> bool:
    return folder.is_dir() and any(is_tar(path.name) for path in folder.iterdir())


def load_task(name: str, *, base: Path) -> Task:
    """A task by the name of its file in `vitscale/data/tasks`, or by the path of one's own.

    Raises:
        VitscaleError: there is no such task (exit 3), or its file is not one.
    """
    if name.endswith(".toml"):
        path = base / name
        if not path.is_file():
            raise VitscaleError(f"no task file {path}", hint="check the path", exit_code=INVALID_STUDY)
        try:
            text, origin = text_of(path), str(path)
        except UnicodeDecodeError:
            raise VitscaleError(
                f"{path}: not a text in UTF-8", hint="save the task as UTF-8", exit_code=INVALID_STUDY
            ) from None
        anchor = path.parent
    else:
        if not name:
            raise VitscaleError("no task is named", hint='for example task = "digits"', exit_code=INVALID_STUDY)
        if name not in task_names():
            close = get_close_matches(name, task_names(), 1)
            known = f"known: {', '.join(task_names())}; or the path of a task file that ends in .toml"
            hint = f"did you mean '{close[0]}'?" if close else known
            raise VitscaleError(f"unknown task {name!r}", hint=hint, exit_code=INVALID_STUDY)
        text = (resources.files("vitscale") / "data" / "tasks" / f"{name}.toml").read_text()
        origin, anchor = f"task {name}", base
    return _task(text, origin, anchor)


def _task(text: str, origin: str, anchor: Path) -> Task:
    try:
        values: Mapping[str, Any] = tomllib.loads(text)
        unknown = set(values) - {f.name for f in fields(Task)}
        if unknown:
            raise TypeError(f"unknown key {sorted(unknown)[0]!r}")
        missing = {f.name for f in fields(Task) if f.default is MISSING_DEFAULT} - set(values)
        if missing:
            raise TypeError(f"lacks {', '.join(sorted(missing))}")
        types = field_types(Task)
        task = Task(**{key: convert(types[key], value) for key, value in values.items()})
        _check_task(task)
    except (tomllib.TOMLDecodeError, TypeError, ValueError) as error:
        raise VitscaleError(
            f"{origin}: {error}", hint="the keys are those of vitscale.config.Task", exit_code=INVALID_STUDY
        ) from None
    if task.source == "shards":
        train, test = (describe(folder, base=anchor) for folder in (task.train, task.test))
        if {train.num_classes, test.num_classes} != {task.num_classes}:
            raise VitscaleError(
                f"{origin}: num_classes is {task.num_classes}, but its shards have {train.num_classes} (train) "
                f"and {test.num_classes} (test)",
                hint="correct num_classes, or pack the shards with the same classes",
                exit_code=INVALID_STUDY,
            )
        return replace(
            task,
            train=locate(task.train, base=anchor).text,
            test=locate(task.test, base=anchor).text,
            train_examples=train.samples,
            test_examples=test.samples,
            smallest_class=train.smallest_class or 0,
        )
    return task


def _check_task(task: Task) -> None:
    """Numbers that no task can have.

    Raises:
        ValueError: names the key.
    """
    least = {"num_classes": 2, "draws": 1, "train_examples": 0, "test_examples": 0}
    for key, low in least.items():
        if getattr(task, key) < low:
            raise ValueError(f"{key} is {getattr(task, key)}, and must be at least {low}")
    if not 0 < task.dev_fraction < 1:
        raise ValueError(f"dev_fraction is {task.dev_fraction}, and must lie between 0 and 1")
    if not 0 <= task.ridge < inf:
        raise ValueError(f"ridge is {task.ridge}, and must be 0 or more")
    for key in ("crop_area", "eval_crop_ratio"):
        if not 0 < getattr(task, key) <= 1:
            raise ValueError(f"{key} is {getattr(task, key)}, and must be a share above 0")
    if task.source == "digits" and (task.num_classes != 10 or task.train_examples + task.test_examples != 1797):
        raise ValueError(
            f"digits has 10 classes and 1,797 images, not {task.num_classes} classes and"
            f" {task.train_examples:,} + {task.test_examples:,} images"
        )


def task_identity(task: Task) -> dict[str, Any]:
    """What of a task changes a result; paths and prose don't, the content of its shards does."""
    facts = asdict(task)
    if task.source == "shards":
        for key in ("train", "test"):
            facts[key] = describe(facts[key], base=Path()).fingerprint
    # Fields at their defaults are left out, so that a new one keeps old ids.
    defaults = {f.name: f.default for f in fields(Task)}
    return {k: v for k, v in facts.items() if k not in ("about", "licence", "smallest_class") and v != defaults[k]}


def task_names() -> list[str]:
    """Tasks that ship."""
    folder = resources.files("vitscale") / "data" / "tasks"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
