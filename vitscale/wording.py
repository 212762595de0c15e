"""Words that messages of every layer share."""

from __future__ import annotations

NOT_HELD = "not in the study: edited since, swept with --set, or another one of the same name"
"""What a run is that a study's results hold, and the study does not."""


def count(number: int, thing: str, many: str = "") -> str:
    """`1 image`, `2,000 images`, `3 classes`: `many` where an s does not make the plural."""
    return f"{number:,} {thing if number == 1 else many or thing + 's'}"
