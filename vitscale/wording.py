"""Words that messages of every layer share."""

from __future__ import annotations


def count(number: int, thing: str, many: str = "") -> str:
    """`1 image`, `2,000 images`, `3 classes`: `many` where an s does not make the plural."""
    return f"{number:,} {thing if number == 1 else many or thing + 's'}"
