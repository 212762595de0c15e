"""The keys that a study may use, from the fields of `vitscale.config`, and values of their types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from vitscale.config import Data, Model, Recipe, Run, Transfer

SECTIONS: dict[str, type] = {"model": Model, "data": Data, "recipe": Recipe}


@cache
def types(section: type) -> dict[str, Any]:
    """Field name -> type of a section of the config."""
    return get_type_hints(section)


@cache
def run_keys() -> dict[str, Any]:
    """Dotted key -> type of all that an axis or `--set` may vary."""
    keys = {f"{name}.{key}": hint for name, section in SECTIONS.items() for key, hint in types(section).items()}
    return {**keys, "seed": int}


@cache
def _adapter(hint: Any) -> Any:
    return TypeAdapter(hint)


def convert(hint: Any, value: Any) -> Any:
    """`value` as TOML gave it, as the field's type; whole floats like 1e6 serve as integers, a single value as a list.

    Raises:
        ValueError: with what was expected.
    """
    if isinstance(value, float) and value.is_integer() and _wants_int(hint):
        value = int(value)
    if get_origin(hint) is tuple and not isinstance(value, list | tuple):
        value = [value]
    if get_origin(hint) is tuple:
        value = tuple(
            float(v) if isinstance(v, int) and "float" in str(hint) and not isinstance(v, bool) else v for v in value
        )
    for text in value if isinstance(value, tuple) else [value]:
        if isinstance(text, str) and (control := next((c for c in text if c < " " and c != "\t"), None)):
            raise ValueError(f"{text!r} holds {control!r}")  # which no path may hold, and no message in one line
    try:
        return _adapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].replace("Input should be ", "")
        raise ValueError(f"{value!r} is not {reason}") from None


def each_once(values: Iterable[Any]) -> tuple[Any, ...]:
    """Without the repetitions, in the order written: a value that is named twice is one, as on an axis."""
    return tuple(dict.fromkeys(values))


def _wants_int(hint: Any) -> bool:
    return hint is int or "int" in str(hint).split(" | ")


def build(values: Mapping[str, Any]) -> Run:
    """A run from dotted keys and converted values; what is not named keeps its default."""
    parts: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if name:
            parts[section][name] = value
    built = {name: SECTIONS[name](**part) for name, part in parts.items()}
    return Run(**built, seed=values.get("seed", 0))


def value_of(run: Run, key: str) -> Any:
    """The value of a dotted key of a run."""
    section, _, name = key.partition(".")
    return getattr(getattr(run, section), name) if name else getattr(run, section)


def from_dict(numbers: Mapping[str, Any]) -> Run:
    """The inverse of `dataclasses.asdict(run)`, also after a trip through JSON."""

    def part(section: type, values: Mapping[str, Any]) -> Any:
        known = types(section)
        return section(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known})

    transfer = numbers.get("transfer")
    return Run(
        **{name: part(section, numbers[name]) for name, section in SECTIONS.items()},
        seed=numbers["seed"],
        transfer=part(Transfer, transfer) if transfer else None,
    )
