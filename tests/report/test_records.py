import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from vitscale.analysis.curves import curves
from vitscale.cli.report_sources import POINTS
from vitscale.report.page import write
from vitscale.report.paper import overlay, table
from vitscale.report.records import Sources, Trace, records


@pytest.fixture(scope="module")
def told(frame: pd.DataFrame) -> dict[str, Any]:
    return records(curves(frame), Sources(outside={"R26x0.5": 1e6}))


def many(frame: pd.DataFrame, times: int) -> pd.DataFrame:
    """The study with as many times its seeds."""
    cells = frame[frame["role"] == "cell"]
    copies = [
        cells.assign(
            seed=cells["seed"] + 3 * i,
            run_id=cells["run_id"] + f"x{i}",
            parent_id=cells["parent_id"] + f"x{i}",
        )
        for i in range(times)
    ]
    return pd.concat([*copies, frame[frame["role"] != "cell"]], ignore_index=True)


def test_a_run_has_one_record_and_its_transfers_are_values_of_it(told: dict[str, Any]) -> None:
    runs, values = told["runs"], told["values"]
    number = next(i for i, run in enumerate(runs) if run["id"] == "vit4000x880000s1")
    titles = {told["measures"][m]["title"]: v for r, m, v in zip(values["run"], values["measure"], values["value"], strict=True)
              if r == number and told["measures"][m]["metric"] == "accuracy"}  # fmt: skip
    assert set(titles) == {"Upstream, test set", "Upstream, validation set", "digits, fine-tuned",
                           *(f"digits, {n} shot{'s' * (n > 1)} a class" for n in (1, 5, 10))}  # fmt: skip
    assert len(runs) == len({run["id"] for run in runs}) == 53
    assert runs[number]["examples"] == 4000
    assert runs[number]["upstream"] == pytest.approx(100 * titles["Upstream, test set"], rel=1e-5)


def test_draws_of_a_support_set_are_one_value(told: dict[str, Any], frame: pd.DataFrame) -> None:
    want = frame.query("parent_id == 'vit4000x880000s1' and shots == 5")["value"]
    measure = next(i for i, m in enumerate(told["measures"]) if "5 shots" in m["title"])
    number = next(i for i, run in enumerate(told["runs"]) if run["id"] == "vit4000x880000s1")
    values = told["values"]
    (at,) = [i for i, key in enumerate(zip(values["run"], values["measure"], strict=True)) if key == (number, measure)]
    assert values["value"][at] == pytest.approx(want.mean(), rel=1e-5)
    assert values["draws"][at] == len(want) == 20
    assert values["id"][at] == "vit4000x880000s1t"


def test_axes_are_those_along_which_runs_differ(told: dict[str, Any]) -> None:
    keys = [axis["key"] for axis in told["axes"]]
    assert keys[0] == "examples"
    assert {"flops", "examples_seen", "upstream"} <= set(keys)
    assert "resolution" not in keys
    assert told["axes"][0]["ticks"] == [1000, 4000, 16000, 55000]


def test_taps_outside_the_image_are_a_counting_of_their_own(told: dict[str, Any]) -> None:
    run = next(run for run in told["runs"] if run["model"] == "R26x0.5" and run["examples_seen"] == 880_000)
    assert run["flops"] - run["flops_inside"] == pytest.approx(1e6 * 880_000, rel=1e-3)
    assert "flops_inside" in {counting["key"] for counting in told["countings"]}
    other = next(run for run in told["runs"] if run["model"] == "ViT-nano/4")
    assert "flops_inside" not in other


def test_what_is_not_recorded_is_null_and_json_holds_it_all(frame: pd.DataFrame) -> None:
    bare = frame.assign(flops_standalone=float("nan"), device_seconds=float("inf"), mfu=float("nan"))
    found = records(curves(bare), Sources())
    json.dumps(found, allow_nan=False)
    assert {run.get("flops") for run in found["runs"]} == {None}
    assert {run.get("device_seconds") for run in found["runs"]} == {None}
    assert "flops" not in {axis["key"] for axis in found["axes"]}


def test_a_law_is_of_all_models_of_its_family(frame: pd.DataFrame) -> None:
    vit = frame[(frame["family"] == "vit") & (frame["role"] == "cell") & (frame["protocol"] == "pretrain")]
    second = vit.assign(model="ViT-Ti/8", run_id=vit["run_id"] + "b")
    found = records(curves(pd.concat([frame[frame["protocol"] == "pretrain"], second])), Sources())
    of_vit = [number for number, one in enumerate(found["series"]) if one["family"] == "vit"]
    assert len(of_vit) == 2
    assert of_vit in [law["series"] for law in found["laws"]]
    assert {law["examples"] for law in found["laws"]} == {55_000}


@pytest.mark.slow
def test_a_page_of_500_runs_with_their_loss_curves_is_under_3_mb(frame: pd.DataFrame, tmp_path: Path) -> None:
    rows = many(frame[(frame["draw"].fillna(0) < 2) | frame["shots"].isna()], 10)
    ids = rows.loc[rows["protocol"] == "pretrain", "run_id"].dropna().unique()
    losses = tuple((step * 37, 2.345678 / step) for step in range(1, POINTS + 1))
    command = "vitscale pretrain --model ViT-nano/4 --data data/fashion-mnist-train " + " ".join(
        f"--set recipe.key{i}={i}" for i in range(10)
    )
    traces = {id_: Trace(command, losses) for id_ in ids}
    written = write(rows, tmp_path, "many", sources=Sources(traces=traces))
    assert len(ids) >= 500
    assert written.page.stat().st_size < 3_000_000


def test_published_lines_are_told_apart_from_runs_and_only_where_a_task_is_theirs(
    told: dict[str, Any], frame: pd.DataFrame
) -> None:
    assert told["theirs"] == []
    found = curves(frame.assign(task=frame["task"].replace("digits", "CIFAR_10")))
    beside = records(replace(found, theirs=overlay(found.points)), Sources())
    assert len(beside["runs"]) == len(told["runs"])
    names = {line["name"] for line in beside["theirs"] if line["axis"] == "flops"}
    assert names == {"ViT, paper", "Hybrid, paper", "ResNet, paper"}
    assert {beside["measures"][line["measure"]]["title"] for line in beside["theirs"]} == {"CIFAR_10, fine-tuned"}
    large = next(line for line in beside["theirs"] if line["name"] == "ViT-H/14, paper")
    assert [point["value"] for point in large["points"]] == pytest.approx([0.9927, 0.9950])
    assert large["source"] == "arXiv 2010.11929v2, Table 5"


def test_models_of_one_family_have_shades_by_their_parameters() -> None:
    series = records(curves(table()), Sources())["series"]
    vit = [one for one in series if one["family"] == "vit"]
    assert [one["name"] for one in vit] == ["ViT-B/16", "ViT-B/32", "ViT-L/16", "ViT-L/32", "ViT-H/14"]
    assert [one["shade"] for one in vit] == [0, 0.25, 0.5, 0.75, 1]


def test_a_family_of_one_model_has_no_shade(told: dict[str, Any]) -> None:
    assert {one["shade"] for one in told["series"]} == {None}


def test_a_run_names_the_code_that_began_it(frame: pd.DataFrame) -> None:
    before = json.dumps([{"git_commit": letter * 40 if letter else None} for letter in ("a", "", "b")])
    frame = frame.assign(earlier_code=None)
    frame.loc[frame["run_id"] == "vit4000x880000s1", "earlier_code"] = before
    told = records(curves(frame), Sources())
    earlier = {run["id"]: told["codes"][run["code"]]["earlier"] for run in told["runs"]}
    assert earlier.pop("vit4000x880000s1") == f"{'a' * 10}, then no commit, then {'b' * 10}"
    assert set(earlier.values()) == {None}
