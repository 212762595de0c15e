import json
from pathlib import Path

import pytest

from vitscale.cli.report_sources import POINTS, losses, sources, trace
from vitscale.models import parse
from vitscale.models.counts import Head
from vitscale.study.load import load
from vitscale.study.plan import plan


def step(number: int, loss: float) -> str:
    return json.dumps({"event": "step", "step": number, "loss": loss}) + "\n"


def test_of_a_step_computed_twice_the_later_loss_counts_and_half_a_line_does_not(tmp_path: Path) -> None:
    lines = [step(1, 2.3), step(10, 1.9), '{"event": "stop"}\n', step(10, 1.8), step(20, 1.5), '{"event": "step", "ste']
    (tmp_path / "events.jsonl").write_text("".join(lines))
    assert losses(tmp_path) == [(1, 2.3), (10, 1.8), (20, 1.5)]


def test_a_run_folder_that_is_missing_or_damaged_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "run.json").write_text("{")
    assert trace(tmp_path / "runs" / "a") is None
    found = sources(None, "mine", tmp_path / "runs", ["a", "b"])
    assert (found.study, found.traces, found.outside) == ("studies/mine.toml", {}, {})


def test_a_long_loss_curve_is_thinned_with_its_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.json").write_text(
        json.dumps({"id": "a", "kind": "pretrain", "config": {}, "provenance": {}, "parent": None})
    )
    (tmp_path / "events.jsonl").write_text("".join(step(i, 1 / i) for i in range(1, 1001)))
    monkeypatch.setattr("vitscale.study.describe.command", lambda told: f"vitscale {told['kind']}")
    found = trace(tmp_path)
    assert found is not None
    assert found.command == "vitscale pretrain"
    assert len(found.losses) == POINTS
    assert (found.losses[0], found.losses[-1]) == ((1, 1.0), (1000, 1 / 1000))


def test_taps_outside_are_those_of_the_study_s_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = tmp_path / "one.toml"
    study.write_text(
        'title = "one"\n[data]\nsize = 1000\nnum_classes = 10\nresolution = 224\n[recipe]\nexamples = 1000\nwarmup_steps = 0\n'
        '[[axes]]\n"model.name" = ["ViT-B/16", "R50x1"]\n'
    )
    found = sources(study, "one", tmp_path / "runs", []).outside
    assert found["ViT-B/16"] == 0
    arch = parse("R50x1")
    assert arch is not None
    head = Head(num_classes=10)
    assert found["R50x1"] == 6 * (arch.macs(224, head).total - arch.macs(224, head, "valid").total) > 0
    study.write_text("not a study")
    assert sources(study, "one", tmp_path / "runs", []).outside == {}


def test_cells_without_a_result_are_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = tmp_path / "one.toml"
    study.write_text(
        'title = "one"\n[data]\nsize = 1000\nnum_classes = 10\nresolution = 224\n[recipe]\nwarmup_steps = 0\nbatch_size = 10\n'
        '[[axes]]\n"model.name" = ["ViT-B/16", "R50x1"]\n"recipe.steps" = [100, 200]\n'
    )
    jobs = plan(load(study), {}).jobs
    done = next(job for job in jobs if job.run.model.name == "R50x1")
    planned = sources(study, "one", tmp_path / "runs", [done.id]).planned
    assert planned is not None
    assert list(planned["family"]).count("vit") == 2
    assert list(planned["family"]).count("resnet") == 1
    assert set(planned["examples"]) == {1000}
    assert done.pretrain_flops not in set(planned["flops"])
    assert {job.pretrain_flops for job in jobs} - {done.pretrain_flops} == set(planned["flops"])
