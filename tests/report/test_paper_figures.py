from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from vitscale.analysis.curves import curves
from vitscale.report import figures
from vitscale.report.paper import table

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
    assert drawn.get_supxlabel() == "One run a point. All cells with 303M unique images."
    plt.close(drawn)


def test_one_set_size_is_no_axis() -> None:
    assert figures.accuracy_by_set_size(curves(table())) is None
