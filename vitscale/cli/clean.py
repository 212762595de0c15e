"""`vitscale clean`: frees checkpoints that nothing needs any more."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitscale.cli import options
from vitscale.cli.screen import print_json, print_table, reports_errors, say
from vitscale.errors import MISSING, VitscaleError
from vitscale.wording import count

if TYPE_CHECKING:
    from vitscale.launch.surplus import Surplus


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
    if json:
        rows = [{"folder": str(each.folder), "bytes": each.bytes, "why": each.why} for each in found]
        print_json({"bytes": sum(each.bytes for each in found), "freed": yes, "checkpoints": rows})
    else:
        print_table([(str(each.folder), f"{each.bytes:,}", each.why) for each in found], ["checkpoint", "bytes", "why"])
    if not found:
        say(f"nothing to free in {runs}")
    elif yes or (sys.stdin.isatty() and not json and typer.confirm(f"free {_amount(found)}?", err=True)):
        # Meanwhile a sweep may have begun that needs some of it.
        still = {each.folder for each in surplus(runs, milestones=milestones)}
        freed, refused = [], []
        for each in (each for each in found if each.folder in still):
            try:
                free(each)
                freed.append(each)
            except VitscaleError as error:  # another user's folder, or one on a read-only mount
                refused.append(error)
        say(f"freed: {_amount(freed)}")
        if refused:
            raise _kept(refused)
    else:
        say(f"{_amount(found)} could be freed; --yes does it")


def _kept(refused: Sequence[VitscaleError]) -> VitscaleError:
    more = f"; so do {len(refused) - 1} more" if len(refused) > 1 else ""
    return VitscaleError(
        f"{refused[0].problems[0].message}{more}",
        hint="what is said to be freed is; the rest is for whoever may write there",
        exit_code=MISSING,
    )


def _amount(found: Sequence[Surplus]) -> str:
    total = sum(each.bytes for each in found)
    size = f"{total / 1e9:,.2f} GB" if total >= 1e8 else f"{total / 1e6:,.1f} MB"
    return f"{count(len(found), 'checkpoint')}, {size}"
