"""`vitscale data dedup`: training images that are nearly test images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitscale.cli.screen import print_json, progress_of, reports_errors, say
from vitscale.errors import MISSING, USAGE, VitscaleError
from vitscale.exclusions import SCHEMA
from vitscale.files import disk_errors, write_whole
from vitscale.wording import count

if TYPE_CHECKING:
    from vitscale.data.dedup import Match, Pictures
    from vitscale.data.shards import Shards

SHOWN = 5


@reports_errors
def dedup_command(
    train: Annotated[str, typer.Argument(help="The pre-training set: a folder of shards, a brace pattern or a URL.")],
    against: Annotated[
        list[str], typer.Option(help="A downstream task, by name or file, or shards of test images. Repeatable.")
    ],
    out: Annotated[Path, typer.Option(help="The list to write, for data.exclude.")] = Path("exclude.json"),
    max_distance: Annotated[int, typer.Option(min=0, max=64, help="Bits of 64 in which two hashes may differ.")] = 10,
    min_correlation: Annotated[float, typer.Option(min=0, max=1, help="Of the two images at 32 x 32.")] = 0.99,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Find near-duplicates of test images in a pre-training set, and list them for data.exclude."""
    from vitscale.data.dedup import HashedImages, ShardPictures, near_duplicates
    from vitscale.data.shards import open_shards

    if out.is_dir():
        raise VitscaleError(f"{out} is a folder", hint="--out names the list's file", exit_code=USAGE)
    if not out.resolve().parent.is_dir():
        what = f"{out.resolve().parent}: no such folder"
        raise VitscaleError(what, hint="make it, or name a file elsewhere with --out", exit_code=MISSING)
    with open_shards(train) as shards:
        sets = {name: _test_images(name) for name in against}
        with progress_of("hashing test images") as progress:
            hashed = HashedImages.of(list(sets.values()), progress)
        with progress_of(f"searching {train}") as progress:
            found = near_duplicates(
                ShardPictures(shards),
                hashed,
                max_distance=max_distance,
                min_correlation=min_correlation,
                progress=progress,
            )
        document = _document(shards, sets, found, {"max_distance": max_distance, "min_correlation": min_correlation})
    with disk_errors(out.resolve().parent):
        write_whole(out, (json.dumps(document, indent=1) + "\n").encode())
    _report(document, out, as_json)


def _test_images(name: str) -> Pictures:
    """Of a task its test split; of shards all images."""
    from vitscale.data import downstream
    from vitscale.data.dedup import ShardPictures
    from vitscale.data.shards import open_shards
    from vitscale.study.datasets import load_task, task_names

    if name in task_names() or name.endswith(".toml"):
        return downstream.test_pictures(load_task(name, base=Path()))
    return ShardPictures(open_shards(name))


def _document(
    shards: Shards, sets: dict[str, Pictures], found: list[Match], method: dict[str, float]
) -> dict[str, Any]:
    """The list: what is excluded, and of which test image each is a copy."""
    names = [f"{name} {i}" for name, pictures in sets.items() for i in range(len(pictures))]
    return {
        "schema": SCHEMA,
        "fingerprint": shards.fingerprint,
        "images": len(shards),
        "against": {name: len(pictures) for name, pictures in sets.items()},
        "method": {"hash": "pHash, 64 bits, mirrored too", **method},
        "excluded": [
            {
                "key": str(shards.keys[match.image]),
                "label": int(shards.labels[match.image]),
                "of": names[match.of],
                "distance": match.distance,
                "correlation": round(match.correlation, 4),
            }
            for match in found
            if shards.labels[match.image] >= 0
        ],
    }


def _report(document: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        print_json({key: value for key, value in document.items() if key != "schema"} | {"list": str(out)})
        return
    excluded = document["excluded"]
    tests = count(sum(document["against"].values()), "test image")
    near = "is a near-duplicate" if len(excluded) == 1 else "are near-duplicates"
    print(f"{len(excluded):,} of {count(document['images'], 'training image')} {near} of {tests}: {out}")
    for entry in excluded[:SHOWN]:
        say(f"{entry['key']}: {entry['of']}, {entry['distance']} bits apart, correlation {entry['correlation']}")
    if len(excluded) > SHOWN:
        say(f"and {len(excluded) - SHOWN:,} more")
    if excluded:
        say(f'leave them out: data.exclude = "{out}"')
