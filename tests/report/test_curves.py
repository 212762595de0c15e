from typing import Any

import pandas as pd
import pytest

from vitscale.analysis.curves import compute_axis, counted, curves, of_plan, one_budget, summary
from vitscale.errors import MISSING, VitscaleError
from vitscale.report.notes import plan_notes
from vitscale.results.schema import COLUMNS
from vitscale.results.store import Held

PANDAS = {"int64": "Int64", "float64": "float64", "bool": "boolean", "string": "str", "json": "str"}


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    """Rows as `store.read` would give them."""
    usual = {"status": "done", "role": "cell", "attempt": 1, "metric": "accuracy", "protocol": "pretrain"}
    usual |= {"task": "upstream_test", "family": "vit", "model": "ViT-nano/4", "examples": 1000, "examples_seen": 8000}
    full = [{**usual, "run_id": f"run{number}", **row} for number, row in enumerate(rows)]
    frame = pd.DataFrame(full, columns=[column.name for column in COLUMNS])
    return frame.astype({column.name: PANDAS.get(column.type, "object") for column in COLUMNS})


def test_draws_are_averaged_within_a_seed_before_seeds_are_compared() -> None:
    few = {"protocol": "fewshot", "task": "digits", "shots": 5}
    frame = table(
        {**few, "run_id": "a", "seed": 0, "draw": 0, "value": 0.2},
        {**few, "run_id": "a", "seed": 0, "draw": 1, "value": 0.4},
        {**few, "seed": 1, "draw": 0, "value": 0.7},
    )
    (point,) = curves(frame).points.to_dict("records")
    assert point["value"] == pytest.approx(0.5)
    assert point["sd"] == pytest.approx(0.2 * 2**0.5)
    assert point["n"] == 2


def test_one_seed_has_no_spread() -> None:
    (point,) = curves(table({"seed": 0, "value": 0.5})).points.to_dict("records")
    assert point["n"] == 1
    assert pd.isna(point["sd"])


def test_the_newest_done_attempt_counts_even_below_a_newer_failure() -> None:
    frame = table(
        {"run_id": "a", "attempt": 1, "value": 0.1},
        {"run_id": "a", "attempt": 2, "value": 0.2},
        {"run_id": "a", "attempt": 3, "status": "failed", "value": None},
        {"run_id": "b", "attempt": 1, "status": "failed", "value": None},
        {"run_id": "b", "attempt": 2, "status": "failed", "value": None},
    )
    assert sorted(zip(counted(frame)["run_id"], counted(frame)["attempt"], strict=True)) == [("a", 2), ("b", 2)]


def test_tuning_and_failures_are_in_no_curve() -> None:
    frame = table(
        {"seed": 0, "value": 0.5},
        {"seed": 1, "value": 0.9, "role": "tuning"},
        {"seed": 2, "value": None, "status": "failed"},
    )
    assert list(curves(frame).points["value"]) == [0.5]


def test_a_transfer_takes_its_compute_and_sizes_from_its_pretraining_run() -> None:
    frame = table(
        {"run_id": "trunk", "seed": 3, "value": 0.5, "flops_standalone": 7e12},
        {"parent_id": "trunk", "protocol": "finetune", "task": "digits", "value": 0.9, "flops_standalone": 1.0}
        | {"examples": None, "examples_seen": None},
    )
    transfer = curves(frame).points.query("protocol == 'finetune'").iloc[0]
    assert (transfer["flops"], transfer["examples"], transfer["examples_seen"]) == (7e12, 1000, 8000)


def test_a_setting_that_varies_within_a_cell_makes_its_own_lines() -> None:
    frame = table(
        {"seed": 0, "value": 0.5, "settings": '{"recipe.schedule": "cosine", "seed": 0}'},
        {"seed": 0, "value": 0.7, "settings": '{"recipe.schedule": "rsqrt", "seed": 0}'},
    )
    points = curves(frame).points
    assert dict(zip(points["variant"], points["value"], strict=True)) == {"schedule=cosine": 0.5, "schedule=rsqrt": 0.7}


def test_a_tuned_rate_that_differs_between_cells_makes_no_lines() -> None:
    frame = table(
        {"seed": 0, "examples": 1000, "value": 0.5, "settings": '{"recipe.lr": 0.001}'},
        {"seed": 0, "examples": 4000, "value": 0.7, "settings": '{"recipe.lr": 0.003}'},
    )
    assert set(curves(frame).points["variant"]) == {""}


def test_the_budget_with_most_cells_is_drawn_against_set_size(frame: pd.DataFrame) -> None:
    points, budget = one_budget(curves(frame).points)
    assert budget == 880_000
    assert sorted(points["examples"].unique()) == [1_000, 4_000, 16_000, 55_000]


def test_durations_in_epochs_draw_every_cell_at_its_largest_budget() -> None:
    frame = table(
        *(
            {"examples": size, "examples_seen": size * epochs, "value": 0.5}
            for size in (1000, 4000)
            for epochs in (1, 7)
        )
    )
    points, budget = one_budget(curves(frame).points)
    assert budget is None
    assert sorted(points["examples_seen"]) == [7000, 28000]


def test_only_cells_that_differ_in_compute_are_drawn_against_it(frame: pd.DataFrame) -> None:
    points, examples = compute_axis(curves(frame).points)
    assert examples == 55_000
    assert points.groupby("family")["flops"].nunique().tolist() == [3, 3, 3]


def test_without_a_second_budget_there_is_no_compute_axis() -> None:
    points, examples = compute_axis(curves(table({"value": 0.5, "flops_standalone": 1e12})).points)
    assert examples is None
    assert points.empty


def test_summary_of_nothing_but_failures_is_empty() -> None:
    assert summary(table({"status": "failed", "value": None})).empty


def test_baselines_are_kept_apart_from_cells(frame: pd.DataFrame) -> None:
    found = summary(frame)
    pixels = found[(found["init"] == "pixels") & (found["shots"] == 5)]
    assert pixels["value"].iloc[0] == pytest.approx(0.79, abs=0.02)
    assert set(found.loc[found["role"] == "cell", "family"]) == {"vit", "hybrid", "resnet"}


def test_two_runs_of_one_seed_are_never_averaged() -> None:
    frame = table(
        {"run_id": "old", "seed": 0, "value": 0.1, "settings": '{"seed": 0}'},
        {"run_id": "new", "seed": 0, "value": 0.9, "settings": '{"seed": 0}'},
    )
    with pytest.raises(VitscaleError) as caught:
        curves(frame)
    assert caught.value.exit_code == MISSING
    problem = "error: runs new and old are both ViT-nano/4 on 1,000 images, seed 0, upstream_test pretrain: no setting"
    assert str(caught.value).startswith(problem)
    assert str(caught.value).count("\n") == 1
    assert list(curves(of_plan(frame, Held(frozenset({"new"})))).points["value"]) == [0.9]


def test_two_baselines_of_one_seed_are_never_averaged() -> None:
    pixels = {
        "role": "baseline",
        "family": "raw",
        "model": "pixels",
        "init": "pixels",
        "protocol": "fewshot",
        "shots": 1,
    }
    pixels |= {"task": "digits", "examples": None, "examples_seen": None}
    with pytest.raises(VitscaleError, match="run0 and run1 are both pixels, seed 0, digits fewshot"):
        curves(table({**pixels, "seed": 0, "value": 0.5}, {**pixels, "seed": 0, "value": 0.6}))


def test_two_subsets_of_one_seed_are_two_repetitions() -> None:
    (point,) = curves(
        table({"seed": 0, "subset_seed": 0, "value": 0.4}, {"seed": 0, "subset_seed": 1, "value": 0.6})
    ).points.to_dict("records")
    assert (point["value"], point["n"]) == (pytest.approx(0.5), 2)


def test_without_a_plan_every_row_counts_and_an_empty_one_leaves_nothing(frame: pd.DataFrame) -> None:
    assert len(of_plan(frame, None)) == len(frame)
    nothing = of_plan(frame, Held(frozenset()))
    assert nothing.empty
    assert summary(nothing).empty


def test_a_trunk_that_nobody_plans_any_more_stays_on_the_bill() -> None:
    frame = table(
        {"run_id": "trunk", "role": "trunk", "seed": 0, "value": 0.5, "flops_segment": 8e9},
        {"run_id": "branch", "trunk_id": "trunk", "seed": 0, "value": 0.6, "flops_segment": 2e9},
        {"run_id": "other", "role": "trunk", "seed": 1, "value": 0.5, "flops_segment": 8e9},
    )
    held = Held(frozenset({"branch"}))
    assert of_plan(frame, held)["flops_segment"].sum() == 10e9
    (note,) = plan_notes(frame, held)
    assert note.details == ("other",)


def test_a_tuning_run_that_was_transferred_is_a_cell() -> None:
    frame = table(
        {"run_id": "chosen", "role": "tuning", "seed": 0, "value": 0.8},
        {"run_id": "other", "role": "tuning", "seed": 0, "value": 0.7},
        {"parent_id": "chosen", "protocol": "finetune", "task": "digits", "seed": 0, "value": 0.9},
    )
    assert sorted(curves(frame).points["value"]) == [0.8, 0.9]
