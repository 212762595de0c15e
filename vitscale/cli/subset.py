"""`vitscale data subset`: a part of a data set as shards of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitscale.cli.packed import images_or_bytes, report, shard_name
from vitscale.cli.screen import progress_of, reports_errors
from vitscale.errors import MISSING, USAGE, VitscaleError


@reports_errors
def subset_command(
    shards: Annotated[str, typer.Argument(help="A data set: a folder of shards, a brace pattern or a URL.")],
    out: Annotated[Path, typer.Argument(help="Folder for the new shards.")],
    examples: Annotated[int | None, typer.Option(min=1, help="How many images.")] = None,
    fraction: Annotated[float | None, typer.Option(min=0, max=1, help="Or which share of them.")] = None,
    classes: Annotated[int | None, typer.Option(min=2, help="Of how many classes; numbered anew.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="data.subset_seed: which images and classes.")] = 0,
    val_examples: Annotated[int, typer.Option(min=0, help="Leave out what data.val_examples holds out.")] = 0,
    exclude: Annotated[Path | None, typer.Option(help="A list of `vitscale data dedup`: leave these out.")] = None,
    size: Annotated[str, typer.Option("--shard-size", help="Images in a shard, or bytes: 500MB.")] = "10000",
    name: Annotated[str | None, typer.Option(help="Name of the set and its shards; else the folder's.")] = None,
    max_bad: Annotated[float, typer.Option(min=0, max=1, help="Largest share of unreadable images.")] = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write the images that a run with these settings trains on as shards of their own, in one pass over the set."""
    if examples is None and fraction is None and classes is None and exclude is None:
        what = "nothing says which part of the set"
        raise VitscaleError(what, hint="--examples, --fraction, --classes or --exclude", exit_code=USAGE)
    if fraction == 0:
        raise VitscaleError("--fraction is 0", hint="a share above 0, at most 1", exit_code=USAGE)
    if examples is not None and fraction is not None:
        raise VitscaleError("--examples and --fraction are both given", hint="keep one of them", exit_code=USAGE)
    samples, size_bytes = images_or_bytes(size)
    from vitscale import exclusions
    from vitscale.config import Data
    from vitscale.data.pack import Plan, pack
    from vitscale.data.reshard import part_of
    from vitscale.data.shards import open_shards
    from vitscale.data.subsets import split

    data = Data(examples=examples, fraction=fraction, classes=classes, val_examples=val_examples)
    left_out = exclusions.read(exclude) if exclude is not None else None
    with open_shards(shards) as whole:
        if left_out is not None and left_out.fingerprint not in (None, whole.fingerprint):
            what = f"{exclude} was made for another data set than {shards}"
            raise VitscaleError(what, hint="run vitscale data dedup on this one", exit_code=MISSING)
        part = split(whole.keys, whole.labels, data, num_classes=whole.num_classes, seed=seed, excluded=left_out)
        source = part_of(whole, part, shards)
        plan = Plan(
            name=shard_name(name or out.resolve().name),
            seed=seed,
            shard_samples=samples,
            shard_bytes=size_bytes,
            max_bad=max_bad,
        )
        with progress_of(f"writing {out}") as progress:
            packed = pack(source, out, plan, progress=progress)
    report([packed], as_json)
