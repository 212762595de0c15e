from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vitscale.analysis.measured import measured
from vitscale.analysis.residuals import Binomial, LogLoss
from vitscale.analysis.tables import Columns, curves_of
from vitscale.errors import VitscaleError

XY = Columns(inputs=("x",), y="acc")


def table(**columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame({"x": [1.0, 10.0, 100.0], "acc": [0.5, 0.6, 0.7], **columns})


@pytest.mark.parametrize(
    ("frame", "columns", "says"),
    [
        (table(), Columns(inputs=("flops",), y="acc"), "no column 'flops'"),
        (table(), Columns(inputs=("x",), y="acc", by=("family",)), "no column 'family'"),
        (table(x=[1, 2, "many"]), XY, "column 'x' is not numeric: row 3 holds 'many'"),
        (table(x=pd.date_range("2020-10-22", periods=3)), XY, "column 'x' is not numeric: row 1 holds '2020-10-22'"),
        (table(x=[1, 0, -2]), XY, "column 'x' is 0 or negative in 2 rows, e.g. 0"),
        (table(x=[7, 7, 7]), XY, "every x is 7, and a curve needs several"),
        (table(acc=[0.5, 0.5, 0.5]), XY, "every acc is 0.5: there is no curve in it"),
        (table(n_test=[10, 0, 10]), XY, "column 'n_test' is 0 or negative in 1 row"),
        (table()[:1], XY, "1 point, and a curve needs two or more"),
        (table()[:0], XY, "the table has no rows"),
        (table(acc=[np.nan] * 3), XY, "0 points"),
        (table(acc=[0.5, -0.1, 0.7]), XY, "an accuracy lies between 0 and 1, and 1 row is not"),
        (table(acc=[50, 60, 101]), XY, "an accuracy lies between 0 and 100, and 1 row is not"),
        (table(loss=[2.0, 0.0, 1.0]), Columns(inputs=("x",), y="loss"), "a loss is above 0, and 1 row is not"),
        (table(loss=[3e300, 2e300, 1.0]), Columns(inputs=("x",), y="loss"), "a loss lies between 1e-50 and 1e+50, and 2 rows are not"),
        (table(loss=[3e-300, 2.0, 1.0]), Columns(inputs=("x",), y="loss"), "a loss lies between 1e-50 and 1e+50, and 1 row is not"),
        (table(top=[80.0, 81.0, 82.0]), Columns(inputs=("x",), y="top"), "'top' does not say what they are"),
        (table(metric=["accuracy", "loss", "loss"]), XY, "rows of one curve differ in metric accuracy, loss"),
        (table(task_version=[1, 1, 2]), XY, "rows of one curve differ in task_version 1, 2"),
        (table(runs=[[1], [2], [3]]), Columns(inputs=("x",), y="acc", by=("runs",)), "column 'runs' holds lists"),
        (table(runs=[[1], [2], [3]]), Columns(inputs=("x",), y="acc", cluster="runs"), "column 'runs' holds lists"),
        (table(shots=[1, None, None]), XY, "rows of one curve differ in shots 1.0, none"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused(frame: pd.DataFrame, columns: Columns, says: str) -> None:
    with pytest.raises(VitscaleError) as caught:
        curves_of(frame, columns)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_column_s_hint_names_those_there_are() -> None:
    with pytest.raises(VitscaleError) as caught:
        curves_of(table(), Columns(inputs=("X",), y="acc"))
    assert "there are: x, acc" in str(caught.value)


@pytest.mark.parametrize("any_by", [True, False])
def test_a_hint_names_no_option_that_is_not_there(any_by: bool) -> None:
    with pytest.raises(VitscaleError) as caught:
        curves_of(table(task=["a", "a", "b"]), Columns(inputs=("x",), y="acc", any_by=any_by))
    assert ("or give --by task" in str(caught.value)) is any_by
    assert "--where \"task == 'a'\"" in str(caught.value)


def test_rows_without_a_number_are_left_out_and_counted() -> None:
    found, facts = curves_of(table(acc=[0.5, None, 0.7]), XY)
    assert len(found[0].observations) == 2
    assert [(fact.kind, fact.text[:20]) for fact in facts] == [("nan_rows", "1 row left out witho")]


def test_a_row_is_named_by_its_number_in_the_whole_table() -> None:
    frame = pd.DataFrame({"x": [1.0, 1, 2, 2, 3, 3], "acc": [None, 0.1, 0.2, 0.2, 0.3, 0.3], "family": ["a", "b"] * 3})
    curves, _ = curves_of(frame, Columns(inputs=("x",), y="acc", by=("family",)))
    assert [curve.labels for curve in curves] == [("row 3", "row 5"), ("row 2", "row 4", "row 6")]
    named = frame[1:].set_index("family")
    assert curves_of(named, Columns(inputs=("x",), y="acc"))[0][0].labels[0] == "row 1"
    with pytest.raises(VitscaleError, match="row 5 holds 'many'"):
        curves_of(frame.assign(x=[1, 1, 2, 2, "many", 3])[3:], Columns(inputs=("x",), y="acc"))


@pytest.mark.parametrize(
    ("family", "v", "names"),
    [
        ([None, "b", "c"], ["b", None, "x"], ["b, no v", "c, x", "no family, b"]),
        ([None, "b", "c"], ["a", None, None], ["b", "c", "a"]),
        (["a, b", "a", "c"], ["c", "b, c", "x"], ["family 'a', v 'b, c'", "family 'a, b', v 'c'", "family 'c', v 'x'"]),
        (["", None, "c"], ["", None, "x"], ["no family or v", "c, x"]),
    ],
)
def test_no_two_curves_have_one_name(family: list[str | None], v: list[str | None], names: list[str]) -> None:
    frame = pd.concat([table().assign(family=one, v=other) for one, other in zip(family, v, strict=True)])
    found, _ = curves_of(frame, Columns(inputs=("x",), y="acc", by=("family", "v")))
    assert sorted(curve.name for curve in found) == sorted(names)
    assert sum(len(curve.observations) for curve in found) == 9


def test_rows_that_name_no_cluster_stand_alone_and_are_counted() -> None:
    frame = pd.concat([table(), table()], ignore_index=True).assign(trunk=["a", "a", None, "", "b", None])
    ((curve,), _) = curves_of(frame, Columns(inputs=("x",), y="acc", cluster="trunk"))
    assert curve.observations.cluster_count == 5
    (fact,) = [fact for fact in curve.facts if fact.kind == "no_cluster"]
    assert fact.text == "3 rows without a value in trunk: each counts as independent."
    ((curve,), _) = curves_of(frame[:2], Columns(inputs=("x",), y="acc", cluster="trunk"))
    assert "no_cluster" not in {fact.kind for fact in curve.facts}


def test_a_family_with_one_point_is_left_out_and_said() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0], "acc": [0.1, 0.2, 0.3], "family": ["a", "a", "b"]})
    found, facts = curves_of(frame, Columns(inputs=("x",), y="acc", by=("family",)))
    assert [curve.name for curve in found] == ["a"]
    assert facts[0].text == "b: 1 point, and a curve needs two or more."


@pytest.mark.parametrize(
    ("name", "values", "what", "fitted"),
    [
        ("acc", [0.5, 0.6, 0.7], "error = 1 - acc", 0.5),
        ("acc", [50.0, 60.0, 70.0], "error = 1 - acc/100", 0.5),
        ("test_error", [0.2, 0.1, 0.05], "error = test_error", 0.2),
        ("loss", [3.0, 2.5, 2.0], "loss", 3.0),
        ("whatever", [0.9, 0.8, 0.7], "error = 1 - whatever", 0.1),
    ],
)
def test_what_y_is(name: str, values: list[float], what: str, fitted: float) -> None:
    found, _ = curves_of(pd.DataFrame({"x": [1.0, 2.0, 3.0], name: values}), Columns(inputs=("x",), y=name))
    assert found[0].what == what
    assert found[0].observations.y[0] == pytest.approx(fitted)
    assert isinstance(found[0].observations.residuals, LogLoss if name == "loss" else Binomial)


def test_the_metric_column_says_what_a_value_is() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0], "value": [0.9, 0.8], "metric": ["loss", "loss"]})
    found, _ = curves_of(frame, Columns(inputs=("x",), y="value"))
    assert isinstance(found[0].observations.residuals, LogLoss)


@pytest.mark.parametrize(("metric", "loss"), [("error_rate", False), ("top1", False), ("val_nll", True)])
def test_the_metric_column_s_word_counts_like_a_column_s_name(metric: str, loss: bool) -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0], "value": [0.3, 0.2], "metric": metric})
    (curve,), _ = curves_of(frame, Columns(inputs=("x",), y="value"))
    assert isinstance(curve.observations.residuals, LogLoss) is loss
    assert curve.observations.y[0] == pytest.approx(0.7 if metric == "top1" else 0.3)


@pytest.mark.parametrize("missing", [float("inf"), 999.0])
def test_what_cannot_be_a_percentage_makes_none_of_the_others(missing: float) -> None:
    table = pd.DataFrame({"flops": [1.0, 2.0, 4.0, 8.0], "accuracy": [0.5, 0.6, 0.7, missing]})
    (curve,), _ = curves_of(table[table["accuracy"] < 1], Columns(inputs=("flops",), y="accuracy"), whole=table)
    assert curve.observations.y.tolist() == pytest.approx([0.5, 0.4, 0.3])


@pytest.mark.parametrize(
    ("values", "errors"), [([0.5, 1.0000001, -1e-8], [0.5, 0, 1]), ([50, 100.000001, 0], [0.5, 0, 1])]
)
def test_rounding_makes_no_share_a_percentage_and_is_no_mistake(values: list[float], errors: list[float]) -> None:
    (curve,), _ = curves_of(table(acc=values), XY)
    assert curve.observations.y.tolist() == pytest.approx(errors, abs=0)


def test_what_is_read_as_percent_is_said_once() -> None:
    frame = pd.concat([table(acc=[10, 20, 30], family="a"), table(acc=[40, 50, 98.25], family="b")])
    _, facts = curves_of(frame, Columns(inputs=("x",), y="acc", by=("family",)))
    assert [(fact.kind, fact.text) for fact in facts] == [
        ("percent", "acc is read as percent: it has values up to 98.25.")
    ]
    for shares in (table(), table(acc=[0.5, 0.6, 1.00005])):
        assert curves_of(shares, XY)[1] == []
    assert curves_of(table(loss=[3.0, 2.0, 1.5]), Columns(inputs=("x",), y="loss"))[1] == []


def test_percent_is_of_the_table_and_not_of_a_curve() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0] * 2, "error": [0.9, 0.5, 3.0, 2.0], "family": ["a", "a", "b", "b"]})
    curves, _ = curves_of(frame, Columns(inputs=("x",), y="error", by=("family",)))
    assert [curve.observations.y.tolist() for curve in curves] == [pytest.approx([0.009, 0.005]), [0.03, 0.02]]
    mixed = frame.assign(metric=["accuracy", "accuracy", "loss", "loss"]).rename(columns={"error": "value"})
    curves, _ = curves_of(mixed, Columns(inputs=("x",), y="value", by=("metric",)))
    assert curves[0].observations.y.tolist() == pytest.approx([0.1, 0.5])  # the losses beside them say nothing


def test_a_study_s_transfers_hang_on_their_pre_training_run(frame: pd.DataFrame) -> None:
    rows, facts = measured(frame)
    transfers = rows[rows["protocol"] != "pretrain"]
    assert (transfers["trunk_id"] == transfers["parent_id"]).all()
    assert rows["flops"].notna().all()
    assert not rows.duplicated(["run_id", "task", "protocol", "shots", "metric"]).any()  # draws are averaged
    assert "tuning" not in set(rows["role"])
    assert all(fact.kind in ("excluded", "edge") for fact in facts)


def test_models_that_cheaper_ones_beat_are_named() -> None:
    x = [1e18, 2e18, 4e18, 8e18]
    good = pd.DataFrame({"flops": x, "accuracy": [0.5, 0.6, 0.7, 0.8], "model": "S/16"})
    bad = good.assign(flops=good["flops"] * 1.01, accuracy=good["accuracy"] - 0.1, model="S/32")
    columns = Columns(inputs=("flops",), y="accuracy")
    ((curve,), _) = curves_of(pd.concat([good, bad], ignore_index=True), columns)
    (fact,) = [fact for fact in curve.facts if fact.kind == "surpassed"]
    assert fact.text.startswith("4 of 8 configurations are beaten by another model that is no dearer")
    assert fact.details == ("S/32; --form envelope has the law of the best",)
    ((curve,), _) = curves_of(good, columns)
    assert not [fact for fact in curve.facts if fact.kind == "surpassed"]


def test_copied_rows_are_counted_and_said() -> None:
    rows = table(seed=[0, 1, 2], note=[[1], [2], [3]])  # lists are compared, too
    twice = pd.concat([rows, rows[:2], rows.assign(seed=9)], ignore_index=True)
    ((curve,), _) = curves_of(twice, XY)
    (fact,) = [fact for fact in curve.facts if fact.kind == "copies"]
    assert fact.text.startswith("2 rows are copies of another in every column, and count as independent")
    for columns, frame in ((XY, rows), (Columns(inputs=("x",), y="acc", cluster="seed"), twice)):
        ((curve,), _) = curves_of(frame, columns)
        assert not [fact for fact in curve.facts if fact.kind == "copies"]


def test_a_column_of_lists_that_nobody_named_is_left_alone() -> None:
    for name in ("model", "dataset"):
        ((curve,), _) = curves_of(table(**{name: [[1], [2], [3]]}), XY)
        assert "varies" not in {fact.kind for fact in curve.facts}
