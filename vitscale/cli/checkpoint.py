"""`vitscale checkpoint`: published weights in, a run's weights out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vitscale.cli import options
from vitscale.cli.pretrain import SINGLE, run_one
from vitscale.cli.screen import reports_errors, say
from vitscale.cli.transfer import RunId, find
from vitscale.errors import USAGE, Problem, VitscaleError

app = typer.Typer(help="Take published weights in, give a run's weights out.", no_args_is_help=True)


class Format(StrEnum):
    npz = "npz"
    timm = "timm"
    hf = "hf"
    safetensors = "safetensors"


@app.command("import")
@reports_errors
def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An .npz, .safetensors or .pth file.")],
    model: Annotated[str, typer.Option("--model", help="Its model, by the literature's name, e.g. R26+ViT-S/32.")],
    resolution: Annotated[int, typer.Option("--resolution", min=1, help="Where it was trained, px.")] = 224,
    settings: options.Settings = None,
    runs: options.Runs = Path("runs"),
    results: options.Results = Path("results"),
) -> None:
    """Make a run of a published checkpoint, for `finetune`, `fewshot` and `export`, and print its id.

    The layout is recognised: JAX's .npz (ViT, hybrid, BiT), a state dict of timm's, or what `export` wrote.

    timm's hybrids and BiT want --set model.weight_standardization=timm, its hybrids --set model.group_norm_eps=1e-5
    too.
    """
    from vitscale.study import fields
    from vitscale.study.check import check_run
    from vitscale.study.load import Study, read_settings
    from vitscale.study.plan import plan
    from vitscale.study.published import content
    from vitscale.study.select import Cell

    given = {
        **read_settings(settings or []),
        "model.name": model,
        "model.checkpoint": str(file),
        "data.resolution": resolution,
    }
    content(file)
    run = fields.build(given)
    if complaints := check_run(run, sizes={}, base=Path()):
        problems = [Problem(complaint.message, complaint.hint) for complaint in complaints]
        raise VitscaleError.of(problems, exit_code=USAGE)
    cell = Cell(values=given, run=run, varied={"model.checkpoint": str(file)})
    study = Study(name=SINGLE, title=model, base=Path(), sizes={}, cells=(cell,), transfers=(), select=None)
    run_one(plan(study, {}).jobs[0], runs, results, options.machine(1, None, most=1))


@app.command("export")
@reports_errors
def export_command(
    run: RunId,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; of hf, a folder.")],
    to: Annotated[Format, typer.Option("--format", help="JAX's .npz, timm's or Hugging Face's names, or our own.")],
    runs: options.Runs = Path("runs"),
) -> None:
    """Write the weights that RUN kept in a format that others read.

    timm and safetensors are .safetensors files: the first with timm's names, the second with ours.
    """
    folder = find(run, runs)
    suffix = {Format.npz: ".npz", Format.hf: ""}.get(to, ".safetensors")
    if suffix and out.suffix != suffix:
        raise VitscaleError(
            f"{out} would not be read as what it is", hint=f"name it {out.with_suffix(suffix)}", exit_code=USAGE
        )
    if out.exists():
        raise VitscaleError(f"{out} is there already", hint="name another file, or remove that one", exit_code=USAGE)

    from vitscale.models import convert
    from vitscale.train.pretrain import trained_net
    from vitscale.train.rundir import RunDir

    rundir = RunDir(folder)
    if rundir.document["kind"] == "transfer":
        raise VitscaleError(
            f"{folder.name} is a transfer, whose weights are not kept", hint="name a pre-training run", exit_code=USAGE
        )
    state = trained_net(rundir).state_dict()
    if rundir.head.patches:
        say(f"note: {folder.name} has predicted patches, not classes: its mask token is left out, and its head is zero")
    if to is Format.hf:
        convert.to_hf(state, rundir.arch, out)
    elif to is Format.npz:
        convert.write_npz(out, convert.to_npz(state, rundir.arch))
    else:
        convert.write_safetensors(out, convert.to_timm(state, rundir.arch) if to is Format.timm else state)
    print(out)
