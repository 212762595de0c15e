"""What the cluster wants to know: of the study, and else of the user's own configuration."""

from __future__ import annotations

from typing import Any

from vitscale.errors import VitscaleError
from vitscale.locations import config_file
from vitscale.study.launcher import Slurm, read
from vitscale.study.load import Study
from vitscale.study.mistakes import Mistakes
from vitscale.study.toml import parse


def settings_of(study: Study) -> Slurm:
    """Key by key.

    Raises:
        VitscaleError: the configuration has mistakes (exit 3, all of them).
    """
    return Slurm(**{**_configured(), **study.slurm})


def _configured() -> dict[str, Any]:
    path = config_file()
    if not path.is_file():
        return {}
    document, lines = parse(path)
    mistakes = Mistakes(path, lines)
    for key in document:
        if key != "launcher":
            mistakes.unknown(key, key, ["launcher.slurm"])
    found = read(document.get("launcher", {}), mistakes)
    if mistakes.problems:
        raise VitscaleError.of(mistakes.problems, exit_code=mistakes.exit_code)
    return found
