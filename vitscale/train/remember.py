"""What a machine was found to be capable of, kept between runs."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from vitscale.files import write_whole
from vitscale.locations import cache_folder


def recalled(file: str, key: str) -> Any:
    """What was remembered in this file under this key; None if nothing was, or it cannot be read."""
    with suppress(OSError, ValueError, AttributeError):
        return json.loads((cache_folder() / file).read_text()).get(key)
    return None


def remember(file: str, key: str, value: Any) -> None:
    """Keeps it, where the disk allows: it is a memory, and can be done without."""
    path = cache_folder() / file
    with suppress(OSError, ValueError):
        known = json.loads(path.read_text()) if path.exists() else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({**known, key: value}, indent=1).encode())
