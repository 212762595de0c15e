"""What the cluster wants to know: of the study, and else of the user's own configuration."""

from __future__ import annotations

from typing import Any

from vitscale.errors import INVALID_STUDY, VitscaleError
from vitscale.locations import config_file
from vitscale.study.launcher import Slurm, read, too_short
from vitscale.study.load import Study
from vitscale.study.mistakes import Mistakes
from vitscale.study.toml import parse


def settings_of(study: Study) -> Slurm:
    """Key by key.

    Raises:
        VitscaleError: the configuration has mistakes (exit 3, all of them), or the two do not go together (exit 3).
    """
    found = Slurm(**{**_configured(), **study.slurm})
    if problem := too_short(found.time, found.signal):
        raise VitscaleError(problem[0], hint=problem[1], exit_code=INVALID_STUDY)
    return found


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
