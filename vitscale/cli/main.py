"""`vitscale`: the verbs, each in a file of its own."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any

import typer

from vitscale import __version__
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
from vitscale.cli.screen import Answer, say
from vitscale.errors import BUG, DONE, MISSING, USAGE, Problem

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


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"vitscale {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version and exit.")
    ] = False,
) -> None:
    del version  # its callback has done it


# Of click, which typer brings along in some releases and imports in others.
UsageError: type[Any] = typer.BadParameter.__bases__[0]


def main() -> None:
    """The entry point; an exception that is no `VitscaleError` is a bug and shows its traceback."""
    answer = Answer.on_stdout()
    try:
        code = app(prog_name="vitscale", standalone_mode=False) or DONE
    except UsageError as error:
        _tell_usage(error)
        sys.exit(USAGE)
    except (OSError, SystemExit) as error:  # typer makes a `SystemExit` of a pipe that is closed
        if answer.end() is None:
            if isinstance(error, SystemExit):
                raise
            traceback.print_exc()
            sys.exit(BUG)
        code = DONE
    except Exception:
        traceback.print_exc()
        sys.exit(BUG)
    sys.exit(code or _without_answer(answer.end()))


def _tell_usage(error: Any) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    verb = error.ctx.command_path if error.ctx else "vitscale"
    say(str(Problem(error.format_message(), f"{verb} --help shows what it takes")))


def _without_answer(lost: OSError | None) -> int:
    """The exit code where the answer is `lost`; None: it is not."""
    if lost is None or isinstance(lost, BrokenPipeError):
        return DONE  # its reader has seen enough, as `head` does
    say(str(Problem(f"standard output: {lost.strerror}", "make room there, or send the answer elsewhere")))
    return MISSING


if __name__ == "__main__":
    main()
