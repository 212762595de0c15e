"""`vitscale`: the verbs, each in a file of its own."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import typer

from vitscale.cli import (
    bench,
    checkpoint,
    clean,
    data,
    fit,
    logs,
    ls,
    pretrain,
    report,
    results,
    show,
    status,
    suggest,
    sweep,
    transfer,
)
from vitscale.cli import plan as plan_verb
from vitscale.cli.screen import say
from vitscale.errors import BUG, DONE, USAGE, Problem

app = typer.Typer(
    name="vitscale",
    help="Which vision model should be pre-trained, on how much data, for how much compute?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(pretrain.pretrain)
app.command()(transfer.finetune)
app.command()(transfer.fewshot)
app.command()(sweep.sweep)
app.command()(plan_verb.plan)
app.command()(bench.bench)
app.command()(status.status)
app.command()(logs.logs)
app.command()(show.show)
app.command()(show.diff)
app.command()(results.results)
app.command()(fit.fit)
app.command()(suggest.suggest)
app.command()(report.report)
app.command()(clean.clean)
app.add_typer(data.app, name="data")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(ls.app, name="ls")


# Of click, which typer brings along in some releases and imports in others.
UsageError: type[Any] = typer.BadParameter.__bases__[0]


def main() -> None:
    """The entry point; an exception that is no `VitscaleError` is a bug and shows its traceback."""
    try:
        sys.exit(app(prog_name="vitscale", standalone_mode=False) or DONE)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            verb = error.ctx.command_path if error.ctx else "vitscale"
            say(str(Problem(error.format_message(), f"{verb} --help shows what it takes")))
        sys.exit(USAGE)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; nothing is wrong, and nothing can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception:
        traceback.print_exc()
        sys.exit(BUG)


if __name__ == "__main__":
    main()
