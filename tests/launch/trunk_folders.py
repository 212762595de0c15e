"""Run folders of trunks and branches, without a training."""

import json
from pathlib import Path

import tiny
from vitscale.study.job import Job

TEXT = tiny.STUDY[: tiny.STUDY.index("[[transfer]]")].replace("steps = 12\n", 'schedule = "constant"\ncooldown = 0.2\n')


def begin(job: Job, runs: Path, *saved: int, branched_at: int = 0) -> Path:
    folder = runs / job.id
    for step in saved:
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text(json.dumps({"progress": {"step": step, "branched_at": branched_at}}))
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({**job.document(), "provenance": {}, "machine": {}}))
    (folder / "events.jsonl").touch()
    return folder


def finish(job: Job, runs: Path, *, steps: int, trunk: str | None = None) -> None:
    row = {"flops_segment": float(job.flops_alone_by("dense") // job.steps * steps), "trunk_id": trunk}
    times = dict.fromkeys(("started", "ended"), "2026-01-01T00:00:00+00:00")
    outcome = {"status": "done", "attempt": 1, "rows": [row], "reached": steps, "score": None, **times}
    (begin(job, runs) / "result.json").write_text(json.dumps(outcome))


def left_at(job: Job) -> int | None:
    return job.branch.step if job.branch else None
