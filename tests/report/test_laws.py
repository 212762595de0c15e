from collections.abc import Callable
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from vitscale.analysis.curves import PLANNED, curves
from vitscale.analysis.fits import fit
from vitscale.analysis.forms import FORMS
from vitscale.analysis.intervals import Sample
from vitscale.report import figures, fitted, laws
from vitscale.report.doubts import doubts
from vitscale.report.labels import LEADER


def law_frame(exponent: float) -> pd.DataFrame:
    x = [1e18 * 2**i for i in range(8)]
    return pd.DataFrame({
        "flops": x, "value": [1 - 0.3 * (c / 1e18) ** -exponent for c in x], "trunk_id": [f"run{i}" for i in range(8)],
        "n_test": 10_000, "family": "vit", "model": "ViT-B/16", "variant": "",
    })  # fmt: skip


def test_a_law_with_a_floor_says_so_also_where_that_is_0() -> None:
    law = fitted.law_of(law_frame(0.25))
    assert law is not None
    points = law.fit.observations
    floored = fit(FORMS["saturating"], points)
    assert floored.parameters["a"] < 1e-6
    wide = replace(
        law, fit=floored, drawn=Sample(floored, "bootstrap", floored.theta[None].repeat(9, 0), 8), profiles={}
    )
    assert laws.equation(wide).startswith("0 + 0.17 (C/10¹⁹)⁻⁰·²⁵")


def test_equations_of_many_laws_leave_the_data_their_room() -> None:
    for number in (2, laws.EQUATIONS, 9):
        figure, axes = plt.subplots()
        axes.set_yscale("log")
        axes.set_ylim(1, 10)
        laws._write_equations(axes, [(f"law {i}", "#000000") for i in range(number)])
        top = max(text.get_position()[1] for text in axes.texts) + 0.06
        assert axes.transAxes.inverted().transform(axes.transData.transform((0, 1)))[1] > top
        assert len(axes.texts) == (number if number <= laws.EQUATIONS else 1)
        plt.close(figure)


def test_a_law_is_that_of_the_points_and_its_equation_says_so() -> None:
    law = fitted.law_of(law_frame(0.25))
    assert law is not None
    assert law.fit.parameters["c"] == pytest.approx(0.25, abs=1e-4)
    assert laws.equation(law).startswith("0.17 (C/10¹⁹)⁻⁰·²⁵ [0.25, 0.25]")
    assert law.end == pytest.approx(law.high * 10)


def test_the_law_of_several_models_is_that_of_the_best() -> None:
    best = law_frame(0.25)
    worse = best.assign(model="ViT-B/32", value=1 - 1.5 * (1 - best["value"]), flops=1.01 * best["flops"])
    law = fitted.law_of(pd.concat([worse, best.assign(trunk_id=best["trunk_id"] + "b")]))
    assert law is not None
    assert law.fit.predict(np.array([[1e19]]))[0] == pytest.approx(0.3 * 10**-0.25, rel=1e-3)
    assert law.fit.observations.cluster_count == 8
    # Of one model all runs count, also a longer one that came out worse.
    alone = best.assign(value=[0.5, 0.6, 0.59, 0.7, 0.69, 0.8, 0.79, 0.9])
    law = fitted.law_of(alone)
    assert law is not None
    assert law.fit.observations.cluster_count == 8


def test_a_line_without_a_law_is_named_beside_those_that_have_one(frame: pd.DataFrame) -> None:
    rises = (frame["family"] == "resnet") & (frame["task"] == "upstream_test") & (frame["metric"] == "accuracy")
    worse = frame.assign(value=frame["value"].where(~rises, 0.9 - 1e-7 * frame["examples_seen"].astype(float)))
    told = {note.text: note.details for note in doubts(curves(worse))}
    ((text, details),) = [(text, told[text]) for text in told if "without a law" in text]
    assert text.startswith("1 line without a law: fewer than three computes")
    assert details == ("Upstream, test set, ResNet",)


def test_errors_that_do_not_fall_or_are_too_few_have_no_law() -> None:
    assert fitted.law_of(law_frame(-0.1)) is None
    assert fitted.law_of(law_frame(0.25)[:2]) is None


def test_beyond_the_data_a_law_is_dashed(drawn: Callable[[str], Figure], frame: pd.DataFrame) -> None:
    points = curves(frame).points
    measured = points.loc[points["family"] == "vit", "flops"].max()
    blue = [
        line
        for line in drawn("error_by_flops").axes[0].lines
        if line.get_color() == "#0072B2" and line.get_gid() != LEADER
    ]
    solid, dashed = sorted(blue, key=lambda line: max(line.get_xdata()))
    assert max(solid.get_xdata()) <= measured * 1.001 < min(dashed.get_xdata())
    assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")


def test_planned_runs_are_hollow_where_the_law_sees_them_up_to_its_end(frame: pd.DataFrame) -> None:
    found = curves(frame)
    law = fitted.fitted(found).laws["upstream_test", "pretrain", None]["vit", ""]
    planned = [("vit", 55_000, law.high * 2), ("vit", 55_000, law.high * 2), ("vit", 55_000, law.end * 2)]
    planned += [("vit", 16_000, law.high * 3), ("mixer", 55_000, law.high)]
    drawn = figures.error_by_flops(replace(found, planned=pd.DataFrame(planned, columns=PLANNED)))
    assert drawn is not None
    hollow = [
        tuple(map(float, at))
        for points in drawn.axes[0].collections
        if isinstance(points, PathCollection) and to_hex(points.get_facecolor()[0]) == "#ffffff"
        for at in points.get_offsets()
    ]
    assert hollow == [pytest.approx((law.high * 2, 100 * law.fit.predict(np.array([[law.high * 2]]))[0]))]
    assert "Hollow: predicted, of planned runs." in " ".join(drawn.get_supxlabel().split())
    plt.close(drawn)


@pytest.mark.parametrize("name", ["error_by_flops", "frontier_by_flops"])
def test_errors_carry_the_spread_of_their_seeds(name: str, drawn: Callable[[str], Figure], frame: pd.DataFrame) -> None:
    points = curves(frame).points.query("task == 'upstream_test' and metric == 'accuracy' and examples == 55_000")
    ends = {
        (round(float(one[0, 1]), 6), round(float(one[1, 1]), 6))
        for bars in drawn(name).axes[0].collections
        if isinstance(bars, LineCollection)
        for one in bars.get_segments()
    }
    error, sd = 100 * (1 - points["value"]), 100 * points["sd"]
    assert {(round(e - s, 6), round(e + s, 6)) for e, s in zip(error, sd, strict=True)} <= ends
    assert "Bars: ± 1 sd over seeds." in drawn(name).get_supxlabel()


def test_the_frontier_joins_what_nothing_cheaper_equals(frame: pd.DataFrame) -> None:
    found = curves(frame)
    drawn = figures.frontier_by_flops(found)
    assert drawn is not None
    (step,) = [line for line in drawn.axes[0].lines if line.get_gid() != LEADER]
    points = found.points.query("task == 'upstream_test' and metric == 'accuracy'").sort_values("flops")
    best = points[points["value"] > points["value"].cummax().shift(fill_value=0)]
    assert list(step.get_xdata()) == list(best["flops"])
    assert list(step.get_ydata()) == pytest.approx(list(100 * (1 - best["value"])))
    plt.close(drawn)


def profiles(frame: pd.DataFrame) -> pd.DataFrame:
    """Four sizes at each of two computes, the best between the second and the third."""
    vit = frame[(frame["family"] == "vit") & (frame["examples"] == 55_000) & (frame["examples_seen"] == 880_000)]
    vit = vit[vit["protocol"] == "pretrain"]
    parts = [
        vit.assign(
            model=f"ViT-{size}", params_total=10 ** (6 + size), flops_standalone=budget * 1e15,
            run_id=vit["run_id"] + f"{size}{budget}", examples_seen=budget,
            value=0.8 + 0.05 * budget - 0.02 * (size - 1.5) ** 2,
        )
        for size in range(4) for budget in (1, 2)
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def test_isoflop_panels_have_a_parabola_for_each_compute_with_four_sizes(frame: pd.DataFrame) -> None:
    alone = profiles(frame)
    drawn = figures.isoflop_panels(curves(alone))
    assert drawn is not None
    crosses = [line.get_xdata()[0] for line in drawn.axes[0].lines if line.get_marker() == "x"]
    assert crosses == pytest.approx([10**7.5, 10**7.5], rel=1e-3)
    plt.close(drawn)
    worse = alone.assign(value=alone["value"] - 0.3)
    other = worse.assign(family="resnet", model="R" + worse["model"].str[-1], run_id="r" + worse["run_id"])
    fewer = worse.assign(examples=1000, run_id="f" + worse["run_id"])
    several = curves(pd.concat([alone, other, fewer], ignore_index=True))
    drawn = figures.isoflop_panels(several)
    assert drawn is not None
    assert [axes.get_title(loc="left") for axes in drawn.axes] == [
        "Upstream, test set, ResNet",
        "Upstream, test set, ViT",
    ]
    assert "Runs with 55k unique images" in str(drawn.get_supxlabel())
    for axes, low in zip(drawn.axes, (20.0, 0.0), strict=True):
        heights = [offset[1] for points in axes.collections for offset in points.get_offsets()]
        assert low < min(heights)
        assert max(heights) < low + 35
    plt.close(drawn)


def perfect(frame: pd.DataFrame, dearest: float) -> pd.DataFrame:
    """Fine-tuning alone, without any error after so many images or more: a logarithmic axis has no place for that."""
    few = frame[frame["protocol"].isin(["pretrain", "finetune"])]
    seen = (
        few["parent_id"]
        .fillna(few["run_id"])
        .map(few.dropna(subset=["examples_seen"]).groupby("run_id")["examples_seen"].max())
    )
    done = (few["protocol"] == "finetune") & (few["role"] == "cell") & (seen >= dearest)
    assert done.any()
    return few.assign(value=few["value"].mask(done, 1.0))


@pytest.mark.parametrize("name", ["error_by_flops", "frontier_by_flops"])
@pytest.mark.parametrize("dearest", [3_000_000, 0])
def test_errors_of_zero_are_drawn_on_the_axis_and_said(frame: pd.DataFrame, name: str, dearest: float) -> None:
    figure = figures.FIGURES[name](curves(perfect(frame, dearest)))
    assert figure is not None
    if dearest:
        assert [line for axes in figure.axes for line in axes.lines if line.get_gid() == "zero"]
        assert "no error at all" in figure._supxlabel.get_text().replace("\n", " ")  # type: ignore[attr-defined]
    plt.close(figure)


def test_a_line_without_a_law_that_ends_without_an_error_is_named_within_its_panel(frame: pd.DataFrame) -> None:
    tuned = (frame["family"] == "resnet") & (frame["protocol"] == "finetune") & (frame["role"] == "cell")
    found = curves(frame.assign(value=frame["value"].mask(tuned, 1.0)))
    assert ("resnet", "") not in fitted.fitted(found).laws["digits", "finetune", None]
    figure = figures.error_by_flops(found)
    assert figure is not None
    for axes in figure.axes:
        low, high = axes.get_ylim()
        ends = [text.xy[1] for text in axes.texts if isinstance(text, Annotation)]
        assert len(ends) == 3
        assert low <= min(ends) <= max(ends) <= high
    plt.close(figure)


def test_an_equation_has_no_number_that_the_data_do_not_identify() -> None:
    flat = law_frame(0.02).assign(value=[0.7, 0.72, 0.69, 0.71, 0.73, 0.7, 0.72, 0.715], n_test=200)
    law = fitted.law_of(flat)
    assert law is not None
    assert "c" in law.open
    text = laws.equation(law)
    assert "not identified: " in text
    assert not any(digit in text for digit in "0123456789")


def test_an_exponent_whose_interval_reaches_its_bound_is_no_number_of_an_equation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    law = fitted.law_of(law_frame(0.25))
    assert law is not None
    assert not law.open
    drawn = law.drawn.theta.copy()
    drawn[::2, law.fit.form.parameters.index("c")] = 0.0
    monkeypatch.setattr(fitted, "sample", lambda found, **_: Sample(found, "bootstrap", drawn, 8))
    doubtful = fitted.law_of(law_frame(0.25))
    assert doubtful is not None
    assert doubtful.open == ["b", "c"]  # at x = 1 the coefficient has the exponent's doubt
    assert "not identified: b, c" in laws.equation(doubtful)


def test_the_box_says_what_to_doubt_of_the_laws_that_are_drawn(frame: pd.DataFrame) -> None:
    found = curves(perfect(frame, 3_000_000))
    found = replace(found, fitted=fitted.fitted(found))
    drawn = [law for of_lines in found.fitted.laws.values() for law in of_lines.values()]
    few = sum(law.fit.observations.place_count < 4 for law in drawn)
    told = doubts(found)
    texts = [note.text for note in told]
    assert f"{few} of the {len(drawn)} laws drawn go through fewer than four computes, and say little." in texts
    assert any("dashed beyond the largest run" in text for text in texts)
    (zeros,) = [text for text in texts if "without any error" in text]
    assert zeros.endswith("as triangles at the bottom of logarithmic axes, the chart has no place for them there.")
    assert any(detail.endswith("3 computes") for note in told for detail in note.details)


@pytest.mark.parametrize("perfect_budgets", [(2,), (1, 2)])
def test_runs_of_a_profile_without_any_error_stand_on_the_axis(
    frame: pd.DataFrame, perfect_budgets: tuple[int, ...]
) -> None:
    rows = profiles(frame)
    at_best = (rows["params_total"] == 10**8) & rows["examples_seen"].isin(perfect_budgets)
    some = rows.assign(value=rows["value"].mask(at_best, 1.0))
    drawn = figures.isoflop_panels(curves(some))
    assert drawn is not None
    drawn.draw_without_rendering()
    zeros = [line for line in drawn.axes[0].lines if line.get_gid() == "zero"]
    assert len(zeros) == len(perfect_budgets)
    assert all(set(line.get_xdata()) == {10**8} for line in zeros)
    assert "Open triangles on the axis: no error at all." in " ".join(drawn.get_supxlabel().split())
    plt.close(drawn)
    assert figures.isoflop_panels(curves(rows.assign(value=1.0))) is None
