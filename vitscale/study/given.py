"""What a study's tables and `--set` give: values by dotted key, as the fields' types, and what is wrong with them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from vitscale.study import fields
from vitscale.study.mistakes import OPTION, Mistakes


def setting(text: str, mistakes: Mistakes) -> dict[str, Any]:
    """One `key=value` of the command line; the value is TOML, or a text without its quotes."""
    key, equals, value = text.partition("=")
    if not equals:
        mistakes.add(OPTION, f"{text} is not of the form key=value", "for example --set recipe.lr=3e-4")
        return {}
    try:
        parsed = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value
    return converted({key.strip(): parsed}, mistakes, lambda key: f"{OPTION} {key}")


def converted(given: Mapping[str, Any], mistakes: Mistakes, where: Any) -> dict[str, Any]:
    """The values as their fields\' types; `where` names the place of a key, for what is said of it."""
    known = fields.run_keys()
    good = {}
    for key, value in given.items():
        if key not in known:
            mistakes.unknown(where(key), key, list(known))
            continue
        try:
            good[key] = fields.convert(known[key], value)
        except ValueError as error:
            mistakes.add(where(key), f"{key}: {error}", f"'{key}' takes {plain(known[key])}")
    return good


def plain(hint: Any) -> str:
    """A field's type in words."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (UnionType, Union):  # settings that may be left out; TOML has no word for None
        return " or ".join(plain(part) for part in get_args(hint) if part is not NoneType)
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, by dotted key."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return found
