"""`vitscale logs`: what a run has said, and goes on saying."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from vitscale.cli import options
from vitscale.cli.screen import reports_errors, say
from vitscale.cli.transfer import RunId, find

EVENTS = "events.jsonl"


@reports_errors
def logs(
    run: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended, or Ctrl-C.")] = False,
    runs: options.Runs = Path("runs"),
) -> None:
    """Print what RUN has logged, a line each (times in UTC), then what its processes have printed."""
    from vitscale.launch import folders

    folder = find(run, runs)
    files: dict[Path, Tail] = {}
    with suppress(KeyboardInterrupt):
        while True:
            ended = folders.result(folder) is not None and not folders.is_held(folder)
            for line in _news(folder, files):
                print(line, flush=True)
            if ended or not follow:
                break
            time.sleep(0.5)
    if not files:
        say(f"run {folder.name} has logged nothing yet")


def _news(folder: Path, files: dict[Path, Tail]) -> Iterator[str]:
    from vitscale.launch.progress import event_words

    for path in [*folder.glob(EVENTS), *sorted(folder.glob("log*.txt"))]:
        for line in files.setdefault(path, Tail(path)).lines():
            if path.name != EVENTS:
                yield line
                continue
            with suppress(ValueError, KeyError):  # a crash has cut it off
                event = json.loads(line)
                yield f"{event['time'][:19].replace('T', ' ')}  {event_words(event)}"


class Tail:
    """The whole lines that have been added to a file since the last look."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def lines(self) -> list[str]:
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(end)
        return whole.decode(errors="replace").split("\n") if end else []
