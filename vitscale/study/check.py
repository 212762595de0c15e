"""What makes a run, a size or a transfer impossible, found before anything is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from math import inf, isfinite
from pathlib import Path
from typing import Any

from vitscale import exclusions, models
from vitscale.config import PROBE_SHOTS, Data, Model, Recipe, Run, Task, Transfer
from vitscale.errors import VitscaleError
from vitscale.study import masked
from vitscale.study.archs import arch_of, meaningless
from vitscale.study.datasets import Dataset, class_names, describe, load_task
from vitscale.study.fields import value_of
from vitscale.study.published import content
from vitscale.study.ranges import LARGEST, TOO_LARGE, Complaint, bounded, ranges
from vitscale.study.schedule import total_steps
from vitscale.study.subsets import BAD, available, selected, strata, subset_seed, training_examples

SHAPE = ("patch", "width", "depth", "mlp", "heads", "group_norm_eps")
"""Numbers of an architecture that must be above 0."""
DURATIONS = ("steps", "epochs", "examples")


def check_run(run: Run, *, sizes: models.Sizes, base: Path) -> list[Complaint]:
    """Everything wrong with one run, its data set's size included where the data are at hand."""
    numbers = ranges(run)
    found = [*_model(run, sizes), *numbers, *_seeds(run)]
    if run.model.checkpoint:
        return [*found, *_checkpoint(run, base)]
    subset = _subset(run, base)
    # Nothing can be counted by numbers that are none.
    if not subset and not any(complaint.key.startswith("data.") for complaint in numbers):
        subset = _counts(run, base)
    return [*found, *_duration(run.recipe), *subset, *_probes(run.recipe, base)]


def _model(run: Run, sizes: models.Sizes) -> list[Complaint]:
    name = run.model.name
    if found := _shape(run.model):
        return found
    arch = arch_of(run.model, sizes)
    if arch is None:
        close = get_close_matches(name, models.names(sizes), 1, cutoff=0.5)
        hint = (
            f"did you mean '{close[0]}'?" if close else "for example ViT-Ti/16, R50+ViT-B/16, R50x1 or one of [sizes]"
        )
        return [Complaint("model.name", f"unknown model '{name}'", hint)]
    found = [
        Complaint(
            f"model.{key}", f"model.{key} means nothing to {name}", "give the others an [[axes]] table of their own"
        )
        for key in meaningless(run.model, arch)
    ]
    found += [
        Complaint("model.name", f"{name}: {problem}", "choose a model.name and a data.resolution that fit")
        for problem in arch.problems(run.data.resolution)
    ]
    if run.model.checkpoint:
        return found
    return found or [Complaint(*problem) for problem in masked.problems(run, arch)]


def _shape(model: Model) -> list[Complaint]:
    numbers = {key: value for key in SHAPE if (value := getattr(model, key)) is not None}
    found = [
        Complaint(f"model.{key}", f"model.{key} is {value}", "it must be above 0" if not value > 0 else TOO_LARGE)
        for key, value in numbers.items()
        if not 0 < value <= LARGEST
    ]
    bias = model.head_bias
    if bias is not None and not isfinite(bias):
        found.append(Complaint("model.head_bias", f"model.head_bias is {bias}", "it must be a number"))
    return found


def _checkpoint(run: Run, base: Path) -> list[Complaint]:
    try:
        content(base / run.model.checkpoint)
    except VitscaleError as error:
        return [Complaint("model.checkpoint", error.problems[0].message, error.problems[0].hint)]
    return []


def _probes(recipe: Recipe, base: Path) -> list[Complaint]:
    found: list[Complaint] = []
    names: set[str] = set()
    for name in recipe.probe:
        try:
            task = load_task(name, base=base)
        except VitscaleError as error:
            found += [Complaint("recipe.probe", p.message, p.hint, error.exit_code) for p in error.problems]
            continue
        few_shot = Transfer(task=name, shots=(PROBE_SHOTS,))
        found += [Complaint("recipe.probe", c.message, "leave it out") for c in check_transfer(few_shot, task)]
        if task.name in names:
            found.append(Complaint("recipe.probe", f"two probes are named '{task.name}'", "keep one of them"))
        names.add(task.name)
    return found


def _seeds(run: Run) -> list[Complaint]:
    seeds = {"seed": run.seed, "data.subset_seed": run.data.subset_seed}
    hint = f"it is a whole number from 0 to {LARGEST}"
    return [
        Complaint(key, f"{key} is {seed}", hint)
        for key, seed in seeds.items()
        if seed is not None and not 0 <= seed <= LARGEST
    ]


def _duration(recipe: Recipe) -> list[Complaint]:
    given = [key for key in DURATIONS if getattr(recipe, key) is not None]
    if len(given) == 1:
        return []
    if not given:
        hint = "give one of recipe.steps, recipe.epochs and recipe.examples"
        return [Complaint("recipe", "the run has no duration", hint)]
    keys = " and ".join(f"recipe.{key}" for key in given)
    return [Complaint(f"recipe.{given[1]}", f"{keys} are both given", "keep exactly one of them")]


def _subset(run: Run, base: Path) -> list[Complaint]:
    """Settings that contradict one another, and a list of exclusions that is none."""
    data = run.data
    found = []
    if run.recipe.keep == "best" and not (data.val_examples and run.recipe.validate_every):
        hint = "set data.val_examples and recipe.validate_every, or keep = 'last'"
        found.append(Complaint("recipe.keep", "keep = 'best' has no upstream validation to judge by", hint))
    if data.examples is not None and data.fraction is not None:
        message = "data.examples and data.fraction are both given"
        found.append(Complaint("data.fraction", message, "keep one of them"))
    return [*found, *_exclusions(data, base)]


def _counts(run: Run, base: Path) -> list[Complaint]:
    """What the data set, where it is at hand, has not enough of."""
    data, found = run.data, list[Complaint]()
    dataset = dataset_of(data, base=base, strict=False)
    if dataset is None:
        return found
    if available(dataset, data) < 1:
        message = f"data.val_examples is {data.val_examples:,} of {dataset.samples:,} images"
        found.append(Complaint("data.val_examples", message, "leave some to train on"))
    elif dataset.problems > data.max_bad * dataset.samples:
        message = f"{dataset.problems:,} of {dataset.samples:,} images of {dataset.name} cannot be trained on"
        hint = f"data.max_bad allows {data.max_bad:.2%}; vitscale data verify {data.shards} names them"
        found.append(Complaint("data.max_bad", message, hint))
    elif too_many := _too_many(dataset, run):
        found += too_many
    elif found_test := _test_set(data, dataset, base):
        found += found_test
    elif data.num_classes is not None and dataset.fingerprint and data.num_classes != dataset.num_classes:
        message = f"data.num_classes is {data.num_classes}, but {dataset.name} has {dataset.num_classes} classes"
        found.append(Complaint("data.num_classes", message, "leave it out: the data set says it"))
    return found


def _too_many(dataset: Dataset, run: Run) -> list[Complaint]:
    """More classes or images than there are."""
    data = run.data
    filled = sum(count > 0 for label, count in strata(dataset).items() if label != BAD)
    if data.classes is not None and data.classes > filled:
        message = f"data.classes is {data.classes:,}, but {filled:,} classes of {dataset.name} have images"
        return [Complaint("data.classes", message, "ask for fewer")]
    whole = selected(dataset, replace(data, examples=None), subset_seed(run))
    of = f" of {data.classes:,} classes" if data.classes is not None else ""
    if data.examples is not None and data.examples > whole.examples:
        message = f"data.examples is {data.examples:,}, but there are {whole.examples:,} training images{of}"
        return [Complaint("data.examples", message, "ask for fewer; images are never repeated in silence")]
    if not whole.examples:
        message = f"data.fraction = {data.fraction} leaves no training images{of}"
        return [Complaint("data.fraction", message, "ask for more")]
    if data.val_examples and not whole.validation:
        message = f"none of the {data.val_examples:,} validation images are{of}"
        return [Complaint("data.val_examples", message, "hold out more")]
    return []


def _exclusions(data: Data, base: Path) -> list[Complaint]:
    """What is wrong with a list of images to leave out."""
    if not data.exclude:
        return []
    try:
        found = exclusions.read(base / data.exclude)
        made_for = describe(data.shards, base=base).fingerprint if data.shards else None
    except VitscaleError as error:
        return [Complaint("data.exclude", error.problems[0].message, error.problems[0].hint)]
    if found.fingerprint not in (None, made_for):
        message = f"{data.exclude} was made for another data set than {data.shards or 'none'}"
        return [Complaint("data.exclude", message, "run vitscale data dedup on the data set that data.shards names")]
    return []


def _test_set(data: Data, dataset: Dataset, base: Path) -> list[Complaint]:
    """Labels of both sets are numbers: they must stand for the same classes."""
    if not data.test or not data.shards:
        return []
    try:
        test = describe(data.test, base=base)
    except VitscaleError:
        return []  # said when the study is planned
    hint = "data.test must hold the classes of data.shards, in their order"
    if test.num_classes != dataset.num_classes:
        message = f"{data.test} has {test.num_classes} classes and {data.shards} {dataset.num_classes}"
        return [Complaint("data.test", message, hint)]
    pairs = zip(class_names(data.shards, base=base), class_names(data.test, base=base), strict=False)
    for label, (one, other) in enumerate(pairs):
        if one == other:
            continue
        message = f"class {label} is '{one}' in {data.shards} and '{other}' in {data.test}"
        return [Complaint("data.test", message, hint)]
    return []


def check_steps(run: Run, *, base: Path) -> list[Complaint]:
    """What is wrong with the number of steps of a run that `check_run` has nothing against."""
    dataset = dataset_of(run.data, base=base, strict=False)
    if dataset is None:
        return []
    steps = total_steps(run.recipe, training_examples(dataset, run))
    if steps < 1:
        return [Complaint("recipe.epochs", "the run has no step", "train for longer")]
    if steps * run.recipe.batch_size > LARGEST:
        key = next(f"recipe.{key}" for key in DURATIONS if getattr(run.recipe, key) is not None)
        return [Complaint(key, f"{key} is {value_of(run, key):,}", f"a run sees at most {LARGEST:,} images")]
    warmup, cooldown = run.recipe.warmup_steps, round(run.recipe.cooldown * steps)
    if warmup < steps < warmup + cooldown:
        message = f"{warmup:,} steps of warm-up and {cooldown:,} of cool-down overlap in {steps:,} steps"
        return [Complaint("recipe.cooldown", message, "shorten one of them: the rate would fall in one step")]
    if warmup >= steps:
        message = f"recipe.warmup_steps is {warmup:,} and the run has {steps:,} steps: its peak rate is never reached"
        hint = f"a shorter warm-up, for example --set recipe.warmup_steps={steps // 10}, or a longer run"
        return [Complaint("recipe.warmup_steps", message, hint)]
    return []


def dataset_of(data: Data, *, base: Path, strict: bool) -> Dataset | None:
    """The data set of a run: read from its folder, else taken from `data.size` and `data.num_classes`.

    Raises:
        VitscaleError: `strict`, and neither is there (exit 5).
    """
    if data.shards:
        try:
            dataset = describe(data.shards, base=base)
            return dataset.without(exclusions.read(base / data.exclude)) if data.exclude else dataset
        except VitscaleError:
            if strict:
                raise
    if data.size is not None:
        return Dataset(
            name=Path(data.shards).name or "unknown",
            samples=data.size,
            num_classes=data.num_classes or 1000,
            fingerprint=None,
        )
    if strict:
        raise VitscaleError("the study names no data", hint="set data.shards", exit_code=5)
    return None


def check_size(name: str, numbers: Any, known: Sequence[str]) -> list[Complaint]:
    """A size of the study's own: width, depth, mlp, heads of a ViT, or blocks (channels, groups) of a ResNet."""
    where = f"sizes.{name}"
    if not isinstance(numbers, Mapping):
        return [Complaint(where, f"{where} is not a table", f"write [{where}]")]
    found = []
    for key, value in numbers.items():
        if key not in known:
            close = get_close_matches(key, known, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
            found.append(Complaint(f"{where}.{key}", f"unknown key '{where}.{key}'", hint))
        elif isinstance(value, list) != (key == "blocks") or not _positive(value):
            hint = "blocks is a list of whole numbers, the others are one each, all above 0"
            found.append(Complaint(f"{where}.{key}", f"{where}.{key} is {value!r}", hint))
    if "blocks" not in numbers:
        missing = [key for key in ("width", "depth", "mlp", "heads") if key not in numbers]
        if missing:
            hint = "a ViT's size has width, depth, mlp and heads; a ResNet's has blocks"
            found.append(Complaint(where, f"{where} lacks {', '.join(missing)}", hint))
    if not name.isalnum():
        found.append(Complaint(where, f"{where} is no name for a size", "letters and digits only"))
    elif "blocks" in numbers and not name.startswith("R"):
        found.append(Complaint(where, f"{where} is no name for a ResNet's size", f"begin it with R: R{name}"))
    return found


def _positive(value: Any) -> bool:
    each = value if isinstance(value, list) else [value]
    return bool(each) and all(isinstance(v, int) and not isinstance(v, bool) and 0 < v <= LARGEST for v in each)


def check_resolution(run: Run, transfer: Transfer, sizes: models.Sizes) -> list[Complaint]:
    """What makes a run's network impossible at the transfer's resolution."""
    arch = arch_of(run.model, sizes)
    if arch is None or transfer.resolution is None:
        return []
    return [
        Complaint("resolution", f"{run.model.name}: {problem}", "choose another transfer.resolution")
        for problem in arch.problems(transfer.resolution, trained_at=run.data.resolution)
    ]


def check_transfer(transfer: Transfer, task: Task) -> list[Complaint]:
    """What makes a transfer to a task impossible."""
    found = []
    smallest = task.smallest_class or task.train_examples // task.num_classes
    if transfer.protocol == "fewshot":
        bad = [shots for shots in transfer.shots if shots < 1 or shots > smallest]
        if bad or not transfer.shots:
            message = f"shots = {list(transfer.shots)} for task {task.name} whose smallest class has {smallest} images"
            found.append(Complaint("shots", message, f"from 1 to {smallest}"))
        return found
    if not transfer.lr or not all(0 < lr < inf for lr in transfer.lr):
        found.append(Complaint("lr", f"lr = {list(transfer.lr)}", "one or several rates above 0"))
    for key, least in (("steps", 1), ("batch_size", 1), ("seeds", 1), ("warmup_steps", 0)):
        value = getattr(transfer, key)
        found += [replace(each, key=key) for each in bounded(f"transfer.{key}", value, least)]
    if not 0 <= transfer.ema < 1:
        found.append(Complaint("ema", f"transfer.ema is {transfer.ema}", "it is a share from 0 to below 1"))
    return found
