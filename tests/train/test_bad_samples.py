"""Training past samples that cannot be used, and stopping where they are too many."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stopping import StopAfter
from vitscale.data.shards import open_shards
from vitscale.errors import DONE, INTERRUPTED, MISSING, VitscaleError
from vitscale.launch.folders import prepare
from vitscale.study.load import load
from vitscale.study.plan import plan
from vitscale.train import upstream
from vitscale.train.rundir import RunDir
from vitscale.train.stop import Stop
from vitscale.train.worker import work

Spoil = Callable[..., RunDir]


@pytest.fixture
def spoilt(base: Path, tmp_path: Path) -> Spoil:
    """A run over a copy of the data in which some training images are broken, in place and in their size."""

    def made(count: int, *settings: str, runs: str = "runs") -> RunDir:
        folder = tmp_path / f"spoilt-{count}"
        if not folder.exists():
            shutil.copytree(base, folder)
            with open_shards(folder / "train") as shards:
                places = [(shards.shard(i), *(int(x) for x in shards.places[i])) for i in range(10, 10 + count)]
            for shard, _, offset, size in places:
                with Path(shard).open("r+b") as file:
                    file.seek(offset + 40)
                    file.write(np.random.default_rng(0).bytes(size - 60))
        jobs = plan(load(folder / "study.toml", base=folder, settings=settings), {}).jobs
        return RunDir(prepare(jobs[0], tmp_path / runs, base=folder, machine={"threads": 1}))

    return made


def test_a_few_are_passed_over_and_each_is_logged_once(spoilt: Spoil) -> None:
    run = spoilt(2, "data.max_bad=0.02", "recipe.steps=40")
    assert work(run, StopAfter(20)) == INTERRUPTED
    assert work(run, Stop()) == DONE
    logged = [event for event in run.events() if event["event"] == "bad_sample"]
    with open_shards(run.machine["shards"]) as shards:
        assert sorted(event["key"] for event in logged) == sorted(shards.keys[10:12].tolist())
        assert {event["shard"] for event in logged} == {str(shards.shard(10))}
    assert all(event["reason"] for event in logged)


def test_what_was_mended_since_an_earlier_attempt_counts_no_more(spoilt: Spoil, base: Path) -> None:
    run = spoilt(4, "data.max_bad=0.01", "recipe.steps=40")
    assert work(run, Stop()) == MISSING
    for shard in (base / "train").glob("*.tar"):
        shutil.copy(shard, Path(run.machine["shards"]) / shard.name)
    (run.folder / "result.json").unlink()
    assert work(run, Stop()) == DONE


def test_it_keeps_its_slot_with_weight_0(spoilt: Spoil) -> None:
    whole, broken = (
        upstream.Upstream(
            spoilt(count, "data.max_bad=0.5", "data.val_examples=0", "recipe.keep=last", runs=f"r{count}")
        )
        for count in (0, 2)
    )
    found = set()
    for step in range(8):
        (index, _), one, other = broken.positions(step), whole.batch(step), broken.batch(step)
        bad = np.isin(index, [10, 11])
        found |= set(index[bad].tolist())
        assert other.weights.tolist() == (~bad).astype(float).tolist()
        good = torch.from_numpy(~bad)
        assert torch.equal(one.images[good], other.images[good])
        assert not other.images[~good].any()
        assert torch.equal(one.labels, other.labels)
    assert found == {10, 11}


def test_too_many_stop_the_run_in_two_lines(spoilt: Spoil) -> None:
    run = spoilt(4, "data.max_bad=0.01", "recipe.steps=40")
    assert work(run, Stop()) == MISSING
    result = run.result()
    assert result is not None
    assert result["status"] == "failed"
    assert "of 120 are too many" in result["reason"]
    assert "train" in result["reason"]
    assert result["hint"].startswith("at most 1.00% may be bad: see `vitscale data verify ")


def test_the_share_is_of_what_is_trained_on_and_not_of_the_whole_set(spoilt: Spoil) -> None:
    run = spoilt(2, "data.max_bad=0.05", "data.val_examples=0", "recipe.keep=last", "recipe.steps=40")
    whole = upstream.Upstream(run)
    assert whole.images.used == 120
    few = upstream.Upstream(spoilt(2, "data.max_bad=0.05", "data.examples=20", "data.val_examples=10", runs="few"))
    assert few.images.used == 30


def test_a_bad_test_image_is_noted_and_does_not_count(spoilt: Spoil) -> None:
    run = spoilt(0, "data.max_bad=0.05")
    test = Path(run.machine["test"])
    with open_shards(test) as shards:
        shard, (_, offset, size) = Path(shards.shard(3)), (int(x) for x in shards.places[3])
        key = str(shards.keys[3])
    data = shard.read_bytes()
    shard.write_bytes(data[: offset + 40] + bytes(size - 40) + data[offset + size :])
    assert work(run, Stop()) == DONE
    assert [event["key"] for event in run.events() if event["event"] == "bad_sample"] == [key]
    result = run.result()
    assert result is not None
    assert {row["n_test"] for row in result["rows"] if row["task"] == "upstream_test"} == {39}


def test_each_process_logs_the_bad_samples_that_it_meets(spoilt: Spoil) -> None:
    folder = spoilt(0).folder
    second = RunDir(folder, number=1)
    second.log("step", {"step": 3})
    second.log("bad_sample", {"key": "a"})
    assert second.events() == []
    (line,) = (folder / "events-1.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "a"


def test_a_list_of_exclusions_that_changed_since_the_plan_is_refused(spoilt: Spoil, base: Path, tmp_path: Path) -> None:
    with open_shards(base / "train") as shards:
        entries = [{"key": str(shards.keys[i]), "label": int(shards.labels[i])} for i in range(4)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"schema": 1, "excluded": entries}))
    run = spoilt(0, f"data.exclude={path}")
    assert len(upstream.Upstream(run).split.train) == 120 - 20 - 4
    path.write_text(json.dumps({"schema": 1, "excluded": entries[1:]}))
    with pytest.raises(VitscaleError, match="is not the list that the run was planned with") as error:
        upstream.Upstream(run)
    assert error.value.exit_code == MISSING
