from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Annotation, Text

from vitscale.analysis.curves import curves
from vitscale.report import figures


@pytest.fixture(scope="module", params=list(figures.FIGURES))
def figure(request: pytest.FixtureRequest, frame: pd.DataFrame) -> Iterator[Figure]:
    drawn = figures.FIGURES[request.param](curves(frame))
    assert drawn is not None
    yield drawn
    plt.close(drawn)


def texts(figure: Figure) -> list[Text]:
    found = figure.findobj(Text)
    return [text for text in found if isinstance(text, Text) and text.get_visible() and text.get_text().strip()]


def test_no_text_covers_another_and_none_is_cut(figure: Figure) -> None:
    figure.draw_without_rendering()
    # A label's leader may cross a marker, so only the text's own box counts.
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts(figure)]
    shown = [(name, box) for name, box in boxes if box.width > 0 and not _off_axis(name, box, figure)]
    page = figure.bbox
    for name, box in shown:
        assert box.x0 >= -1, name
        assert box.x1 <= page.x1 + 1, name
        assert box.y0 >= -1, name
        assert box.y1 <= page.y1 + 1, name
    for (one, first), (other, second) in combinations(shown, 2):
        assert not first.padded(-1).overlaps(second.padded(-1)), f"{one!r} covers {other!r}"


def _off_axis(name: str, box: object, figure: Figure) -> bool:
    """Tick labels beyond the axis' limits exist as objects and are not drawn."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                outside = not low <= tick.get_loc() <= high
                if (
                    outside
                    and tick.label1.get_text() == name
                    and Text.get_window_extent(tick.label1).bounds == box.bounds
                ):  # type: ignore[attr-defined]
                    return True
    return False


def test_every_line_is_named_at_its_end(figure: Figure) -> None:
    for axes in figure.axes:
        if axes.axison:
            names = [text.get_text() for text in axes.texts if isinstance(text, Annotation)]
            assert {"ViT", "Hybrid", "ResNet"} <= set(names)


def test_set_sizes_are_the_ticks(frame: pd.DataFrame) -> None:
    drawn = figures.accuracy_by_set_size(curves(frame))
    assert drawn is not None
    upstream = drawn.axes[0]
    assert upstream.get_xscale() == "log"
    assert [tick.get_text() for tick in upstream.get_xticklabels()] == ["1k", "4k", "16k", "55k"]
    titles = [axes.get_title(loc="left") for axes in drawn.axes if axes.axison]
    assert titles[0] == "Upstream, test set"
    assert titles[1:] == [f"digits, {n} shot{'s' * (n > 1)} a class" for n in (1, 5, 10)] + ["digits, fine-tuned"]
    plt.close(drawn)


def test_the_drawn_values_are_the_means(frame: pd.DataFrame) -> None:
    found = curves(frame)
    drawn = figures.accuracy_by_set_size(found)
    assert drawn is not None
    want = found.points.query(
        "family == 'vit' and task == 'upstream_test' and metric == 'accuracy' and examples_seen == 880_000"
    ).sort_values("examples")
    line = next(line for line in drawn.axes[0].lines if line.get_color() == "#0072B2" and len(line.get_xdata()) == 4)
    assert list(line.get_xdata()) == list(want["examples"])
    assert list(line.get_ydata()) == pytest.approx(list(100 * want["value"]))
    plt.close(drawn)


def test_compute_is_drawn_for_the_full_set_only(frame: pd.DataFrame) -> None:
    drawn = figures.accuracy_by_flops(curves(frame))
    assert drawn is not None
    lines = [line for line in drawn.axes[0].lines if line.get_marker() in ("o", "s", "^")]
    assert [len(line.get_xdata()) for line in lines] == [3, 3, 3]
    assert "55k unique images" in drawn.get_supxlabel()
    plt.close(drawn)


def test_nothing_measured_draws_nothing(frame: pd.DataFrame) -> None:
    nothing = curves(frame[frame["status"] == "failed"])
    assert [draw(nothing) for draw in figures.FIGURES.values()] == [None, None, None]


@pytest.mark.parametrize("kept", ["vit", "hybrid"])
def test_a_study_with_a_single_cell_is_drawn(frame: pd.DataFrame, kept: str) -> None:
    few = frame[(frame["family"] == kept) & (frame["seed"] == 0) & (frame["examples"] == 1000)]
    drawn = figures.accuracy_by_set_size(curves(few))
    assert drawn is not None
    drawn.draw_without_rendering()
    plt.close(drawn)


def test_files_are_made_for_paper_and_screen_and_repeat_to_the_byte(frame: pd.DataFrame, tmp_path: Path) -> None:
    contents = []
    few = curves(frame[frame["shots"].isna() | (frame["shots"] == 1)])
    for folder in (tmp_path / "one", tmp_path / "two"):
        drawn = figures.upstream_vs_downstream(few)
        assert drawn is not None
        paths = figures.save(drawn, folder, "figure")
        plt.close(drawn)
        assert [path.name for path in paths] == ["figure.png", "figure.svg", "figure.pdf"]
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    assert imread(paths[0]).shape[1] == 1800
