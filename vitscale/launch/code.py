"""Which code has trained a run: `run.json` has that of the newest attempt, and keeps what had a part before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Told = Mapping[str, Any]


def history(now: Told, before: Told | None, saved: int, trunk: tuple[Told, int] | None) -> dict[str, Any]:
    """`trained_by`, the code of all that was saved before `now` came to the run, and `saved_before`, how far that was.

    `before`: `run.json` as it is, of a run whose newest checkpoint is of step `saved`. `trunk`: of one that has none
    the same of what it starts from.
    """
    if before is None:
        return {"trained_by": trained_by(*trunk) if trunk else [], "saved_before": 0}
    if before["provenance"]["code_hash"] == now["code_hash"]:
        return {key: before.get(key, default) for key, default in (("trained_by", []), ("saved_before", 0))}
    return {"trained_by": trained_by(before, saved), "saved_before": saved}


def trained_by(told: Told, saved: int) -> list[Told]:
    """Provenance of all code that had a part in a run's checkpoints, up to step `saved`."""
    newest = [told["provenance"]] if saved > told.get("saved_before", 0) else []
    return list({each["code_hash"]: each for each in [*told.get("trained_by", []), *newest]}.values())


def earlier(told: Told) -> list[Told]:
    """Provenance of other code than the newest attempt's that had a part in a run, by `run.json` or an outcome."""
    newest = told["provenance"]["code_hash"]
    return [each for each in told.get("trained_by", []) if each["code_hash"] != newest]
