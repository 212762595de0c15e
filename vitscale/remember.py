"""What a machine was found to be capable of, and what took long to make, kept between runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitscale.errors import VitscaleError
from vitscale.files import locked, write_whole
from vitscale.locations import cache_folder


def recalled(file: str, key: str) -> Any:
    """What was remembered in this file under this key; None if nothing was, or it cannot be read."""
    return _known(cache_folder() / file).get(key)


def all_recalled(file: str) -> dict[str, Any]:
    """All that was remembered in this file, for those who ask for many keys of it."""
    return _known(cache_folder() / file)


def remember(file: str, key: str, value: Any) -> None:
    """Keeps it, where the disk allows: it is a memory, and can be done without."""
    path = cache_folder() / file
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{file}.lock"), wait=True):
            write_whole(path, json.dumps({**_known(path), key: value}, indent=1).encode())


def made_once(name: str, make: Callable[[], str]) -> str:
    """The text that `make` gives; kept under `name`, which says what it depends on, where the disk allows."""
    with suppress(OSError, UnicodeError, VitscaleError):
        return (cache_folder() / name).read_text("utf-8")
    text = make()
    with suppress(OSError, VitscaleError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_whole(cache_folder() / name, text.encode())
    return text


def _known(path: Path) -> dict[str, Any]:
    """What is remembered; what cannot be read is not."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    return {}
