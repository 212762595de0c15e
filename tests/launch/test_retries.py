"""Which failures a sweep tries again by itself, how often, and what it says."""

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from vitscale import lease
from vitscale.failures import POLICIES, Failure
from vitscale.launch import folders
from vitscale.launch.local import Worker
from vitscale.launch.local_sweep import LocalSweep, stopping_words
from vitscale.launch.machine import Machine, Places
from vitscale.launch.sweep import current_plan, retry_failed
from vitscale.study.load import load
from vitscale.study.plan import Job


@pytest.fixture
def swept(tmp_path: Path) -> tuple[LocalSweep, Job, list[str]]:
    """A sweep that has not begun, a job of it, and what it says."""
    study = load(tiny.write(tmp_path), base=tmp_path)
    said: list[str] = []
    places = Places(runs=tmp_path / "runs", results=tmp_path / "results")
    sweep = LocalSweep(study=study, places=places, machine=Machine(jobs=1, threads=1), say=said.append)
    return sweep, current_plan(study, places.runs).jobs[0], said


def fail(sweep: LocalSweep, job: Job, attempt: int, kind: Failure, **more: Any) -> None:
    folder = folders.prepare(job, sweep.places.runs, base=sweep.study.base, machine={})
    outcome = {"status": "failed", "failure": kind, "reason": "it was so", "rows": [], "attempt": attempt, **more}
    (folder / "result.json").write_text(json.dumps(outcome))


@pytest.mark.parametrize("kind", list(Failure))
def test_each_kind_is_tried_again_as_often_as_its_policy_says(
    swept: tuple[LocalSweep, Job, list[str]], kind: Failure
) -> None:
    sweep, job, said = swept
    retries = POLICIES[kind].retries
    for attempt in range(1, retries + 1):
        fail(sweep, job, attempt, kind)
        assert sweep._again(job)
        assert folders.result(sweep.places.runs / job.id) is None
        assert f"again {POLICIES[kind].change}: {attempt} of {retries}" in said[-1]
    fail(sweep, job, retries + 1, kind)
    assert not sweep._again(job)
    kept = sorted(path.name for path in (sweep.places.runs / job.id).glob("result*.json"))
    assert kept == sorted(["result.json", *(f"result-{attempt}.json" for attempt in range(1, retries + 1))])


def test_tries_are_counted_over_sweeps_until_a_person_asks_for_more(swept: tuple[LocalSweep, Job, list[str]]) -> None:
    sweep, job, said = swept
    for attempt in (1, 2):
        fail(sweep, job, attempt, Failure.KILLED)
        assert sweep._again(job)
    other = LocalSweep(study=sweep.study, places=sweep.places, machine=sweep.machine, say=said.append)
    fail(sweep, job, 3, Failure.KILLED)
    assert not other._again(job)
    assert retry_failed([job], sweep.places.runs) == 1
    fail(sweep, job, 4, Failure.KILLED)
    assert other._again(job)
    assert "1 of 2" in said[-1]


def test_what_would_end_in_the_same_way_is_not_tried_again(swept: tuple[LocalSweep, Job, list[str]]) -> None:
    """A run that has no fewer images to try, or whose micro-batch was given."""
    sweep, job, _ = swept
    fail(sweep, job, 1, Failure.OUT_OF_MEMORY, retry=False)
    assert not sweep._again(job)


def test_a_sweep_that_is_stopping_tries_nothing_again(swept: tuple[LocalSweep, Job, list[str]]) -> None:
    sweep, job, _ = swept
    sweep.stopping = True
    fail(sweep, job, 1, Failure.KILLED)
    assert not sweep._again(job)


def test_the_next_sweep_tries_again_what_one_that_was_stopped_has_left(
    swept: tuple[LocalSweep, Job, list[str]],
) -> None:
    """A sweep that was killed, too, before it could."""
    sweep, job, said = swept
    sweep.only = lambda each: each.id == job.id
    fail(sweep, job, 1, Failure.KILLED)
    ended = sweep.run()
    assert (ended.done, ended.failed) == (1, 0)
    assert said[0].endswith("it was so  (again from its last checkpoint: 1 of 2)")


@pytest.mark.parametrize(("kind", "wanted"), [(Failure.NOT_FINITE, True), (Failure.KILLED, False)])
def test_what_is_final_or_not_wanted_stays_as_it_is(
    swept: tuple[LocalSweep, Job, list[str]], kind: Failure, wanted: bool
) -> None:
    sweep, job, said = swept
    sweep.only = lambda _: wanted
    fail(sweep, job, 1, kind)
    sweep._try_again(current_plan(sweep.study, sweep.places.runs))
    assert not said
    assert folders.result(sweep.places.runs / job.id) is not None


def test_what_others_are_at_is_theirs_to_try_again(swept: tuple[LocalSweep, Job, list[str]]) -> None:
    """So is what is not known for certain yet."""
    sweep, job, said = swept
    now = current_plan(sweep.study, sweep.places.runs)
    fail(sweep, job, 1, Failure.KILLED)
    other = next(each for each in now.jobs if each.parent == job.id)
    with lease.hold(folders.prepare(other, sweep.places.runs, base=sweep.study.base, machine={})):
        sweep._try_again(now)
    fail(sweep, job, 1, Failure.KILLED, provisional=True)
    sweep._try_again(now)
    assert not said
    fail(sweep, job, 1, Failure.KILLED)
    sweep._try_again(now)
    assert len(said) == 1


def test_a_folder_of_another_run_is_left_alone(swept: tuple[LocalSweep, Job, list[str]]) -> None:
    sweep, job, said = swept
    fail(sweep, job, 1, Failure.KILLED)
    told = folders.document(sweep.places.runs / job.id)
    told["config"]["recipe"]["lr"] = 0.5
    tiny.edit(sweep.places.runs / job.id / "run.json", config=told["config"])
    sweep._try_again(current_plan(sweep.study, sweep.places.runs))
    assert not said
    assert (sweep.places.runs / job.id / "result.json").exists()


def test_an_outcome_that_another_sweep_has_put_aside_is_no_death(swept: tuple[LocalSweep, Job, list[str]]) -> None:
    sweep, job, _ = swept
    folder = folders.prepare(job, sweep.places.runs, base=sweep.study.base, machine={})
    (folder / "run.json").write_text("{")  # of which the worker can make nothing
    worker = Worker([folder], threads=1)
    worker.process.wait(timeout=60)
    (folder / "run.json").unlink()
    fail(sweep, job, 1, Failure.OUT_OF_MEMORY)
    assert folders.try_again(folder) is not None
    assert worker.process.returncode
    worker.record_death()
    assert folders.result(folder) is None


def test_fail_fast_stops_at_what_is_not_tried_again(swept: tuple[LocalSweep, Job, list[str]]) -> None:
    sweep, job, said = swept
    sweep.fail_fast = True
    fail(sweep, job, 1, Failure.TIME)
    assert sweep._again(job)
    assert not sweep.stopping
    fail(sweep, job, 2, Failure.TIME)
    assert not sweep._again(job)
    sweep._report(job, 0)
    assert sweep.stopping
    assert said[-1].startswith(f"failed   {job.id}")


def test_a_few_shot_transfer_is_not_said_to_save(swept: tuple[LocalSweep, Job, list[str]]) -> None:
    sweep, job, said = swept
    jobs = [job for job in current_plan(sweep.study, sweep.places.runs).jobs if job.parent and job.run.transfer]
    transfer, tuned = (next(j for j in jobs if j.run.transfer.protocol == kind) for kind in ("fewshot", "finetune"))
    fail(sweep, transfer, 1, Failure.KILLED)
    assert sweep._again(transfer)
    assert "(again from its beginning: 1 of 2)" in said[-1]
    fail(sweep, tuned, 1, Failure.KILLED)
    assert sweep._again(tuned)
    assert "(again from its last checkpoint: 1 of 2)" in said[-1]
    assert stopping_words([job]) == "1 run saves first"
    assert stopping_words([job, tuned, transfer]) == "2 runs save first, 1 begins again later"


def test_kinds_have_a_policy_and_an_end() -> None:
    assert set(POLICIES) == set(Failure)
    assert all(policy.retries <= 5 for policy in POLICIES.values())
    assert all(bool(policy.change) == bool(policy.retries) for policy in POLICIES.values())
