"""`vitscale ls`: what there is to choose from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from vitscale.cli import options
from vitscale.cli.screen import print_json, print_table, reports_errors
from vitscale.errors import USAGE, VitscaleError

app = typer.Typer(no_args_is_help=True, help="What there is to choose from: models.")


@app.callback()
def main() -> None:
    pass


@app.command()
@reports_errors
def models(
    classes: Annotated[int, typer.Option("--classes", min=1, help="Outputs of the head.")] = 1000,
    resolution: Annotated[int, typer.Option("--resolution", min=1, help="Side of the image, px.")] = 224,
    counting: options.CountingOption = "dense",
    json: options.Json = False,
) -> None:
    """The models of the literature that fit a resolution, and what one image costs without a pre-logits layer.

    Activations: what a training step in fp32 keeps of one image for the backward pass. --json has all of it by part.
    """
    from vitscale import models as known
    from vitscale.models.counts import Head

    head = Head(num_classes=classes)
    found: list[dict[str, Any]] = []
    for name in known.names():
        arch = known.parse(name)
        if arch is None or arch.problems(resolution):
            continue
        found.append(
            {
                "name": name,
                "family": arch.family,
                "params": (params := arch.params(resolution, head)).total,
                "macs": (macs := arch.macs(resolution, head, counting)).total,
                "tokens": arch.tokens(resolution),
                "params_by_part": asdict(params),
                "macs_by_part": asdict(macs),
                "activation_bytes": arch.activations(resolution, head).bytes(1),
                "activation_bytes_checkpointed": arch.activations(resolution, head, recompute=True).bytes(1),
            }
        )
    if not found:
        raise VitscaleError(
            f"no model of the literature fits images of {resolution} px",
            hint="take a multiple of 16 or 14; small images take own sizes and model.stem = 'small' in a study",
            exit_code=USAGE,
        )
    if json:
        print_json({"classes": classes, "resolution": resolution, "counting": counting, "models": found})
        return
    rows = [
        [
            m["name"],
            m["family"],
            f"{m['params']:,}",
            f"{m['macs'] / 1e6:,.1f}",
            str(m["tokens"]),
            f"{m['activation_bytes'] / 2**20:,.1f}",
        ]
        for m in found
    ]
    print_table(rows, ["model", "family", "params", "MMACs/image", "tokens", "activations, MiB/image"])
