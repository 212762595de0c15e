from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from vitscale.analysis.curves import Curves, curves
from vitscale.report import figures
from vitscale.report.lines import GREY
from vitscale.report.paper import overlay, overlay_note, table

PRINTED = Path(__file__).parent.parent.parent / "vitscale" / "reference" / "vit_table6.csv"


def test_every_number_of_table_6_is_a_row() -> None:
    rows, printed = table(), pd.read_csv(PRINTED)
    assert len(rows) == 18 * 7
    large = rows[rows["run_id"] == "ViT-L/16, 14 epochs"].set_index("task")
    assert large["value"]["ImageNet"] == pytest.approx(0.8712)
    assert set(large["flops_standalone"]) == {1567e18}
    assert set(large["examples_seen"]) == {303_000_000 * 14}
    row = printed[(printed["name"] == "ViT-L/16") & (printed["epochs"] == 14)].iloc[0]
    five = row[["imagenet", "cifar10", "cifar100", "pets", "flowers"]].astype(float).mean() / 100
    assert large["value"]["Average of five"] == pytest.approx(five)


def test_figure_5_is_drawn_with_the_average_first_and_larger_models_larger() -> None:
    found = curves(table())
    drawn = figures.accuracy_by_flops(found)
    assert drawn is not None
    assert drawn.axes[0].get_title(loc="left") == "Average of five, fine-tuned"
    markers = {float(offset[0]): float(size) for points in drawn.axes[0].collections if hasattr(points, "get_sizes")
               for offset, size in zip(points.get_offsets(), list(points.get_sizes()) * 9, strict=False)}  # fmt: skip
    assert set(markers) == {float(flops) for flops in table()["flops_standalone"].unique()}
    assert " ".join(drawn.get_supxlabel().split()) == (
        "One run a point. All cells with 303M unique images. Faint: something smaller along x is as good. "
        "Larger markers: more parameters."
    )
    plt.close(drawn)


def test_one_set_size_is_no_axis() -> None:
    assert figures.accuracy_by_set_size(curves(table())) is None


@pytest.fixture(scope="module")
def on_cifar(frame: pd.DataFrame) -> Curves:
    """The made-up study, had it been fine-tuned on a task of the paper's, with its tables."""
    found = curves(frame.assign(task=frame["task"].replace("digits", "CIFAR_10")))
    return replace(found, theirs=overlay(found.points))


def grey(axes: Axes) -> set[tuple[float, float]]:
    """Published points."""
    return {
        (float(x), float(y))
        for points in axes.collections
        if isinstance(points, PathCollection) and to_hex(points.get_facecolor()[0][:3]) == GREY.lower()
        for x, y in points.get_offsets()
    }


def test_the_paper_s_tables_lie_over_the_tasks_that_they_have(on_cifar: Curves) -> None:
    by_size = figures.accuracy_by_set_size(on_cifar)
    by_flops = figures.accuracy_by_flops(on_cifar)
    laws = figures.error_by_flops(on_cifar)
    assert by_size is not None
    assert by_flops is not None
    assert laws is not None
    *others, tuned = by_size.axes[:5]
    assert [grey(axes) for axes in others] == [set()] * 4
    assert len(grey(tuned)) == 5 + 5 + 4  # Table 5 has no ViT-H/14 on ImageNet
    assert (303e6, 99.50) in {(x, round(y, 6)) for x, y in grey(tuned)}
    assert len(grey(by_flops.axes[4])) == len(grey(laws.axes[4])) == 18
    assert (4262e18, 0.5) in {(x, round(y, 6)) for x, y in grey(laws.axes[4])}
    assert "Grey: the paper's own, arXiv 2010.11929v2, Table 6." in by_flops.get_supxlabel()
    names = {text.get_text() for text in tuned.texts}
    assert {"ViT", "ViT-L/16, paper"} <= names
    plt.close("all")


def test_without_a_common_task_nothing_of_the_paper_s_is_drawn_and_that_is_said(frame: pd.DataFrame) -> None:
    theirs = overlay(curves(frame).points)
    assert theirs.empty
    assert "no task here is one" in overlay_note(theirs).text
    assert "CIFAR-10" in overlay_note(theirs).details
