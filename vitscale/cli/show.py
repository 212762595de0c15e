"""`vitscale show` and `vitscale diff`: what a run is, what it gave, and how two differ."""

from __future__ import annotations

from json import loads
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from vitscale.cli import options
from vitscale.cli.screen import print_json, print_table, reports_errors, say
from vitscale.cli.transfer import RunId, find

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MEASURE = ("task", "protocol", "metric", "shots")


@reports_errors
def show(
    run: RunId,
    runs: options.Runs = Path("runs"),
    results: options.Results = Path("results"),
    json: options.Json = False,
) -> None:
    """Say what RUN is and gave: its settings, cost, provenance and results, and the command that makes it again.

    Where its settings were chosen: from which, and how each of these did on validation images.
    """
    from vitscale.launch import folders
    from vitscale.study import describe

    folder = find(run, runs)
    told, outcome, studies = folders.document(folder), folders.result(folder), _studies(results, folder.name)
    again = _again(told, folder.parent)
    facts = {"id": told["id"], "kind": told["kind"], "state": folders.state(folder), "folder": str(folder)}
    parts = {
        "run": {**facts, **({"parent": told["parent"]} if told["parent"] else {})},
        "settings": describe.settings(told),
        "data": _data(told),
        "machine": {key: value for key, value in told["machine"].items() if value not in (None, "", False)},
        "provenance": _provenance(told["provenance"]),
        "trained before by": _earlier(told, outcome),
        "outcome": _outcome(outcome),
    }
    if json:
        rows = (outcome or {}).get("rows", [])
        print_json(
            {
                **parts,
                "studies": studies,
                "rows": rows,
                "git_diff": told["provenance"].get("git_diff"),
                "command": again,
            }
        )
        return
    rows = [(part, key, _short(value)) for part, facts in parts.items() for key, value in facts.items()]
    rows += [line for study in studies for line in _choice(study)]
    print_table(rows, ["of", "name", "value"])
    if outcome and outcome["rows"]:
        print_table(_measured(outcome["rows"]), [*MEASURE, "mean", "sd", "draws"])
    if again:
        print(again)
    else:
        say(f"hint: {describe.ONLY_BY_STUDY.format(id=told['id'])}")


@reports_errors
def diff(one: RunId, other: RunId, runs: options.Runs = Path("runs"), json: options.Json = False) -> None:
    """Say which settings of two runs differ; where none do, they are one run."""
    from vitscale.launch import folders
    from vitscale.study import describe

    places = [find(run, runs) for run in (one, other)]
    for place in places:
        if (wrong := folders.check(place)) is not None:
            raise wrong
    documents = [folders.document(place) for place in places]
    found = describe.differences(*documents)
    ids = [told["id"] for told in documents]
    if json:
        print_json({"runs": ids, "differences": [{"key": k, ids[0]: a, ids[1]: b} for k, a, b in found]})
        return
    if found:
        print_table([(key, _short(a), _short(b)) for key, a, b in found], ["setting", *ids])
    else:
        say(f"{ids[0]} and {ids[1]} differ in nothing that makes a run")


def _again(told: Mapping[str, Any], runs: Path) -> str | None:
    """The command that makes the run again, behind that of what it starts from; None where one of them is lacking."""
    from vitscale.launch import folders
    from vitscale.study import describe

    own = describe.command(told)
    if own is None or not told["parent"] or not (runs / told["parent"] / "run.json").is_file():
        return own
    before = describe.command(folders.document(runs / told["parent"]))
    return None if before is None else f"{before} && {own}"


def _data(told: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: told[name] for name in ("dataset", "test") if told[name]}
    return {
        f"{name}.{key}": described[key]
        for name, described in found.items()
        for key in ("name", "samples", "num_classes", "fingerprint")
    }


def _outcome(outcome: Mapping[str, Any] | None) -> dict[str, Any]:
    if outcome is None:
        return {}
    wanted = ("status", "reason", "hint", "attempt", "started", "ended", "device", "n_devices", "checkpoint")
    found = {key: outcome[key] for key in wanted if outcome.get(key) is not None}
    first: Mapping[str, Any] = next(iter(outcome["rows"]), {})
    costs = ("flops_segment", "flops_tuning", "flops_eval", "flops_lost", "device_seconds", "mfu")
    return {**found, **{key: first[key] for key in costs if first.get(key) is not None}}


def _provenance(facts: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in facts.items() if key not in ("git_diff", "versions")}
    return {**plain, "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items())}


def _earlier(told: Mapping[str, Any], outcome: Mapping[str, Any] | None) -> dict[str, str]:
    """Other code that had a part in what the run has come to."""
    from vitscale.launch import code

    of = outcome if outcome and outcome.get("provenance") else told
    return {
        f"code {each['code_hash'][:12]}": f"commit {each['git_commit']}{', with changes' if each['git_dirty'] else ''}"
        for each in code.earlier(of)
    }


def _studies(results: Path, run_id: str) -> list[dict[str, Any]]:
    """Each study that has recorded the run: as what, and how its settings were chosen there."""
    from vitscale.analysis.measured import at_edge
    from vitscale.results.store import read_run

    rows = read_run(results, run_id).sort_values(["study", "attempt"]).drop_duplicates("study", keep="last")
    plain = rows.astype(object).where(rows.notna(), None)
    return [
        {
            "study": row["study"],
            "role": row["role"],
            "chosen": {**loads(row["settings"] or "{}"), "transfer.lr": row["lr"]},
            "tried": loads(row["tried"] or "null"),
            "at_edge": at_edge(row),
        }
        for row in plain.to_dict("records")
    ]


def _choice(study: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What was tried, and which of it was taken."""
    of = f"study {study['study']}"
    yield of, "role", study["role"]
    for trial in study["tried"] or []:
        values = {key: value for key, value in trial.items() if key != "score"}
        taken = " (chosen)" if all(study["chosen"].get(key) == value for key, value in values.items()) else ""
        name = ", ".join(f"{key} {_short(value)}" for key, value in values.items())
        score = "failed" if trial["score"] is None else _short(trial["score"])
        yield of, f"tried {name}", f"{score}{taken}"
    if study["at_edge"]:
        yield of, "note", f"at the edge of what was tried: {study['at_edge']}; better may lie beyond"


def _measured(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Means and standard deviations over draws."""
    values: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        values.setdefault(tuple(row.get(key) for key in MEASURE), []).append(row["value"])
    return [
        (*map(_short, measure), _short(mean(found)), _short(stdev(found) if len(found) > 1 else None), str(len(found)))
        for measure, found in values.items()
    ]


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
