"""What `vitscale fit` prints of studies and tables."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fit_tables import Run, answer, tables

from vitscale.analysis.selftest import LADDER
from vitscale.cli import fit_source
from vitscale.errors import BUG, DONE, MISSING, USAGE

PAPER = LADDER.parent / "vit_table6.csv"
UPSTREAM = ("--where", "task == 'upstream_test' and metric == 'accuracy' and examples_seen == 880000")
FEW = ("--resamples", "100")


def test_a_study_gives_a_curve_for_each_family(fit: Run) -> None:
    result = fit("synthetic", "--x", "examples", *UPSTREAM, *FEW)
    assert result.exit_code == DONE, result.stderr
    laws, parameters, *_ = tables(result.stdout)
    assert [row["curve"] for row in laws] == ["hybrid", "resnet", "vit"]
    assert {row["of"] for row in laws} == {"error = 1 - value"}
    assert {row["independent"] for row in laws} == {"12", "11"}
    assert all(
        float(row["95% low"]) <= float(row["value"]) <= float(row["95% high"]) for row in parameters if row["value"]
    )
    assert "1 run left out that failed." in result.stderr
    assert "loss is not finite at step 120" in result.stderr
    assert "1 run left out that only chose a setting." in result.stderr


def test_a_study_s_measures_are_not_mixed(fit: Run) -> None:
    result = fit("synthetic", "--x", "examples")
    assert result.exit_code == MISSING
    error, hint = result.stderr.splitlines()
    assert "rows of one curve differ in metric accuracy, loss" in error
    assert "--where" in hint
    assert "protocol == 'pretrain'" in hint


def test_points_that_differ_in_more_than_x_are_said(fit: Run) -> None:
    upstream = "task == 'upstream_test' and metric == 'accuracy'"
    result = fit("synthetic", "--x", "examples", "--where", upstream, "--form", "power", *FEW)
    assert "examples_seen (3 at one place)" in result.stderr


def test_the_law_of_a_file_is_found_and_forecast(fit: Run, csv_file: Path) -> None:
    found = answer(
        fit(str(csv_file), "--x", "flops", "--y", "accuracy", "--at", "1e10", "--at", "1e12", "--json", *FEW)
    )
    (curve,) = found["curves"]
    assert found["schema"] == 1
    assert curve["form"] == "saturating"
    assert curve["parameters"]["a"]["value"] == pytest.approx(0.08, rel=1e-4)
    assert curve["forecasts"][0]["value"] == pytest.approx(0.08 + 3 * 1e10**-0.22, rel=1e-4)
    low, high = curve["forecasts"][0]["law"]
    assert low <= curve["forecasts"][0]["value"] * (1 + 1e-9)
    assert high >= curve["forecasts"][0]["value"] * (1 - 1e-9)
    assert "extrapolation" in {fact["kind"] for fact in curve["facts"]}
    assert {v["fitted"] for v in curve["variants"]} >= {"Huber", "least squares"}
    assert curve["auto"]["ranking"][0]["form"] == "saturating"
    assert curve["held_out"]["points"] == 3


def test_parquet_and_tsv_are_read_too(fit: Run, csv_file: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(csv_file)
    rows.to_parquet(tmp_path / "t.parquet")
    rows.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    (tmp_path / "MARKED.CSV").write_text("# of a spreadsheet\n" + csv_file.read_text(), "utf-8-sig")
    for name in ("t.csv", "t.parquet", "t.tsv", "MARKED.CSV"):
        read, facts, study = fit_source.table(str(tmp_path / name), tmp_path)
        pd.testing.assert_frame_equal(read, rows, check_exact=False, rtol=1e-14)
        assert (facts, study) == ([], False)
    assert fit(str(tmp_path / "MARKED.CSV"), "--x", "flops", "--y", "accuracy", "--form", "power").exit_code == DONE


def test_the_named_index_of_a_parquet_is_a_column(tmp_path: Path) -> None:
    rows = pd.DataFrame({"flops": [1.0, 2.0], "family": ["a", "b"], "acc": [0.5, 0.6]})
    path = tmp_path / "t.parquet"
    for index in (["flops"], ["flops", "family"]):
        rows.set_index(index).to_parquet(path)
        assert set(fit_source.table(str(path), tmp_path)[0].columns) == set(rows.columns)
    rows.set_index("flops", drop=False).to_parquet(path)
    rows.rename(index={0: "x", 1: "y"}).to_parquet(tmp_path / "unnamed.parquet")
    for name in ("t", "unnamed"):
        assert list(fit_source.table(str(tmp_path / f"{name}.parquet"), tmp_path)[0].columns) == list(rows.columns)


def test_durations_are_no_numbers(fit: Run, tmp_path: Path) -> None:
    """pandas would count them in units of its own."""
    taken = pd.to_timedelta([1, 2, 3, 4], unit="h")
    pd.DataFrame({"x": taken, "y": [0.1, 0.2, 0.3, 0.4]}).to_parquet(tmp_path / "t.parquet")
    found = fit(str(tmp_path / "t.parquet"), "--x", "x", "--y", "y")
    assert found.exit_code == MISSING
    assert "column 'x' is not numeric" in found.stderr


def test_olmo_s_ladder(fit: Run) -> None:
    found = answer(fit(str(LADDER), "--n", "n", "--d", "d", "--y", "loss", "--where", "held_out == 0",
                       "--at", "13202396160,5000088518656", "--json", *FEW))  # fmt: skip
    (curve,) = found["curves"]
    assert curve["form"] == "parametric"
    assert math.log(curve["parameters"]["A"]["best"]) == pytest.approx(2.52435, abs=1e-5)
    assert curve["forecasts"][0]["value"] == pytest.approx(2.34439, abs=1e-5)
    assert curve["huber_delta"] == 1e-3
    assert curve["joint"]["names"] == ["E", "log A", "log B", "alpha", "beta"]


def test_a_budget_is_split_by_6nd_or_by_the_runs_own_flops(fit: Run, tmp_path: Path) -> None:
    """Against the minimum of the law along the budget."""
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e8, 6), np.geomspace(1e7, 1e9, 6)))
    loss = 0.5 + 30 * n**-0.3 + 60 * d**-0.25
    rows = pd.DataFrame({"n": n, "d": d, "loss": loss, "cost": 20 * n**0.9 * d})
    rows.to_csv(tmp_path / "nd.csv", index=False)
    options = (str(tmp_path / "nd.csv"), "--n", "n", "--d", "d", "--y", "loss", *FEW)
    sizes = np.geomspace(1e5, 1e10, 200_001)
    for more, k, g in (((), 6, 1.0), (("--flops", "cost"), 20, 0.9)):
        (best,) = answer(fit(*options, *more, "--at", "1e17", "--json"))["optima"]
        left = 1e17 / (k * sizes**g)
        law = 0.5 + 30 * sizes**-0.3 + 60 * left**-0.25
        (budget,) = best["budgets"]
        assert budget["n"]["value"] == pytest.approx(sizes[law.argmin()], rel=1e-3)
        assert budget["d"]["value"] == pytest.approx(left[law.argmin()], rel=1e-3)
        assert budget["law"]["value"] == pytest.approx(law.min(), rel=1e-6)
        assert best["a"] == pytest.approx(0.25 / (0.3 + g * 0.25), rel=1e-4)
        assert (best["flops"]["k"], best["flops"]["g"]) == (pytest.approx(k), pytest.approx(g))
    result = fit(*options, "--at", "1e17", "--at", "1e7,1e8")
    assert [row["at"] for row in tables(result.stdout)[3]] == ["1e+07, 1e+08"]
    assert tables(result.stdout)[4][0]["budget"] == "1e+17"
    assert "A run is taken to cost 6 N D FLOPs, by the usual rule." in result.stderr


def test_the_paper_s_families_compared(fit: Run) -> None:
    options = (
        "--x",
        "exaflops",
        "--y",
        "imagenet,cifar10,cifar100,pets,flowers",
        "--y-is",
        "accuracy",
        "--by",
        "family",
    )
    result = fit(str(PAPER), *options, "--form", "power", "--relative-to", "resnet", *FEW)
    assert result.exit_code == DONE, result.stderr
    compared = {row["curve"]: row for row in tables(result.stdout)[-1]}
    assert set(compared) == {"hybrid", "vit"}
    assert 2 < float(compared["vit"]["compute of resnet over its own"]) < 4
    found = answer(fit(str(PAPER), *options, "--form", "saturating", "--relative-to", "resnet", "--json", *FEW,
                       "--where", "family != 'hybrid'"))  # fmt: skip
    assert {m["cheap"]: m["interval"][1] for m in found["multipliers"]} == {"vit": None}  # no end
    refused = fit(str(PAPER), *options, "--relative-to", "mlp")
    assert refused.exit_code == USAGE
    assert refused.stderr.splitlines()[1] == "hint: there are: hybrid, resnet, vit"


def test_curves_of_as_many_runs_do_not_share_their_resamples(fit: Run, tmp_path: Path) -> None:
    """Shared ones would make the comparison of a curve with its copy certain: 1, from 1 to 1."""
    x = np.geomspace(1e3, 1e9, 12)
    loss = 5 * x**-0.2 * np.exp(0.03 * np.random.default_rng(0).standard_normal(12))
    rows = pd.concat(pd.DataFrame({"x": x, "loss": loss, "family": name}) for name in "ab")
    rows.to_csv(tmp_path / "copies.csv", index=False)
    found = answer(fit(str(tmp_path / "copies.csv"), "--x", "x", "--y", "loss", "--by", "family", "--form", "power",
                       "--relative-to", "a", "--json", *FEW))  # fmt: skip
    (compared,) = found["multipliers"]
    low, high = compared["interval"]
    assert compared["multiplier"] == pytest.approx(1)
    assert low < 0.95
    assert high > 1.05


def test_the_frontier_and_the_choice_at_a_budget(fit: Run) -> None:
    result = fit(str(PAPER), "--x", "exaflops", "--y", "imagenet", "--y-is", "accuracy", "--form", "envelope",
                 "--label", "name,epochs", "--at", "2000", *FEW)  # fmt: skip
    assert result.exit_code == DONE, result.stderr
    frontier, choices, laws, *_ = tables(result.stdout)
    values = [float(row["value"]) for row in frontier]
    assert values == sorted(values, reverse=True)
    assert frontier[-1]["best configuration"] == "ViT-H/14, 14"
    assert choices[0]["choose"] == "ViT-L/16, 14"
    assert len(laws) == 1
    assert "lower envelope" in result.stderr


def test_an_envelope_of_one_point_has_no_law(fit: Run, tmp_path: Path) -> None:
    pd.DataFrame({"x": np.geomspace(1, 1e6, 8), "loss": np.arange(1.0, 9.0)}).to_csv(tmp_path / "r.csv", index=False)
    options = (str(tmp_path / "r.csv"), "--x", "x", "--y", "loss", "--form", "envelope")
    result = fit(*options)
    assert [[row["best configuration"] for row in table] for table in tables(result.stdout)] == [["row 1"]]
    assert result.stderr == "Nothing beats the cheapest quarter of a decade: there is no law of the envelope.\n"
    told = answer(fit(*options, "--json"))
    assert (told["curves"], [fact["kind"] for fact in told["without_law"]]) == ([], ["too_few"])


def test_isoflop_profiles(fit: Run, tmp_path: Path) -> None:
    c = np.repeat([1e18, 1e19, 1e20], 7)
    n = 0.1 * c**0.5 * np.tile(np.geomspace(1 / 8, 8, 7), 3)
    rows = pd.DataFrame({"c": c, "n": n, "loss": 2 + 30 * c**-0.1 + 0.02 * np.log(n / (0.1 * c**0.5)) ** 2})
    rows.to_csv(tmp_path / "iso.csv", index=False)
    options = (str(tmp_path / "iso.csv"), "--form", "isoflop", "--x", "c", "--n", "n", "--y", "loss", *FEW)
    budgets, law, sizes = tables(fit(*options, "--at", "1e22").stdout)
    assert [float(row["best size"]) for row in budgets] == pytest.approx([1e8, 3.162e8, 1e9], rel=1e-3)
    assert float(law[0]["value"]) == pytest.approx(0.5, abs=1e-3)
    assert float(sizes[0]["best size"]) == pytest.approx(1e10, rel=1e-2)
    assert answer(fit(*options, "--json"))["curves"][0]["a"] == pytest.approx(0.5, abs=1e-3)
    dearer = answer(fit(*options, "--from", "9e18", "--json"))["curves"][0]
    assert [b["compute"] for b in dearer["budgets"]] == pytest.approx([1e19, 1e20])
    assert "A forecast 1.0e+07 times beyond the largest budget of the law" in fit(*options, "--at", "1e27").stderr
    assert "A forecast" not in fit(*options, "--at", "1e21").stderr


def test_a_budget_whose_best_size_was_not_measured_has_no_number_for_it(fit: Run, tmp_path: Path) -> None:
    """The optimum lies above the sizes of the first, below those of the second; the third has none."""
    c = np.repeat([1e18, 1e19, 1e20], 6)
    step = np.tile(np.arange(6.0), 3)
    loss = np.concatenate(
        [3 - 0.2 * step[:6] + 0.01 * step[:6] ** 2, 3 + 0.2 * step[6:12], 3 - 0.01 * (step[12:] - 2.5) ** 2]
    )
    pd.DataFrame({"c": c, "n": 1e6 * 2**step, "loss": loss}).to_csv(tmp_path / "iso.csv", index=False)
    options = (str(tmp_path / "iso.csv"), "--form", "isoflop", "--x", "c", "--n", "n", "--y", "loss", *FEW)
    (budgets,) = tables(fit(*options).stdout)
    assert [row[""] for row in budgets] == [
        "above its largest size",
        "below its smallest size",
        "its profile has no minimum",
    ]
    assert {row[name] for row in budgets for name in ("best size", "95% low", "95% high", "value there")} == {""}
    told = answer(fit(*options, "--json"))["curves"][0]["budgets"]
    assert [(b["best_size"], b["value"], b["interval"], b["at_edge"]) for b in told] == 3 * [(None, None, None, True)]


def test_a_parameter_that_is_not_identified_has_no_number(fit: Run, tmp_path: Path) -> None:
    """Losses that do not fall: any small exponent fits them as well."""
    loss = 2 * np.exp(0.05 * np.random.default_rng(1).standard_normal(12))
    pd.DataFrame({"x": np.geomspace(1e3, 1e5, 12), "loss": loss}).to_csv(tmp_path / "p.csv", index=False)
    options = (str(tmp_path / "p.csv"), "--x", "x", "--y", "loss", "--form", "power", *FEW)
    parameters = {row["parameter"]: row for row in tables(fit(*options).stdout)[1]}
    assert (parameters["c"]["value"], parameters["c"][""]) == ("", "not identified")
    (curve,) = answer(fit(*options, "--json"))["curves"]
    assert curve["parameters"]["c"]["value"] is None
    assert curve["parameters"]["c"]["identified"] is False


def test_three_points_are_printed_themselves_and_have_no_band(fit: Run, tmp_path: Path) -> None:
    pd.DataFrame({"x": [1, 10, 100], "acc": [0.1, 0.3, 0.4]}).to_csv(tmp_path / "p.csv", index=False)
    result = fit(str(tmp_path / "p.csv"), "--x", "x", "--y", "acc", "--form", "saturating")
    assert "3 independent runs, and a bootstrap needs 6: no interval." in result.stderr
    assert "Only 3 distinct points" in result.stderr
    assert [row["mean"] for row in tables(result.stdout)[-1]] == ["0.9", "0.7", "0.6"]


def test_a_range_leaves_rows_out_and_says_so(fit: Run, csv_file: Path) -> None:
    result = fit(
        str(csv_file), "--x", "flops", "--y", "accuracy", "--form", "power", "--from", "1e5", "--to", "1e8", *FEW
    )
    assert "6 rows left out by --from and --to." in result.stderr
    law = tables(result.stdout)[0][0]
    assert (float(law["from"]), float(law["to"])) == (pytest.approx(1.52e5, rel=0.01), pytest.approx(8.11e7, rel=0.2))


def test_the_selftest_passes_and_fails_with_exit_1(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = fit("--selftest")
    assert result.exit_code == DONE
    rows = tables(result.stdout)[0]
    assert {row["verdict"] for row in rows} == {"pass"}
    assert {row["law"] for row in rows} >= {"parametric (loss)", "m4 (error)", "OLMo ladder"}
    monkeypatch.setattr("vitscale.analysis.selftest.PUBLISHED", {"alpha": 0.2})
    failed = fit("--selftest", "--json")
    assert failed.exit_code == BUG
    assert [c["quantity"] for c in json.loads(failed.stdout)["checks"] if not c["passed"]] == ["alpha"]


def test_rows_without_test_images_are_left_out_and_counted(fit: Run, csv_file: Path) -> None:
    rows = pd.read_csv(csv_file)
    rows.loc[3, "n_test"] = np.nan
    rows.to_csv(csv_file, index=False)
    found = answer(fit(str(csv_file), "--x", "flops", "--y", "accuracy", "--form", "power", "--json"))
    assert found["curves"][0]["points"] == 11
    assert [fact["text"] for fact in found["facts"]] == ["1 row left out without a number in n_test."]
    assert "unweighted" not in {fact["kind"] for fact in found["curves"][0]["facts"]}


def test_as_many_parameters_as_points_forecast_without_an_interval(fit: Run, tmp_path: Path) -> None:
    path = tmp_path / "five.csv"
    path.write_text("x,acc,n_test\n1e18,.5,1000\n1e19,.6,1000\n1e20,.7,1000\n1e21,.75,1000\n1e22,.76,1000\n")
    (curve,) = answer(fit(str(path), "--x", "x", "--y", "acc", "--form", "m4", "--at", "1e23", "--json"))["curves"]
    assert curve["interval"] == "none"
    assert curve["forecasts"][0]["law"] is None
    assert curve["forecasts"][0]["run"] is None
    assert not any(one["identified"] for one in curve["parameters"].values())


def test_a_forecast_that_no_error_can_be_is_said(fit: Run, csv_file: Path) -> None:
    found = answer(fit(str(csv_file), "--x", "flops", "--y", "accuracy", "--form", "power", "--at", "1e-9", "--json"))
    facts = {fact["kind"]: fact["text"] for fact in found["curves"][0]["facts"]}
    assert "no error can" in facts["impossible"]
    assert "below the smallest measured point" in facts["extrapolation"]


def test_a_given_form_says_how_it_foresees_the_dearest(fit: Run, csv_file: Path) -> None:
    found = fit(str(csv_file), "--x", "flops", "--y", "accuracy", "--form", "power")
    (row,) = (row for row in tables(found.stdout)[2] if row["fitted"] == "without the dearest (3)")
    assert row["misses those left out by"].endswith(" points")
    few = fit(str(csv_file), "--x", "flops", "--y", "accuracy", "--form", "broken", "--to", "1e6")
    assert "too few points to hold some out" in few.stdout


def test_a_curve_of_rows_without_a_name_is_called_so(fit: Run, csv_file: Path) -> None:
    rows = pd.read_csv(csv_file)
    rows["kind"] = ["a", None] * 6
    rows.to_csv(csv_file, index=False)
    found = answer(fit(str(csv_file), "--x", "flops", "--y", "accuracy", "--by", "kind", "--form", "power", "--json"))
    assert [curve["curve"] for curve in found["curves"]] == ["a", "no kind"]
