"""`vitscale data`: sources to shards, and a look at them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import typer

from vitscale.cli.dedup import dedup_command
from vitscale.cli.packed import images_and_classes, images_or_bytes, report, shard_name
from vitscale.cli.screen import print_json, progress_of, reports_errors, say
from vitscale.cli.subset import subset_command
from vitscale.errors import USAGE, VitscaleError
from vitscale.files import disk_errors, write_whole
from vitscale.wording import count

app = typer.Typer(help="Make, fetch and check folders of WebDataset shards.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Location = Annotated[str, typer.Argument(help="A folder of shards, one .tar, a pattern, a list, or the URL of one.")]


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
    samples, size = images_or_bytes(shard_size)
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
        name=shard_name(name or out.resolve().name),
        seed=seed,
        shard_samples=samples,
        shard_bytes=size,
        max_bad=max_bad,
    )
    with progress_of(f"packing {out}") as progress:
        packed = pack(found, out, plan, workers=workers, progress=progress)
    report([packed], as_json)


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
    with progress_of(f"packing {name}") as progress:
        packed = fetch(SETS[name], out, progress=progress, say=say)
    report(packed, as_json)


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

    with progress_of(f"drawing {out}") as progress:
        packed = fractals.write(
            out,
            classes=classes,
            per_class=per_class,
            resolution=resolution,
            seed=seed,
            workers=workers,
            name=shard_name(out.resolve().name),
            progress=progress,
        )
    report([packed], as_json)


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

    with progress_of(f"indexing {location}", "shards") as progress:
        folder = build(locate(location), again=again, progress=progress)
    facts = info(location)
    _say_problems(facts)
    if as_json:
        print_json({**facts, "index": str(folder)})
    else:
        print(f"{location}: {images_and_classes(facts)}, {count(facts['shards'], 'shard')}; index in {folder}")


@app.command("info")
@reports_errors
def info_command(
    location: Location,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet, images of 12 classes, to this PNG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a data set holds: images, classes, balance, sizes, bytes."""
    from vitscale.data.inspect import info

    facts = info(location)
    _say_problems(facts)
    if sheet is not None:
        _write_sheet(location, sheet)
    if as_json:
        print_json(facts)
        return
    few, many, effective = facts["smallest_class"], facts["largest_class"], facts["effective_classes"]
    print(f"{facts['name']}: {images_and_classes(facts)}")
    print(f"images a class: {few:,} to {many:,}; as varied as {effective:,.1f} classes of one size")
    print(f"image size: {_sizes(facts)}")
    print(f"stored: {facts['bytes'] / 1e6:,.1f} MB in {count(facts['shards'], 'shard')}")
    print(f"fingerprint: {facts['fingerprint']}")


def _sizes(facts: dict[str, Any]) -> str:
    """What is known, or else what a sample of the images shows: smallest, median and largest."""
    sampled, size = facts["sampled"], facts["image_size"]
    if not sampled["images"]:
        return f"{size[0]} x {size[1]} pixels" if size else "unknown: none could be read"
    formats = ", ".join(f"{share / sampled['images']:.0%} {name}" for name, share in sampled["formats"].items())
    kilobytes = f"{sampled['mean_bytes'] / 1e3:,.1f} KB each"
    if size:
        return f"{size[0]} x {size[1]} pixels, {formats}, {kilobytes}"
    sides = (f"{side} {_range(*sampled[side])}" for side in ("width", "height"))
    return f"{', '.join(sides)} pixels, {formats}, {kilobytes}; of {count(sampled['images'], 'image')} looked at"


def _range(low: int, median: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,} (median {median:,})"


def _write_sheet(location: str, path: Path) -> None:
    from vitscale.data.contact import contact_sheet
    from vitscale.data.shards import open_shards

    out = BytesIO()
    with open_shards(location) as shards:
        contact_sheet(shards).save(out, format="PNG")
    with disk_errors(path.resolve().parent):
        write_whole(path, out.getvalue())
    say(f"contact sheet: {path}")


@app.command("verify")
@reports_errors
def verify_command(location: Location, as_json: Json = False) -> None:
    """Read every byte of a data set: checksums, index, keys, labels and images."""
    from vitscale.data.inspect import verify

    with progress_of(f"verifying {location}") as progress:
        facts = verify(location, progress=progress)
    if as_json:
        print_json(facts)
    else:
        print(f"{location}: {count(facts['samples'], 'image')} in {count(facts['shards'], 'shard')}: all whole")


def _say_problems(facts: dict[str, Any]) -> None:
    """What of a set cannot be trained on, in a line each."""
    for shard, reason in facts["damaged"].items():
        say(f"warning: {shard}: {reason}; what came after it is lost")
    if facts["problems"]:
        first = facts["problems"][0]
        say(
            f"warning: {count(len(facts['problems']), 'sample')} of {facts['samples']:,} cannot be trained on, "
            f"the first being {first['key']!r}: {first['reason']}; vitscale data verify names all"
        )
    if suspect := facts["suspect"]:
        say(f"warning: {suspect['shard']}: sample {suspect['key']!r}: {suspect['reason']}")


app.command("subset")(subset_command)
app.command("dedup")(dedup_command)
