"""What a run is, from its `run.json`: its settings, how it differs from another, the command that makes it again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from vitscale import models
from vitscale.config import Model, Run, Task, Transfer
from vitscale.study.archs import TRANSFORMER, arch_of
from vitscale.study.datasets import Dataset
from vitscale.study.fields import from_dict
from vitscale.study.identity import Origin, origin_id, transfer_id, trunk_id
from vitscale.study.job import Job
from vitscale.study.sharing import LENGTHS

Document = Mapping[str, Any]
PATHS = ("data.shards", "data.test", "data.exclude", "model.checkpoint")
"""Settings that say where something lies; where it is now, the machine's part of `run.json` says."""
BY_OPTION = ("task", "protocol", "init", "resolution", "shots", "lr", "steps", "batch_size")
"""Settings of a transfer that `vitscale finetune` and `fewshot` have options for, or have no choice in."""
TOLD = ("seed", "recipe.lr", "data.examples", "data.shards", *LENGTHS)
ONLY_BY_STUDY = "no single command makes this run again; `vitscale sweep STUDY --only {id}` does"


def with_settings(label: str, job: Job) -> str:
    """A model's label, and what varies in the study beside what is told of every run: data, length, seed and rate."""
    others = {key: value for key, value in job.varied.items() if key not in TOLD and not key.startswith("model.")}
    words = ", ".join(f"{key.partition('.')[2]} {value}" for key, value in others.items())
    return f"{label}, {words}" if words and job.run.transfer is None else label


def variant(job: Job) -> str:
    """What tells a transfer from others of its task and protocol, as `vitscale results` says it; else empty."""
    told = {key: value for key, value in job.varied.items() if key.startswith("transfer.") and value is not None}
    return ", ".join(f"{key.partition('.')[2]}={json.dumps(value).strip(chr(34))}" for key, value in told.items())


def settings(told: Document) -> dict[str, Any]:
    """Dotted keys of what differs from the defaults, but for paths."""
    run = from_dict(told["config"])
    default = asdict(Run(transfer=Transfer() if run.transfer else None))
    found = dict(_flat({key: asdict(run)[key] for key in default}))
    plain = dict(_flat(default))
    return {key: value for key, value in found.items() if value != plain[key] and key not in PATHS}


def identity(told: Document) -> dict[str, Any]:
    """Dotted keys of all that a run is: settings, architecture by its numbers, data and task by their fingerprints."""
    parts: dict[str, Any] = {**asdict(from_dict(told["config"])), "arch": told["arch"], "task": told.get("task")}
    for name in ("dataset", "test"):
        if told.get(name):
            parts[name] = {key: told[name].get(key) for key in ("name", "fingerprint", "samples", "exclusions")}
    found = dict(_flat({**parts, "steps": told["steps"], "kind": told["kind"], "checkpoint": told.get("checkpoint")}))
    return {key: value for key, value in found.items() if key not in PATHS}


def is_called(told: Document, name: str) -> bool:
    """Whether a run's id is that name; of a trunk, the one that runs have in common.

    Raises:
        KeyError, TypeError, ValueError: it is no whole `run.json`.
    """
    run = from_dict(told["config"])
    test = Dataset.from_facts(told["test"]) if told["test"] else None
    dataset, checkpoint = Dataset.from_facts(told["dataset"]), told.get("checkpoint")
    origin = Origin(run=run, arch=models.from_dict(told["arch"]), dataset=dataset, test=test, checkpoint=checkpoint)
    if run.transfer is not None:
        return transfer_id(origin, run.transfer, Task(**told["task"])) == name
    return origin_id(origin) == name or (checkpoint is None and trunk_id(origin) == name)


def differences(one: Document, other: Document) -> list[tuple[str, Any, Any]]:
    """(key, of one, of the other) of all in which they differ; None where one has no such setting."""
    return compared(identity(one), identity(other))


def compared(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """As `differences`, of two identities."""
    keys = dict.fromkeys([*ours, *theirs])
    found = {key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)}
    if found.get("recipe.steps") == found.get("steps"):  # once is enough
        found.pop("steps", None)
    return [(key, *values) for key, values in found.items()]


def apart(identities: Iterable[Mapping[str, Any]]) -> list[str]:
    """The settings in which any of these runs differ, by their identities. The model's name, which is told of each
    run, stands for its numbers where it differs."""
    found: dict[str, set[str]] = {}
    for each in identities:
        for key, value in each.items():
            found.setdefault(key, set()).add(json.dumps(value))
    keys = [key for key, values in found.items() if len(values) > 1]
    named = "model.name" in keys
    once = [key for key in keys if key != "model.name" and not (named and key.startswith(("arch.", "model.")))]
    return [key for key in once if key != "steps" or not {"recipe.steps", "recipe.epochs", "recipe.examples"} & {*once}]


def command(told: Document) -> str | None:
    """The command that makes the run again; None where there is none but its study's sweep."""
    if told.get("branches"):  # a trunk is no run of its own
        return None
    words = {"pretrain": _pretrain, "import": _import, "transfer": _transfer}[told["kind"]](told)
    return None if words is None else shlex.join(["vitscale", *words])


def _pretrain(told: Document) -> list[str] | None:
    run, machine = from_dict(told["config"]), told["machine"]
    model = _without_own_sizes(run.model, told)
    if model is None:
        return None
    given = settings({**told, "config": asdict(replace(run, model=model))})
    given.pop("model.name", None)
    paths = {"data.test": machine["test"], "data.exclude": machine["exclude"]}
    chosen = {**given, **{key: path for key, path in paths.items() if path}}
    sets = [word for key, value in chosen.items() for word in ("--set", f"{key}={_toml(value)}")]
    return ["pretrain", "--model", model.name, "--data", machine["shards"], *sets]


def _without_own_sizes(model: Model, told: Document) -> Model | None:
    """The same architecture under a name of the literature, its numbers given one by one; None where that cannot be."""
    arch = models.from_dict(told["arch"])
    if arch_of(model, {}) == arch:
        return model
    transformer = getattr(arch, "vit", arch)
    numbers = {key: getattr(transformer, key) for key in TRANSFORMER[:4] if hasattr(transformer, key)}
    if len(numbers) < 4:
        return None
    spelt = replace(model, name=re.sub(r"ViT-\w+", "ViT-Ti", model.name), **numbers)
    return spelt if arch_of(spelt, {}) == arch else None


def _import(told: Document) -> list[str]:
    return ["checkpoint", "import", told["machine"]["checkpoint"], "--model", told["config"]["model"]["name"]]


def _transfer(told: Document) -> list[str] | None:
    transfer = from_dict(told["config"]).transfer
    assert transfer is not None, "run.json of a transfer has one"
    plain = all(getattr(transfer, f.name) == f.default for f in fields(Transfer) if f.name not in BY_OPTION)
    if not plain or transfer.init != "pretrained":
        return None
    words = ["--task", transfer.task]
    if transfer.resolution:
        words += ["--resolution", str(transfer.resolution)]
    if transfer.protocol == "fewshot":
        return ["fewshot", told["parent"], *words, *(w for n in transfer.shots for w in ("--shots", str(n)))]
    words += [w for rate in transfer.lr for w in ("--lr", repr(rate))]
    return [
        "finetune",
        told["parent"],
        *words,
        "--steps",
        str(transfer.steps),
        "--batch-size",
        str(transfer.batch_size),
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str) else repr(value)
