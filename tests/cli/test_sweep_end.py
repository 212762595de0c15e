"""How `vitscale sweep` says that it has ended, and the way out."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer

from vitscale.cli.sweep import _tell
from vitscale.errors import RUN_FAILED
from vitscale.launch.sweep import Ended


@pytest.mark.parametrize(
    ("ends", "way_out"),
    [
        ({"unfinished": 2}, "nothing has failed, and the same command goes on from here"),
        ({"failed": 1, "unfinished": 2}, "--retry-failed tries failed runs again"),
        ({"unfinished": 2, "stuck": 2}, "--retry-failed tries failed runs again"),
    ],
)
def test_the_hint_is_of_what_has_happened(
    ends: dict[str, Any], way_out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Jobs that somebody has cancelled have not failed."""
    none = dict.fromkeys(("failed", "refused", "unfinished", "stuck", "beside"), 0)
    ended = Ended(**{"done": 4, "interrupted": False, **none, **ends})
    running = cast("Any", SimpleNamespace(refused={}, refused_code=0, overrides=()))
    with pytest.raises(typer.Exit) as caught:
        _tell(ended, running, Path("a.toml"), Path("results/a"), detached=False)
    assert caught.value.exit_code == RUN_FAILED
    assert capsys.readouterr().err.splitlines()[-1] == f"hint: vitscale status a.toml names the reasons; {way_out}"
