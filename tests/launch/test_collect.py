"""From an outcome to rows: what only the study knows, and what only the run's folder tells."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tiny
from vitscale.failures import Failure
from vitscale.launch import folders
from vitscale.launch.code import earlier
from vitscale.launch.collect import collect, collect_orphan
from vitscale.results import provenance
from vitscale.results.store import read
from vitscale.study.job import Job
from vitscale.study.load import load
from vitscale.study.plan import plan

TUNED = '[select]\nover = { "recipe.lr" = [0.001, 0.01, 0.1] }\nby = "upstream_val"\nper = ["model.name"]\n'


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Of the small study, whose rate is selected: 0.1, the largest, wins."""
    study = load(tiny.write(tmp_path, tiny.STUDY.replace("lr = 1e-2\n", "") + TUNED), base=tmp_path)
    scores = {job.id: job.run.recipe.lr for job in plan(study, {}).jobs if job.role == "tuning"}
    return list(plan(study, scores).jobs)


def recorded(job: Job, base: Path, *events: dict[str, Any], **row: Any) -> pd.Series:
    """The row of a job that measured one number."""
    folder = folders.prepare(job, base / "runs", base=base, machine={})
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    times = dict.fromkeys(("started", "ended"), "2026-01-01T00:00:00+00:00")
    outcome = {"status": "done", "attempt": 1, **times, "rows": [{"value": 0.5, **row}]}
    (folder / "result.json").write_text(json.dumps(outcome))
    assert collect(job, base / "runs", base / "results", "study")
    found = read(base / "results" / "study")
    return found[found["run_id"] == job.id].iloc[0]


def test_a_selected_rate_is_recorded_with_what_it_was_chosen_from(jobs: list[Job], tmp_path: Path) -> None:
    cell = next(job for job in jobs if job.kind == "pretrain" and job.role == "cell")
    row = recorded(cell, tmp_path, protocol="pretrain", lr=0.1)
    assert json.loads(row["tried"]) == [{"recipe.lr": lr, "score": lr} for lr in (0.001, 0.01, 0.1)]
    assert row["lr_at_edge"]
    fewshot = next(job for job in jobs if job.parent == cell.id and job.run.transfer.protocol == "fewshot")  # type: ignore[union-attr]
    row = recorded(fewshot, tmp_path, protocol="fewshot", shots=1)
    assert (row["lr"], bool(row["lr_at_edge"]), len(json.loads(row["tried"]))) == (0.1, True, 3)


def test_a_fine_tuning_s_rate_is_its_own_and_so_is_its_edge(jobs: list[Job], tmp_path: Path) -> None:
    """Not that of the pre-training, which lies at one."""
    job = next(job for job in jobs if job.parent and job.run.transfer and job.run.transfer.protocol == "finetune")
    chose = {"event": "chose", "lr": 0.01, "grid": {"0.001": 0.25, "0.01": 0.5, "0.1": None}}
    row = recorded(job, tmp_path, chose, protocol="finetune", lr=0.01, lr_at_edge=False)
    assert not row["lr_at_edge"]
    tried = [{"transfer.lr": lr, "score": s} for lr, s in ((0.001, 0.25), (0.01, 0.5), (0.1, None))]
    assert json.loads(row["tried"]) == tried
    given = recorded(job, tmp_path, protocol="finetune", lr=0.01, lr_at_edge=None)  # the only rate it was given
    assert pd.isna(given["lr_at_edge"])
    assert given["tried"] is None or pd.isna(given["tried"])


def test_a_failed_transfer_s_rate_is_its_own_if_it_had_no_choice(jobs: list[Job], tmp_path: Path) -> None:
    """Of a baseline as of any other; a few-shot transfer has that of its pre-training, which is 0.1."""

    def rate(protocol: str, rates: tuple[float, ...], **which: Any) -> float | None:
        job, transfer = next(
            (job, job.run.transfer)
            for job in jobs
            if job.parent and job.run.transfer is not None and job.run.transfer.protocol == protocol
        )
        given = replace(job, run=replace(job.run, transfer=replace(transfer, lr=rates)), **which)
        failed = {"status": "failed", "failure": "code", "reason": "x"}
        collect_orphan(given, given, failed, tmp_path / "results", "study")
        found = read(tmp_path / "results" / "study")["lr"].iloc[0]
        shutil.rmtree(tmp_path / "results")
        return None if pd.isna(found) else found

    assert rate("finetune", (0.003,)) == rate("finetune", (0.003,), role="baseline") == 0.003
    assert rate("finetune", (0.003, 0.01)) is rate("finetune", (0.003, 0.01), role="baseline") is None
    assert rate("fewshot", (0.003,)) == 0.1
    assert rate("fewshot", (0.003,), role="baseline") is None


def test_uncommitted_changes_are_kept_beside_the_parts(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = provenance.collect()
    told = {**known, "git_dirty": True, "git_diff": "diff --git a/x b/x\n", "host": "here"}
    monkeypatch.setattr(provenance, "collect", lambda: told)
    row = recorded(jobs[0], tmp_path, protocol="pretrain")
    results = tmp_path / "results" / "study"
    assert (results / "_changes" / row["git_diff"]).read_text() == told["git_diff"]
    assert row["host"] == "here", "of before workers said where they are"
    assert len(pd.read_parquet(results)) == 1
    monkeypatch.setattr(provenance, "collect", lambda: {**known, "git_dirty": False, "git_diff": ""})
    assert pd.isna(recorded(jobs[1], tmp_path, protocol="pretrain")["git_diff"])


def log_of(folder: Path, *events: dict[str, Any]) -> None:
    lines = [json.dumps({"time": f"2026-01-01T00:00:{i:02d}+00:00", **event}) for i, event in enumerate(events)]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")


def test_a_failed_run_has_its_bill(jobs: list[Job], tmp_path: Path) -> None:
    job = next(job for job in jobs if job.kind == "pretrain")
    folder = folders.prepare(job, tmp_path / "runs", base=tmp_path, machine={})
    log_of(
        folder,
        {"event": "start", "attempt": 1},
        {"event": "step", "step": 6, "device_seconds": 3.0},
        {"event": "validate", "step": 6, "device_seconds": 4.0, "flops_eval": 70.0},
        {"event": "start", "attempt": 2},
        {"event": "lost", "steps": 2},
        {"event": "step", "step": 9, "device_seconds": 9.0},
    )
    for attempt, steps, lost, seconds in ((1, 6, 0, 4.0), (2, 9, 2, 9.0)):
        (folder / "result.json").unlink(missing_ok=True)
        folders.record_failure(folder, Failure.KILLED, "gone", "", 4)
        outcome = {**json.loads((folder / "result.json").read_text()), "attempt": attempt}
        (folder / "result.json").write_text(json.dumps(outcome))
        assert collect(job, tmp_path / "runs", tmp_path / "results", "study")
        found = read(tmp_path / "results" / "study").set_index("attempt").loc[attempt]
        assert found["flops_segment"] == steps * job.flops / job.steps
        assert found["flops_lost"] == lost * job.flops / job.steps
        assert (found["flops_eval"], found["device_seconds"]) == (70.0, seconds)


def test_a_failed_fine_tuning_has_its_bill(jobs: list[Job], tmp_path: Path) -> None:
    job = next(job for job in jobs if job.parent and job.run.transfer and job.run.transfer.protocol == "finetune")
    assert job.run.transfer is not None
    folder = folders.prepare(job, tmp_path / "runs", base=tmp_path, machine={})
    training = [
        {"event": "engine"},
        {"event": "step", "step": 1, "device_seconds": 0.5},
        {"event": "step", "step": 4, "device_seconds": 2.0},
        {"event": "scored", "flops_eval": 70.0},
    ]
    log_of(folder, {"event": "start"}, *training, *training[:2], {"event": "start"}, *training, *training)
    folders.record_failure(folder, Failure.KILLED, "gone", "", 4)
    outcome = {**json.loads((folder / "result.json").read_text()), "attempt": 2}
    (folder / "result.json").write_text(json.dumps(outcome))
    assert collect(job, tmp_path / "runs", tmp_path / "results", "study")
    (row,) = read(tmp_path / "results" / "study").to_dict("records")
    per_step = job.flops / (4 * 4)  # two rates and two repetitions of four steps
    assert row["flops_segment"] == 8 * per_step
    assert row["flops_lost"] == 5 * per_step
    assert row["flops_eval"] == 3 * 70.0
    assert row["device_seconds"] == 2.0 + 0.5 + 2.0 + 2.0


def test_each_attempt_has_the_code_that_made_it(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, job = provenance.collect(), jobs[0]
    for code in ("one", "other"):
        monkeypatch.setattr(provenance, "collect", lambda code=code: {**known, "code_hash": code})
        folder = folders.prepare(job, tmp_path / "runs", base=tmp_path, machine={})
        attempt = ["one", "other"].index(code) + 1
        (folder / "events.jsonl").write_text(json.dumps({"event": "start", "attempt": attempt}))
        folders.record_failure(folder, Failure.KILLED, "gone", "", 4)
        if code == "one":
            folders.set_aside(folder)
    assert collect(job, tmp_path / "runs", tmp_path / "results", "study")
    assert read(tmp_path / "results" / "study").set_index("attempt")["code_hash"].to_dict() == {1: "one", 2: "other"}


class Hands:
    """Code after code at work on one run."""

    def __init__(self, job: Job, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.job, self.base, self.monkeypatch = job, base, monkeypatch
        self.known = provenance.collect()

    def go_on(self, code: str, *, to: int = 0, job: Job | None = None) -> dict[str, Any]:
        """Some code comes to the run, and saves at a step; what `run.json` then says."""
        now = {**self.known, "code_hash": code, "git_commit": f"of {code}", "git_dirty": True, "git_diff": f"+{code}\n"}
        self.monkeypatch.setattr(provenance, "collect", lambda: now)
        runs = self.base / "runs"
        folder = folders.prepare(job or self.job, runs, base=self.base, machine={}, accept_code_change=True)
        if to:
            (folder / "checkpoints" / f"step-{to:08d}").mkdir(parents=True)
        return folders.document(folder)

    def earlier(self) -> list[str]:
        return [each["code_hash"] for each in earlier(folders.document(self.base / "runs" / self.job.id))]


@pytest.fixture
def hands(jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hands:
    return Hands(jobs[0], tmp_path, monkeypatch)


def test_a_row_says_which_other_code_had_a_part_in_its_run(hands: Hands, tmp_path: Path) -> None:
    hands.go_on("one", to=4)
    told = hands.go_on("other")
    folder = tmp_path / "runs" / hands.job.id
    times = dict.fromkeys(("started", "ended"), "2026-01-01T00:00:00+00:00")
    facts = {"provenance": told["provenance"], "trained_by": told["trained_by"]}
    outcome = {"status": "done", "attempt": 2, **times, **facts, "rows": [{"value": 0.5}]}
    (folder / "result.json").write_text(json.dumps(outcome))
    assert collect(hands.job, tmp_path / "runs", tmp_path / "results", "study")
    (row,) = read(tmp_path / "results" / "study").to_dict("records")
    (before,) = json.loads(row["earlier_code"])
    assert (row["code_hash"], before["code_hash"], before["git_commit"]) == ("other", "one", "of one")
    assert (tmp_path / "results" / "study" / "_changes" / before["git_diff"]).read_text() == "+one\n"


def test_a_death_without_a_word_leaves_which_code_had_a_part(hands: Hands, tmp_path: Path) -> None:
    hands.go_on("one", to=4)
    hands.go_on("other")
    folders.record_failure(tmp_path / "runs" / hands.job.id, Failure.KILLED, "gone", "", 4)
    assert collect(hands.job, tmp_path / "runs", tmp_path / "results", "study")
    (row,) = read(tmp_path / "results" / "study").to_dict("records")
    assert [each["code_hash"] for each in json.loads(row["earlier_code"])] == ["one"]


def test_code_that_saved_nothing_had_no_part_in_a_run(hands: Hands) -> None:
    hands.go_on("one")
    hands.go_on("other", to=4)
    assert hands.earlier() == []
    hands.go_on("third")
    hands.go_on("other")
    assert hands.earlier() == [], "it goes on from its own"
    hands.go_on("fourth", to=8)
    hands.go_on("fifth")
    assert hands.earlier() == ["other", "fourth"]
    hands.go_on("fourth")
    assert hands.earlier() == ["other"]


def test_a_branch_has_the_code_of_its_trunk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tiny.STUDY.partition("[[transfer]]")[0].replace("steps = 12\n", 'schedule = "constant"\ncooldown = 0.25\n')
    study = load(tiny.write(tmp_path, text + '[[axes]]\n"recipe.steps" = [16, 32]\n'), base=tmp_path)
    branch, _, trunk = sorted(plan(study, {}).jobs, key=lambda job: (job.role == "trunk", job.steps))
    hands = Hands(branch, tmp_path, monkeypatch)
    hands.go_on("one", to=12, job=trunk)
    hands.go_on("other")
    assert hands.earlier() == ["one"]
    hands.go_on("other", to=14)
    assert hands.earlier() == ["one"]


def test_a_trunk_s_rows_say_how_far_each_attempt_came(tmp_path: Path) -> None:
    """One to step 12, and another study's to 24; one that fails behind it. This study needs it to step 18."""
    text = tiny.STUDY.partition("[[transfer]]")[0].replace("steps = 12\n", 'schedule = "constant"\ncooldown = 0.25\n')
    study = load(tiny.write(tmp_path, text + '[[axes]]\n"recipe.steps" = [16, 24]\n'), base=tmp_path)
    trunk = next(job for job in plan(study, {}).jobs if job.role == "trunk")
    folder = folders.prepare(trunk, tmp_path / "runs", base=tmp_path, machine={})
    log_of(
        folder,
        *({"event": "start", "attempt": n} for n in (1, 2)),
        {"event": "step", "step": 24},
        {"event": "start", "attempt": 3},
        {"event": "step", "step": 30},
    )
    told = {"status": "done", **dict.fromkeys(("started", "ended"), "2026-01-01T00:00:00+00:00")}
    for attempt, step in ((1, 12), (2, 24)):
        spent = {"value": float(step), "flops_segment": float(step * trunk.flops_per_step)}
        outcome = {**told, "attempt": attempt, "reached": step, "rows": [spent]}
        (folder / f"result-{attempt}.json").write_text(json.dumps(outcome))
    folders.record_failure(folder, Failure.KILLED, "gone", "", 4)
    further = replace(trunk, run=replace(trunk.run, recipe=replace(trunk.run.recipe, steps=36)))
    for job in (trunk, further):
        collect(job, tmp_path / "runs", tmp_path / "results", f"to {job.steps}")
        found = read(tmp_path / "results" / f"to {job.steps}").set_index("attempt")
        assert (found["examples_seen"] * 6 * job.macs == found["flops_segment"]).all()
        assert (found["epochs"] == found["examples_seen"] / job.examples).all()
        assert found["flops_standalone"].isna().all()
    assert found["examples_seen"].to_dict() == {1: 12 * 16, 2: 24 * 16, 3: 30 * 16}


def test_outcomes_that_were_put_aside_come_in_the_order_of_their_attempts(tmp_path: Path) -> None:
    told = {"status": "done", "rows": [], "started": "", "ended": ""}
    for attempt in (10, 2, 9, 11):
        (tmp_path / f"result-{attempt}.json").write_text(json.dumps({**told, "attempt": attempt}))
    assert [each["attempt"] for each in folders.put_aside(tmp_path)] == [2, 9, 10, 11]
