"""`vitscale status`: where each run of a study stands."""

from __future__ import annotations

from pathlib import Path

from vitscale.cli import options
from vitscale.cli.screen import print_json, print_table, reports_errors, say


@reports_errors
def status(
    study: options.StudyFile,
    settings: options.Settings = None,
    runs: options.Runs = Path("runs"),
    json: options.Json = False,
) -> None:
    """Say where each run of STUDY stands: done, failed and why, running and how far, stopped, to do."""
    from vitscale.launch import folders
    from vitscale.launch.progress import failure_words, progress, summary, title
    from vitscale.launch.sweep import current_plan
    from vitscale.study.load import load

    loaded = load(study, settings=settings or [])
    now = current_plan(loaded, runs)
    rows = []
    for job in now.jobs:
        folder = runs / job.id
        state = folders.state_of(job, runs)
        outcome = folders.outcome_of(job, runs)
        if outcome is not None:
            detail = summary(outcome) if state == "done" else failure_words(outcome)
        else:
            detail = progress(folder, running=state == "running")
        rows.append((state, title(job), detail))
    counts = {
        state: sum(row[0] == state for row in rows) for state in ("done", "failed", "running", "stopped", "to do")
    }
    if json:
        runs_ = [
            {"state": state, "run": name.split()[0], "title": name, "detail": detail} for state, name, detail in rows
        ]
        print_json({"study": loaded.name, "counts": counts, "waiting": len(now.waiting), "runs": runs_})
        return
    print_table(rows, ["state", "run", "detail"])
    words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    say(words + (f", {len(now.waiting)} wait for [select]" if now.waiting else ""))
