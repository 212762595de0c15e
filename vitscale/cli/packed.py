"""What a pack did, in words, and what its options mean."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from vitscale.cli.screen import print_json, say
from vitscale.errors import USAGE, VitscaleError
from vitscale.wording import count

if TYPE_CHECKING:
    from vitscale.data.pack import Packed

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def report(packed: list[Packed], as_json: bool) -> None:
    for done in packed:
        for file, reason in done.bad:
            say(f"skipped {file}: {reason}")
    if as_json:
        print_json({"packed": [_facts(done) for done in packed]})
        return
    for done in packed:
        facts = _facts(done)
        if done.was_there:
            lost = count(len(done.mended), "lost shard")
            mended = f"; {lost} written again" if done.mended else ""
            print(f"{done.folder} is already there: {images_and_classes(facts)}{mended}")
            say("the source has the same names and labels; images that were edited in place go into another folder")
            continue
        went_on = f", went on from image {done.resumed_at:,}" if done.resumed_at else ""
        skipped = f", {count(len(done.bad), 'unreadable image')} skipped" if done.bad else ""
        what = f"{images_and_classes(facts)}, {count(facts['shards'], 'shard')}"
        print(f"{done.folder}: {what}, {facts['bytes'] / 1e6:,.1f} MB{went_on}{skipped}")


def images_and_classes(facts: dict[str, Any]) -> str:
    return f"{count(facts['samples'], 'image')}, {count(facts['num_classes'], 'class', 'classes')}"


def _facts(done: Packed) -> dict[str, Any]:
    keep = ("name", "samples", "num_classes", "bytes", "fingerprint")
    return {
        "folder": str(done.folder),
        **{key: done.description[key] for key in keep},
        "shards": len(done.description["shards"]),
        "was_there": done.was_there,
        "resumed_at": done.resumed_at,
        "mended": list(done.mended),
        "skipped": [{"file": file, "reason": reason} for file, reason in done.bad],
    }


def images_or_bytes(text: str) -> tuple[int, int | None]:
    """Images a shard, and bytes a shard or None, from `10000` or `500MB`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)(b?)", text.strip().lower())
    number = float(match[1]) * UNITS[match[2]] if match else 0
    if not match or number < 1:
        raise VitscaleError(f"--shard-size {text!r} is not understood", hint="10000 images, or 500MB", exit_code=USAGE)
    return (int(number), None) if not match[2] and not match[3] else (1, int(number))


def shard_name(name: str) -> str:
    """The name as it may stand in a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"
