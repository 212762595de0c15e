"""`vitscale data`: sources to shards, and a look at them."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitscale.cli.screen import print_json, reports_errors, say
from vitscale.errors import USAGE, VitscaleError

if TYPE_CHECKING:
    from vitscale.data.pack import Packed

app = typer.Typer(help="Make, fetch and check folders of WebDataset shards.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Location = Annotated[str, typer.Argument(help="A folder of shards, one .tar, a pattern, a list, or the URL of one.")]
EVERY = 30.0  # seconds between two lines of progress where stderr is no terminal
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


@app.command("pack")
@reports_errors
def pack_command(
    source: Annotated[
        Path, typer.Argument(help="Class folders, IDX files, a CIFAR folder, or a CSV, TSV or Parquet table.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the shards; new, empty, or an interrupted pack of the same.")],
    kind: Annotated[str | None, typer.Option(help="folder, idx, cifar or table, where looking is not enough.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set and its shards; else the folder's.")] = None,
    split: Annotated[str, typer.Option(help="train or test, of IDX and CIFAR files.")] = "train",
    shard_size: Annotated[str, typer.Option(help="Images in a shard, or their bytes with a unit: 500MB.")] = "10000",
    seed: Annotated[int, typer.Option(help="Of the order in which images are written.")] = 0,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Largest share of unreadable images.")] = 0.01,
    image_column: Annotated[str | None, typer.Option(help="Column of a table with the images' paths.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of a table, or labels of CIFAR-100.")] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="How many, where labels are numbers.")] = None,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="Keep classes without images.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that read and encode; else one a core.")] = None,
    as_json: Json = False,
) -> None:
    """Write a source of images as shuffled shards. Run it again after an interruption: it goes on."""
    samples, size = _shard_size(shard_size)
    from vitscale.data.pack import Plan, pack
    from vitscale.data.sources import Options, open_source

    options = Options(
        split=split,
        image_column=image_column,
        label_column=label_column,
        num_classes=num_classes,
        allow_empty=allow_empty,
    )
    found = open_source(source, kind=kind, options=options)
    plan = Plan(
        name=_shard_name(name or out.resolve().name),
        seed=seed,
        shard_samples=samples,
        shard_bytes=size,
        max_bad=max_bad,
    )
    with _progress(f"packing {out}") as progress:
        packed = pack(found, out, plan, workers=workers, progress=progress)
    _report([packed], as_json)


@app.command("fetch")
@reports_errors
def fetch_command(
    name: Annotated[str, typer.Argument(help="fashion-mnist")],
    out: Annotated[Path, typer.Option(help="Folder that gets NAME-train and NAME-test.")] = Path("data"),
    as_json: Json = False,
) -> None:
    """Find a public data set on this machine, or download it, and pack it."""
    from vitscale.data.fetch import SETS, fetch

    if name not in SETS:
        raise VitscaleError(f"unknown data set {name!r}", hint=f"one of: {', '.join(SETS)}", exit_code=USAGE)
    with _progress(f"packing {name}") as progress:
        packed = fetch(SETS[name], out, progress=progress, say=say)
    _report(packed, as_json)


@app.command("fractals")
@reports_errors
def fractals_command(
    out: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    classes: Annotated[int, typer.Option(min=1, help="Iterated function systems.")] = 100,
    per_class: Annotated[int, typer.Option(min=1, help="Images of each.")] = 200,
    resolution: Annotated[int, typer.Option(min=8, max=1024, help="Side of an image in pixels.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the systems and their images.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; the images don't depend on it.")] = None,
    as_json: Json = False,
) -> None:
    """Draw a formula-driven pre-training set (FractalDB): no download needed."""
    from vitscale.data import fractals

    with _progress(f"drawing {out}") as progress:
        packed = fractals.write(
            out,
            classes=classes,
            per_class=per_class,
            resolution=resolution,
            seed=seed,
            workers=workers,
            name=_shard_name(out.resolve().name),
            progress=progress,
        )
    _report([packed], as_json)


@app.command("index")
@reports_errors
def index_command(
    location: Location,
    again: Annotated[
        bool, typer.Option("--again", help="Also where there is an index: the shards have changed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the index that shards from elsewhere lack, in one pass. Run it again after an interruption: it goes on."""
    from vitscale.data.indexing import build
    from vitscale.data.inspect import info
    from vitscale.locations import locate

    with _progress(f"indexing {location}", "shards") as progress:
        folder = build(locate(location), again=again, progress=progress)
    facts = info(location)
    _say_problems(facts)
    if as_json:
        print_json({**facts, "index": str(folder)})
    else:
        print(f"{location}: {_images_and_classes(facts)}, {_count(facts['shards'], 'shard')}; index in {folder}")


@app.command("info")
@reports_errors
def info_command(location: Location, as_json: Json = False) -> None:
    """Say what a data set holds."""
    from vitscale.data.inspect import info

    facts = info(location)
    _say_problems(facts)
    if as_json:
        print_json(facts)
        return
    size = facts["image_size"]
    print(f"{facts['name']}: {_images_and_classes(facts)}")
    print(f"images a class: {facts['smallest_class']:,} to {facts['largest_class']:,}")
    print(f"image size: {f'{size[0]} x {size[1]} pixels' if size else 'varies or unknown'}")
    print(f"stored: {facts['bytes'] / 1e6:,.1f} MB in {_count(facts['shards'], 'shard')}")
    print(f"fingerprint: {facts['fingerprint']}")


@app.command("verify")
@reports_errors
def verify_command(location: Location, as_json: Json = False) -> None:
    """Read every byte of a data set: checksums, index, keys, labels and images."""
    from vitscale.data.inspect import verify

    with _progress(f"verifying {location}") as progress:
        facts = verify(location, progress=progress)
    if as_json:
        print_json(facts)
    else:
        print(f"{location}: {_count(facts['samples'], 'image')} in {_count(facts['shards'], 'shard')}: all whole")


def _say_problems(facts: dict[str, Any]) -> None:
    """What of a set cannot be trained on, in a line each."""
    for shard, reason in facts["damaged"].items():
        say(f"warning: {shard}: {reason}; what came after it is lost")
    if facts["problems"]:
        first = facts["problems"][0]
        say(
            f"warning: {_count(len(facts['problems']), 'sample')} of {facts['samples']:,} cannot be trained on, "
            f"the first being {first['key']!r}: {first['reason']}; vitscale data verify names all"
        )


def _report(packed: list[Packed], as_json: bool) -> None:
    for done in packed:
        for file, reason in done.bad:
            say(f"skipped {file}: {reason}")
    if as_json:
        print_json({"packed": [_facts(done) for done in packed]})
        return
    for done in packed:
        facts = _facts(done)
        if done.was_there:
            lost = _count(len(done.mended), "lost shard")
            mended = f"; {lost} written again" if done.mended else ""
            print(f"{done.folder} is already there: {_images_and_classes(facts)}{mended}")
            say("the source has the same names and labels; images that were edited in place go into another folder")
            continue
        went_on = f", went on from image {done.resumed_at:,}" if done.resumed_at else ""
        skipped = f", {_count(len(done.bad), 'unreadable image')} skipped" if done.bad else ""
        what = f"{_images_and_classes(facts)}, {_count(facts['shards'], 'shard')}"
        print(f"{done.folder}: {what}, {facts['bytes'] / 1e6:,.1f} MB{went_on}{skipped}")


def _count(number: int, what: str, many: str = "") -> str:
    return f"{number:,} {what if number == 1 else many or what + 's'}"


def _images_and_classes(facts: dict[str, Any]) -> str:
    return f"{_count(facts['samples'], 'image')}, {_count(facts['num_classes'], 'class', 'classes')}"


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


def _shard_size(text: str) -> tuple[int, int | None]:
    """Images a shard, and bytes a shard or None, from `10000` or `500MB`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)(b?)", text.strip().lower())
    number = float(match[1]) * UNITS[match[2]] if match else 0
    if not match or number < 1:
        raise VitscaleError(f"--shard-size {text!r} is not understood", hint="10000 images, or 500MB", exit_code=USAGE)
    return (int(number), None) if not match[2] and not match[3] else (1, int(number))


def _shard_name(name: str) -> str:
    """The name as it may stand in a file name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"


@contextlib.contextmanager
def _progress(what: str, unit: str = "images") -> Iterator[Callable[[int, int], None]]:
    """A bar with a count on a terminal, a line every half minute elsewhere; both on stderr."""
    if not sys.stderr.isatty():
        yield _lines(what, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(what: str, unit: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            say(f"{what}: {done:,} of {total:,} {unit}")

    return line
