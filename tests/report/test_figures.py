import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from itertools import combinations, pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from fontTools.ttLib import TTFont
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Annotation, Text

from vitscale.analysis.curves import Curves, curves
from vitscale.report import figures, panels
from vitscale.report.labels import LEADER
from vitscale.report.lines import family_styles

TRUETYPE = bytes((0, 1, 0, 0))  # what such a font begins with
OF_NETWORKS = (
    "accuracy_by_params",
    "accuracy_by_patch",
    "isoflop_panels",
)  # of which the made-up study has one a family
NAMED_BY_FAMILY = (
    "accuracy_by_set_size",
    "accuracy_by_flops",
    "error_by_flops",
    "accuracy_by_time",
    "upstream_vs_downstream",
)


@pytest.fixture(params=[name for name in figures.FIGURES if name not in OF_NETWORKS])
def figure(request: pytest.FixtureRequest, drawn: Callable[[str], Figure]) -> Figure:
    return drawn(request.param)


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


@pytest.mark.parametrize("name", NAMED_BY_FAMILY)
def test_every_line_is_named_at_its_end(name: str, drawn: Callable[[str], Figure]) -> None:
    for axes in drawn(name).axes:
        if axes.axison:
            names = [text.get_text().split(",")[0] for text in axes.texts if isinstance(text, Annotation)]
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
    lines = [line for line in drawn.axes[0].lines if line.get_gid() != LEADER]
    assert [len(line.get_xdata()) for line in lines] == [3, 3, 3]
    assert "55k unique images" in drawn.get_supxlabel()
    plt.close(drawn)


def test_nothing_measured_draws_nothing(frame: pd.DataFrame) -> None:
    nothing = curves(frame[frame["status"] == "failed"])
    assert [draw(nothing) for draw in figures.FIGURES.values()] == [None] * len(figures.FIGURES)


@pytest.mark.parametrize("kept", ["vit", "hybrid"])
def test_a_study_with_a_single_cell_is_drawn(frame: pd.DataFrame, kept: str) -> None:
    few = frame[(frame["family"] == kept) & (frame["seed"] == 0) & (frame["examples"] == 1000)]
    drawn = figures.accuracy_by_set_size(curves(few))
    assert drawn is not None
    drawn.draw_without_rendering()
    plt.close(drawn)


def test_the_key_of_models_has_a_place_of_its_own(frame: pd.DataFrame) -> None:
    for shots, panels_and_key in ((None, 3), ((1, 5, 10), 6)):
        some = frame[frame["shots"].isna() if shots is None else frame["shots"].isna() | frame["shots"].isin(shots)]
        drawn = figures.accuracy_by_set_size(curves(some))
        assert drawn is not None
        drawn.draw_without_rendering()
        boxes = [axes.get_window_extent() for axes in drawn.axes]
        plt.close(drawn)
        assert len(boxes) == panels_and_key
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_the_key_shows_each_models_dash_and_the_size_of_its_marker(frame: pd.DataFrame) -> None:
    large = frame[frame["family"] == "vit"].assign(model="ViT-S/4")
    large = large.assign(params_total=large["params_total"].fillna(10_000) * 30, trunk_id=None)
    large = large.assign(run_id="l" + large["run_id"], parent_id="l" + large["parent_id"])
    some = pd.concat([frame.assign(params_total=frame["params_total"].fillna(10_000)), large], ignore_index=True)
    some = some[some["shots"].isna()]
    found = curves(some)
    for name, by_dash in (("accuracy_by_set_size", True), ("accuracy_by_flops", False)):
        drawn = figures.FIGURES[name](found)
        assert drawn is not None
        panel, *_, key = drawn.axes
        shown = {text.get_text(): line for text, line in zip(_names(key), key.get_lines(), strict=True)}
        small, big = (shown[model] for model in ("ViT-nano/4", "ViT-S/4"))
        assert big.get_markersize() > small.get_markersize()
        lines = {line.get_linestyle() for line in panel.get_lines() if line.get_color() == small.get_color()}
        assert (small.get_linestyle() != big.get_linestyle()) == by_dash
        assert {small.get_linestyle(), big.get_linestyle()} <= lines or not by_dash
        plt.close(drawn)


@pytest.mark.parametrize("models", [11, 24])
@pytest.mark.parametrize("name", ["accuracy_by_set_size", "accuracy_by_flops"])
def test_the_key_names_every_model_and_tells_each_from_the_others(frame: pd.DataFrame, name: str, models: int) -> None:
    some = frame[frame["shots"].isna() & (frame["family"] == "vit")]
    sizes = {f"ViT-{'SB'[n % 2]}/{n}": 10**6 * 2 ** (n // 2) for n in range(1, models + 1)}  # two of each
    many = [some.assign(model=model, params_total=size, run_id=some["run_id"] + model,
                        parent_id=some["parent_id"] + model) for model, size in sizes.items()]  # fmt: skip
    drawn = figures.FIGURES[name](curves(pd.concat(many, ignore_index=True)))
    assert drawn is not None
    drawn.draw_without_rendering()
    key = drawn.axes[-1]
    assert {text.get_text() for text in key.texts} == set(sizes)
    boxes = [text.get_window_extent() for text in key.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(drawn.bbox.x0 <= box.x0 and box.x1 <= drawn.bbox.x1 and box.y0 >= 0 for box in boxes)
    inside = {tuple(mark.get_offsets()[0].round(6)): str(mark.get_paths()[0].vertices) for mark in key.collections}
    looks = set()
    for line in key.get_lines():
        middle = line.get_xydata()[len(line.get_xydata()) // 2]
        looks.add((line.get_linestyle(), round(line.get_markersize(), 1), inside.get(tuple(middle.round(6)))))
    assert len(looks) == models
    plt.close(drawn)


def _names(key: Axes) -> list[Text]:
    return [text for text in key.texts if "FLOPs" not in text.get_text()]


def test_files_are_made_for_paper_and_screen_and_repeat_to_the_byte(frame: pd.DataFrame, tmp_path: Path) -> None:
    contents = []
    few = curves(frame[frame["shots"].isna() | (frame["shots"] == 1)])
    for folder in (tmp_path / "one", tmp_path / "two"):
        drawn = figures.upstream_vs_downstream(few)
        assert drawn is not None
        paths = panels.save(drawn, folder, "figure")
        plt.close(drawn)
        assert [path.name for path in paths] == ["figure.png", "figure.svg", "figure.pdf"]
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    assert imread(paths[0]).shape[1] == 1800
    fonts = [TTFont(BytesIO(stream)) for stream in streams(contents[0][2]) if stream.startswith(TRUETYPE)]
    assert {"DejaVuSans"} <= {str(font["name"].getDebugName(6)) for font in fonts}
    assert all({"GSUB", "GPOS"}.isdisjoint(font.keys()) and "glyf" in font for font in fonts)


def streams(pdf: bytes) -> Iterator[bytes]:
    for found in re.finditer(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        with suppress(zlib.error):
            yield zlib.decompress(found[1])


def grown(frame: pd.DataFrame) -> pd.DataFrame:
    """Three sizes and patches of a ViT in place of the study's one, at its largest set."""
    vit = frame[(frame["family"] == "vit") & (frame["examples"] == 55_000)]
    sizes = [("ViT-Ti/8", 8, 1e6, 1.0), ("ViT-Ti/4", 4, 1e6, 2.0), ("ViT-S/4", 4, 6e6, 4.0), ("ViT-B/4", 4, 3e7, 8.0)]
    parts = [
        vit.assign(
            model=name, patch=patch, params_total=int(params), flops_standalone=vit["flops_standalone"] * cost,
            run_id=vit["run_id"] + name, parent_id=vit["parent_id"] + name, value=1 - (1 - vit["value"]) * cost**-0.3,
        )
        for name, patch, params, cost in sizes
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def test_baselines_of_several_models_of_a_family_are_named_by_model(frame: pd.DataFrame) -> None:
    vit = (frame["role"] == "baseline") & (frame["family"] == "vit")
    other = frame[vit].assign(model="ViT-Ti/8", value=0.1, run_id="other " + frame.loc[vit, "run_id"])
    for rows, names in (
        (frame, {"untrained"}),
        (pd.concat([frame, other]), {"untrained", "untrained, ViT-Ti/8", "untrained, ViT-nano/4"}),
    ):
        axes = plt.figure().add_subplot()
        baselines = curves(rows).baselines
        texts = panels.draw_baselines(axes, baselines[(baselines["shots"] == 1).fillna(False)])
        plt.close(axes.figure)
        assert {text.get_text() for text in texts if "untrained" in text.get_text()} == names


def test_networks_are_drawn_by_their_size_and_by_their_patch(frame: pd.DataFrame) -> None:
    found = curves(grown(frame))
    by_size = figures.accuracy_by_params(found)
    assert by_size is not None
    (line,) = [line for line in by_size.axes[0].lines if line.get_gid() != LEADER]
    assert list(line.get_xdata()) == [1e6, 6e6, 3e7]
    areas = {
        area
        for points in by_size.axes[0].collections
        for area in getattr(points, "get_sizes", list)()
        if area >= panels.SMALL
    }
    assert len(areas) == 3
    by_patch = figures.accuracy_by_patch(found)
    assert by_patch is not None
    lines = [line for line in by_patch.axes[0].lines if line.get_gid() != LEADER]
    assert sorted(list(line.get_xdata()) for line in lines)[-1] == [4, 8]
    plt.close(by_size)
    plt.close(by_patch)


def test_a_branch_has_no_time_of_its_own_as_its_trunk_s_is_not_in_it(frame: pd.DataFrame) -> None:
    shared = frame.assign(
        trunk_id=frame["run_id"].where(frame["protocol"] == "pretrain").map(lambda id_: id_ and "trunk")
    )
    assert figures.accuracy_by_time(curves(frame)) is not None
    assert figures.accuracy_by_time(curves(shared)) is None
    plt.close("all")


def test_many_families_have_a_colour_and_marker_each() -> None:
    styles = family_styles(pd.DataFrame({"family": [f"family {number}" for number in range(12)]}))
    assert len(set(styles.values())) == len(styles)


def test_captions_fit_their_figure(drawn: Callable[[str], Figure]) -> None:
    for name in ("error_by_flops", "frontier_by_flops"):
        figure = drawn(name)
        longest = max(figure._supxlabel.get_text().split("\n"), key=len)  # type: ignore[attr-defined]
        assert len(longest) <= 16.5 * figure.get_figwidth()


def test_every_budget_of_a_pair_has_a_name_and_the_caption_tells_the_rest(drawn: Callable[[str], Figure]) -> None:
    figure = drawn("upstream_vs_downstream")
    for axes in figure.axes:
        names = {text.get_text() for text in axes.texts}
        assert names == {f"{f}, {seen} seen" for f in ("ViT", "Hybrid", "ResNet") for seen in ("220k", "880k", "3.52M")}
    caption = " ".join(figure.get_supxlabel().split())
    assert "Hybrid squares, ResNet triangles, ViT circles." in caption
    assert "Markers from small to large: 1k, 4k, 16k, 55k unique images." in caption


def test_pairs_of_many_budgets_are_named_by_line_and_each_line_has_its_dash(frame: pd.DataFrame) -> None:
    found = curves(grown(frame))
    few = figures.upstream_vs_downstream(replace(found, points=found.points.query("shots.isna()")))
    assert few is not None
    (axes,) = few.axes
    assert {"ViT-S/4, 880k seen", "ViT-B/4, 3.52M seen"} <= {text.get_text() for text in axes.texts}
    more = [
        found.points.assign(variant=f"steps={n}", transfer=f"steps={n}").query("protocol == 'finetune'")
        for n in (4, 400)
    ]
    upstream = found.points.query("protocol == 'pretrain'")
    many = figures.upstream_vs_downstream(replace(found, points=pd.concat([upstream, *more], ignore_index=True)))
    assert many is not None
    names = [text.get_text() for text in many.axes[0].texts]
    assert len(names) == 8
    assert not any("seen" in name for name in names)
    plt.close("all")


def test_pairs_of_many_models_are_markers_and_names_where_there_is_room(frame: pd.DataFrame) -> None:
    some = frame[frame["shots"].isna() & (frame["family"] == "vit")]
    names = [f"ViT-S/{number}" for number in range(1, 12)]
    many = [some.assign(model=model, run_id=some["run_id"] + model, parent_id=some["parent_id"] + model,
                        value=some["value"] * (1 - number / 100)) for number, model in enumerate(names)]  # fmt: skip
    drawn = figures.upstream_vs_downstream(curves(pd.concat(many, ignore_index=True)))
    assert drawn is not None
    drawn.draw_without_rendering()
    (axes,) = drawn.axes
    assert not axes.get_lines()  # and so no leader
    assert sum(len(marks.get_offsets()) for marks in axes.collections) == 11 * 6  # cells
    named = [text.get_text() for text in axes.texts]
    assert named
    assert len(set(named)) == len(named)
    assert set(named) <= set(names)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    marks = axes.transData.transform([marks.get_offsets()[0] for marks in axes.collections])
    assert not any(box.contains(*place) for box in boxes for place in marks)
    caption = " ".join(drawn.get_supxlabel().split())
    assert "ViT circles." in caption
    assert "Lines" not in caption
    plt.close(drawn)


def test_a_dash_tells_lines_apart_and_never_a_baseline(frame: pd.DataFrame) -> None:
    vit = frame["model"] == "ViT-nano/4"
    both = [frame.assign(model=frame["model"].mask(vit, f"ViT-{size}/4"), run_id=frame["run_id"] + size,
                         parent_id=frame["parent_id"] + size) for size in ("S", "B")]  # fmt: skip
    drawn = figures.accuracy_by_set_size(curves(pd.concat([both[0], both[1][vit]], ignore_index=True)))
    assert drawn is not None
    lines = [line for axes in drawn.axes for line in axes.lines if line.get_gid() != LEADER and axes.axison]
    level = [line for line in lines if list(line.get_xdata()) == [0, 1]]
    assert level
    assert {line.get_linestyle() for line in level} == {"-"}
    assert {line.get_linestyle() for line in lines if line.get_color() == "#0072B2" and len(line.get_xdata()) == 4} == {
        "-",
        "--",
    }
    assert "Level lines: baselines." in " ".join(drawn.get_supxlabel().split())
    plt.close(drawn)


@pytest.fixture(scope="module")
def dollars(frame: pd.DataFrame) -> Curves:
    """Families, models, tasks and a setting of which mathtext would make formulas, and could not."""
    names = {name: frame[name].map(lambda text: text and f"$\\frac{text}$ ^_") for name in ("family", "model")}
    named = frame.assign(**names, task=frame["task"].replace("digits", "$DIGITS_$YEAR"))
    return curves(named.assign(settings=[_with_note(text) for text in frame["settings"]]))


def _with_note(settings: str | None) -> str | None:
    """Every second seed with another setting, which then stands in the lines' names."""
    if not isinstance(settings, str):
        return settings
    told = json.loads(settings)
    return json.dumps({**told, "data.shards": f"$SCRATCH/{told['seed'] % 2}_$YEAR"})


@pytest.mark.parametrize("name", [name for name in figures.FIGURES if name not in OF_NETWORKS])
def test_dollars_of_a_name_are_letters(name: str, dollars: Curves, tmp_path: Path) -> None:
    figure = figures.FIGURES[name](dollars)
    assert figure is not None
    assert any(text.get_text().count("$") >= 2 for text in texts(figure))
    figure.draw_without_rendering()
    if name == "accuracy_by_flops":
        assert len(panels.save(figure, tmp_path, name)) == 3
    plt.close(figure)


def test_labels_of_sizes_do_not_touch_where_long_names_make_panels_narrow(frame: pd.DataFrame) -> None:
    larger = frame[frame["examples"] == 16_000].assign(examples=64_000)
    for name in ("run_id", "parent_id"):
        larger[name] = larger[name] + "L"
    sizes = pd.concat([frame.assign(examples=frame["examples"].replace(55_000, 256_000)), larger], ignore_index=True)
    named = sizes.assign(family="a name that is long, a " + sizes["family"])
    figure = figures.accuracy_by_set_size(curves(named))
    assert figure is not None
    for axes in (axes for axes in figure.axes if axes.axison):
        boxes = [(label.get_text(), label.get_window_extent()) for label in axes.get_xticklabels() if label.get_text()]
        assert boxes[-1][0] == "256k"
        assert len(boxes) > 1
        for (one, left), (other, right) in pairwise(boxes):
            assert left.x1 < right.x0, (one, other)
    plt.close(figure)


def test_long_names_leave_panels_their_room(frame: pd.DataFrame) -> None:
    """Three panels beside each other would have had none, and matplotlib given up on the layout."""
    models = {name: f"{name} as a person has named it at length" for name in frame["model"].dropna().unique()}
    one = frame.assign(model=frame["model"].map(models))
    ids = {name: one[name] + "2" for name in ("run_id", "parent_id")}
    both = pd.concat([one, one.assign(model=one["model"] + " 2", **ids)], ignore_index=True)
    for name in ("accuracy_by_set_size", "accuracy_by_flops"):
        drawn = figures.FIGURES[name](curves(both))
        assert drawn is not None
        drawn.draw_without_rendering()
        panels = [axes.get_window_extent().width for axes in drawn.axes if axes.axison]
        assert min(panels) > 0.1 * drawn.bbox.width
        plt.close(drawn)
