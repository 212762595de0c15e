"""`vitscale clean`: frees checkpoints that nothing needs any more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vitscale.cli import options
from vitscale.cli.screen import print_json, print_table, reports_errors, say
from vitscale.errors import MISSING, VitscaleError


@reports_errors
def clean(
    runs: options.Runs = Path("runs"),
    milestones: Annotated[
        bool, typer.Option("--milestones", help="Also the checkpoints that --keep-every has kept.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Free them without asking.")] = False,
    json: options.Json = False,
) -> None:
    """Free the checkpoints of finished runs but the one that is transferred, after saying what and how much.

    Without a terminal to ask at, and without --yes, it only says it. Results, logs and stopped runs stay as they are.
    """
    from vitscale.launch.surplus import free, surplus

    if not runs.is_dir():
        hint = "run it where the study's folder of runs lies, or name that with --runs"
        raise VitscaleError(f"there is no folder {runs}", hint=hint, exit_code=MISSING)
    found = list(surplus(runs, milestones=milestones))
    total = sum(each.bytes for each in found)
    if json:
        rows = [{"folder": str(each.folder), "bytes": each.bytes, "why": each.why} for each in found]
        print_json({"bytes": total, "freed": yes, "checkpoints": rows})
    else:
        print_table([(str(each.folder), f"{each.bytes:,}", each.why) for each in found], ["checkpoint", "bytes", "why"])
    size = f"{total / 1e9:,.2f} GB" if total >= 1e8 else f"{total / 1e6:,.1f} MB"
    amount = f"{len(found)} checkpoint{'' if len(found) == 1 else 's'}, {size}"
    if not found:
        say(f"nothing to free in {runs}")
    elif yes or (sys.stdin.isatty() and not json and typer.confirm(f"free {amount}?", err=True)):
        for each in found:
            free(each)
        say(f"freed: {amount}")
    else:
        say(f"{amount} could be freed; --yes does it")
