"""Whole sweeps in real processes: done once, continued after a death, failures recorded and tried again."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from sweeps import VARIES, start, sweep

import tiny
from vitscale.analysis.curves import curves
from vitscale.errors import DONE, INTERRUPTED, INVALID_STUDY, MISSING, RUN_FAILED, USAGE
from vitscale.launch import folders
from vitscale.launch.local import Worker
from vitscale.launch.local_sweep import LocalSweep
from vitscale.launch.machine import Machine, Places
from vitscale.launch.sweep import current_plan
from vitscale.results.store import Held, read, read_plan
from vitscale.study.load import load


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the small study has been swept undisturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny.write(folder)
    assert sweep(folder).returncode == DONE
    return folder


def rows(folder: Path) -> pd.DataFrame:
    frame = pd.read_parquet(folder / "results" / "study")
    frame = frame.drop(columns=VARIES)
    return frame.sort_values(["run_id", "task", "metric", "shots", "draw"]).reset_index(drop=True)


def fresh(finished: Path, folder: Path) -> Path:
    """The same study and data, nothing run."""
    for name in ("train", "test", "study.toml"):
        source = finished / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    return folder


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"


def test_every_job_of_the_plan_is_done_and_recorded_once(finished: Path) -> None:
    result = current_plan(load(finished / "study.toml", base=finished), finished / "runs")
    assert {folders.state(finished / "runs" / job.id) for job in result.jobs} == {"done"}
    frame = rows(finished)
    assert set(frame["run_id"]) == {job.id for job in result.jobs}
    assert set(frame["status"]) == {"done"}
    assert len(frame[(frame["protocol"] == "fewshot") & (frame["init"] == "pretrained")]) == 2 * 20
    assert sorted(set(frame["role"])) == ["baseline", "cell"]
    assert len(list((finished / "results" / "study").glob("*.parquet"))) == len(result.jobs)
    point = frame[frame["task"] == "upstream_test"].iloc[0]
    assert point["flops_standalone"] == point["flops_segment"] == point["flops_per_example"] * 12 * 16
    assert json.loads(point["versions"])["torch"]


def test_a_second_sweep_finds_nothing_to_do(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*.json")}
    again = sweep(finished)
    assert again.returncode == DONE
    assert "left to run: 0 jobs" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in (finished / "runs").rglob("*.json")} == before


def test_lost_result_parts_are_written_again_from_the_runs(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "results")
    assert sweep(copy).returncode == DONE
    pd.testing.assert_frame_equal(rows(copy), rows(finished))


def test_a_part_whose_run_folder_is_gone_stays(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    stranger = copy / "results" / "study" / "0123456789ab-1.parquet"
    shutil.copy(next((copy / "results" / "study").glob("*.parquet")), stranger)
    sweep(copy)
    assert stranger.exists()


def test_an_interrupted_sweep_says_so_and_the_next_one_goes_on(finished: Path, tmp_path: Path) -> None:
    folder = fresh(finished, tmp_path)
    process = start(folder)
    while not list(folder.glob("runs/*/events.jsonl")):
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert "the same command goes on from here" in err
    assert sweep(folder).returncode == DONE
    pd.testing.assert_frame_equal(rows(folder), rows(finished))


def test_a_failed_run_is_a_row_with_its_reason_and_is_tried_again_when_asked(finished: Path, tmp_path: Path) -> None:
    folder = fresh(finished, tmp_path)
    (folder / "study.toml").write_text(tiny.STUDY.replace("lr = 1e-2\n", "lr = 1e30\ngrad_clip = 0.0\n"))
    failed = sweep(folder, "--only", "ViT")
    assert failed.returncode == RUN_FAILED
    frame = pd.read_parquet(folder / "results" / "study")
    row = frame[frame["status"] == "failed"].iloc[0]
    assert row["failure"] == "not finite"
    assert "the loss is" in row["reason"]
    assert pd.isna(row["value"])
    again = sweep(folder)
    assert again.returncode == RUN_FAILED
    assert list(folder.glob("runs/*/result-*.json")) == []
    retried = sweep(folder, "--retry-failed")
    assert "trying 1 failed run again" in retried.stderr
    assert len(list(folder.glob("runs/*/result-1.json"))) == 1
    tried = pd.read_parquet(folder / "results" / "study").query("status == 'failed' and attempt > 0")
    assert sorted(tried["attempt"]) == [1, 2]


def test_transfers_of_a_failed_run_are_rows_with_the_reason(finished: Path, tmp_path: Path) -> None:
    folder = fresh(finished, tmp_path)
    (folder / "study.toml").write_text(tiny.STUDY.replace("lr = 1e-2\n", "lr = 1e30\ngrad_clip = 0.0\n"))
    ended = sweep(folder)
    assert ended.returncode == RUN_FAILED
    assert "2 not finished (2 cannot begin)" in ended.stderr
    frame = pd.read_parquet(folder / "results" / "study")
    orphans = frame[frame["parent_id"].notna()]
    assert len(orphans) == 2
    assert set(orphans["status"]) == {"failed"}
    assert orphans["reason"].str.startswith("its pre-training ").all()


def test_a_stop_while_workers_start_is_no_failure(finished: Path, tmp_path: Path) -> None:
    folder = fresh(finished, tmp_path)
    process = start(folder)
    while not list(folder.glob("runs/*/log.txt")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, err
    assert "failed" not in {folders.state(path) for path in (folder / "runs").iterdir()}


def test_a_worker_that_is_preempted_is_started_again(finished: Path, tmp_path: Path) -> None:
    folder = fresh(finished, tmp_path)
    process = start(folder)
    while not list(folder.glob("runs/*/events.jsonl")):
        time.sleep(0.05)
    (worker,) = _workers(process.pid)
    os.kill(worker, signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == DONE, err
    pd.testing.assert_frame_equal(rows(folder), rows(finished))


def test_a_killed_worker_is_a_row_and_its_run_is_tried_again(finished: Path, tmp_path: Path) -> None:
    folder = fresh(finished, tmp_path)
    process = start(folder)
    baselines = {
        job.id
        for job in current_plan(load(folder / "study.toml", base=folder), folder / "runs").jobs
        if job.role == "baseline"
    }
    while not [path for path in folder.glob("runs/*/events.jsonl") if path.parent.name in baselines]:
        time.sleep(0.02)
    (worker,) = _workers(process.pid)
    os.kill(worker, signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == DONE, err
    assert "killed (signal 9): often the machine ran out of memory  (again from its beginning: 1 of 2)" in err
    found = rows(folder)
    (failed,) = found[found["status"] == "failed"].to_dict("records")
    assert (failed["failure"], failed["run_id"] in baselines) == ("killed", True)
    done = found[found["status"] == "done"].reset_index(drop=True)
    pd.testing.assert_frame_equal(done, rows(finished), check_dtype=False)


def test_an_only_that_names_nothing_is_a_mistake(finished: Path) -> None:
    refused = sweep(finished, "--only", "zzz")
    assert refused.returncode == USAGE
    assert "no run of study.toml is named so" in refused.stderr


def test_a_micro_batch_that_leaves_a_rest_is_refused_before_anything_starts(finished: Path, tmp_path: Path) -> None:
    folder = fresh(finished, tmp_path)
    refused = sweep(folder, "--micro-batch", "7")
    assert refused.returncode == USAGE
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("damage", ["{}", "", "\xff"])
def test_a_damaged_result_is_named(finished: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    result = next((copy / "runs").glob("*/result.json"))
    result.write_text(damage, encoding="latin-1")
    others = [path for path in (copy / "runs").glob("*/result.json") if path != result]
    lost = next(path for path in others if folders.document(path.parent)["parent"] != result.parent.name)
    lost.unlink()
    refused = sweep(copy)
    assert refused.returncode == MISSING
    assert f"error: {result.relative_to(copy)} is damaged" in refused.stderr
    assert ", 1 refused" in refused.stderr
    assert lost.exists(), "the rest goes on"
    assert result.read_text(encoding="latin-1") == damage, "nothing is deleted"


def test_a_finished_run_under_another_name_is_refused_and_the_rest_goes_on(finished: Path, tmp_path: Path) -> None:
    folder = fresh(finished, tmp_path)
    (folder / "study.toml").write_text(tiny.STUDY.partition("[[transfer]]")[0] + "[[axes]]\nseed = [0, 1, 2]\n")
    one, other, third = (job.id for job in current_plan(load(folder / "study.toml", base=folder), folder / "runs").jobs)
    shutil.copytree(finished / "runs" / one, folder / "runs" / one)
    shutil.copytree(finished / "runs" / one, folder / "runs" / other)
    refused = sweep(folder)
    assert refused.returncode == INVALID_STUDY
    assert "2 done, 0 failed, 1 refused" in refused.stderr
    assert refused.stderr.splitlines()[-2:] == [
        f"error: runs/{other} does not hold the run that its name says",
        "hint: move the folder away; the run is then trained again",
    ]
    rows = pd.read_parquet(folder / "results" / "study").drop_duplicates("run_id").set_index("run_id")
    assert rows["status"].to_dict() == {one: "done", other: "failed", third: "done"}
    assert rows.loc[other, "reason"] == f"runs/{other} does not hold the run that its name says"


def test_half_done_runs_of_other_code_are_not_resumed_unless_asked(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (job, *_) = current_plan(load(copy / "study.toml", base=copy), copy / "runs").jobs
    run = copy / "runs" / job.id
    (run / "result.json").unlink()
    told = json.loads((run / "run.json").read_text())
    tiny.edit(run / "run.json", provenance={**told["provenance"], "code_hash": "0" * 64})
    refused = sweep(copy)
    assert refused.returncode == INVALID_STUDY
    assert refused.stderr.splitlines()[-2].startswith(f"error: run {job.id} was begun by other code")
    assert refused.stderr.splitlines()[-1].startswith("hint: ")
    done = len(list((copy / "runs").glob("*/result.json")))
    assert f"\n{done} done, 0 failed, 1 refused; results in " in refused.stderr
    assert sweep(copy, "--accept-code-change").returncode == DONE


def test_a_folder_with_another_configuration_than_its_name_is_refused(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (job, *_) = current_plan(load(copy / "study.toml", base=copy), copy / "runs").jobs
    run = copy / "runs" / job.id
    (run / "result.json").unlink()
    told = json.loads((run / "run.json").read_text())
    told["config"]["recipe"]["weight_decay"] = 0.5
    tiny.edit(run / "run.json", config=told["config"])
    refused = sweep(copy)
    assert refused.returncode == INVALID_STUDY
    assert f"{job.id} does not hold the run that its name says" in refused.stderr


def test_results_of_an_edited_study_count_while_its_new_runs_are_under_way(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "study.toml").write_text(tiny.STUDY + "[[axes]]\nseed = [0, 1]\n")
    process = start(copy)
    while len(list((copy / "runs").glob("*/events.jsonl"))) < len(list((finished / "runs").iterdir())) + 1:
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=60)
    planned = current_plan(load(copy / "study.toml", base=copy), copy / "runs")
    assert read_plan(copy / "results" / "study") == Held(frozenset(job.id for job in planned.jobs))


def test_two_stems_of_one_model_have_baselines_of_their_own(finished: Path, tmp_path: Path) -> None:
    folder = fresh(finished, tmp_path)
    axes = '[[axes]]\n"model.stem" = ["small", "standard"]\n'
    few = tiny.STUDY.partition("[[transfer]]")[0] + '[[transfer]]\ntask = "digits"\nshots = [1]\n'
    (folder / "study.toml").write_text(few.replace("ViT-nano/7", "R5") + axes)
    assert sweep(folder).returncode == DONE
    baselines = curves(read(folder / "results" / "study")).baselines
    assert sorted(baselines["variant"]) == ["", "stem=small", "stem=standard"]
    assert set(baselines["n"]) == {1}


def test_two_sweeps_at_once_run_nothing_twice_and_lose_nothing(finished: Path, tmp_path: Path) -> None:
    folder = fresh(finished, tmp_path)
    pair = [start(folder), start(folder)]
    assert [process.communicate(timeout=300)[0] for process in pair] == ["", ""]
    assert [process.returncode for process in pair] == [DONE, DONE]
    pd.testing.assert_frame_equal(rows(folder), rows(finished))
    for events in folder.glob("runs/*/events.jsonl"):
        assert events.read_text().count('"event": "done"') == 1


def _workers(parent: int) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def test_what_is_left_goes_down_by_one_with_each_word_of_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the transfers of a run, which one worker works off, have ended and are not told of yet."""

    class Instant(Worker):
        """Ends one more run at each look, and with the last of them."""

        def __post_init__(self) -> None:
            self.waiting = list(self.work)

        def ended(self) -> int | None:
            if self.waiting:
                shutil.copy(finished / "runs" / self.waiting[0].name / "result.json", self.waiting.pop(0))
            return None if self.waiting else DONE

        def record_death(self) -> None:
            pass

    monkeypatch.setattr("vitscale.launch.local_sweep.Worker", Instant)
    said: list[str] = []
    places = Places(runs=tmp_path / "runs", results=tmp_path / "results")
    study = load(finished / "study.toml", base=finished)
    machine = Machine(jobs=3, threads=1)
    ended = LocalSweep(study=study, places=places, machine=machine, say=said.append).run()
    left = [int(found[1]) for line in said if (found := re.search(r"\((\d+) left\)$", line))]
    assert left == list(reversed(range(ended.done)))
    assert any("fewshot" in line for line in said)
