import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browser import Browser, needs_chromium
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.support.ui import Select

from vitscale.report.figures import accuracy_by_set_size
from vitscale.report.page import write
from vitscale.report.records import Sources, Trace

pytestmark = needs_chromium

HOSTILE = "</script><script>document.title = 'hacked'</script><img src=x onerror=\"document.title = 'hacked'\">"
TRACED = "vit4000x880000s0"
COMMAND = "vitscale pretrain --model ViT-nano/4"


@pytest.fixture(scope="module")
def page(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the made-up study, with a script wherever a study has text of its own."""
    settings = [json.dumps({**json.loads(text), "recipe.note": HOSTILE}) if isinstance(text, str) else text
                for text in frame["settings"]]  # fmt: skip
    hostile = frame.assign(
        settings=settings,
        reason=frame["reason"].where(frame["reason"].isna(), HOSTILE),
        model=frame["model"].replace("R26x0.5", HOSTILE),
        flops_segment=2 * frame["flops_standalone"],
        earlier_code=frame["run_id"].map({TRACED: json.dumps([{"git_commit": 40 * "b"}])}),
    )
    trace = Trace(COMMAND, tuple((step, 2.0 / step) for step in range(1, 30)))
    sources = Sources(study="STUDY", traces={TRACED: trace})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "vitscale.report.page.FIGURES", {"accuracy_by_set_size": accuracy_by_set_size}
        )  # one is enough here
        return write(hostile, tmp_path_factory.mktemp("page"), HOSTILE, sources=sources).page


@pytest.fixture
def shown(chromium: Browser, page: Path) -> Iterator[Browser]:
    chromium.show(page)
    yield chromium
    assert chromium.errors() == []


def card_of(shown: Browser, run: str) -> None:
    button = shown.find(f"[data-run={run}]")
    shown.run("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()


def chart(shown: Browser) -> str:
    return str(shown.run("return document.querySelector('#plot svg').innerHTML"))


def markers(shown: Browser) -> list[Any]:
    return shown.all("#plot .mark-symbol path")


@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_phone_and_desk_without_an_error_and_keeps_a_study_s_text_as_text(
    chromium: Browser, page: Path, width: int, scheme: str
) -> None:
    chromium.show(page, width=width, scheme=scheme)
    assert chromium.errors() == []
    assert chromium.run("return document.documentElement.scrollWidth") <= width
    assert chromium.driver.title == HOSTILE
    assert chromium.find("h1").text == HOSTILE
    assert chromium.all("img") == []
    assert len(markers(chromium)) == 53  # of 54, one failed
    paper = chromium.run("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 24, 27)")
    box = chromium.find("aside").rect
    assert (box["x"] > chromium.find("#plot").rect["x"] + 600) == (width == 1600)


def test_hovering_names_the_run_and_a_click_opens_its_card(shown: Browser) -> None:
    shown.choose("images", "4000")
    one = markers(shown)[-1]
    ActionChains(shown.driver).move_to_element(one).perform()
    tip = shown.wait(lambda: shown.find("#vg-tooltip-element.visible").text)
    run = next(line for line in tip.splitlines() if line.startswith("run"))
    assert "seed" in tip
    assert "accuracy, %" in tip
    one.click()
    shown.wait(lambda: shown.find("#card").is_displayed())
    assert run.removeprefix("run").strip() in shown.find("#card-facts").text
    ActionChains(shown.driver).send_keys(Keys.ESCAPE).perform()
    shown.wait(lambda: not shown.find("#card").is_displayed())


def test_a_card_has_settings_cost_provenance_loss_and_the_command(shown: Browser) -> None:
    card_of(shown, TRACED)
    shown.wait(lambda: shown.all("#card-losses svg .mark-line path"))
    text = shown.find("#card-facts").text
    for expected in (
        "data.examples\n4000",
        HOSTILE,
        "FLOPs, alone",
        "commit\n" + 40 * "0",
        "begun by commit\n" + 10 * "b",
        "torch 2.13.0",
        "digits, fine-tuned",
    ):
        assert expected in text
    assert shown.find("#card-command").text == COMMAND
    shown.find("#card-close").click()
    other = "resnet4000x880000s0"
    card_of(shown, other)
    assert shown.find("#card-command").text == f"vitscale sweep STUDY --only {other}"
    assert not shown.find("#card-losses").is_displayed()
    assert shown.driver.title == HOSTILE


def test_arrow_keys_go_from_run_to_run_and_enter_opens_one(shown: Browser) -> None:
    shown.find("#plot").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    said = shown.find("#said").get_attribute("textContent")
    assert "1k images, 880k seen" in said
    assert "%" in said
    shown.find("#plot").send_keys(Keys.ENTER)
    shown.wait(lambda: shown.find("#card").is_displayed())


def test_switches_change_metric_task_axis_counting_and_scale(shown: Browser) -> None:
    pictures = [chart(shown)]
    for name, value in (("task", "4"), ("metric", "error"), ("x", "flops"), ("counting", "flops_computed")):
        shown.choose(name, value)
        pictures.append(chart(shown))
    shown.click("#ylog")
    pictures.append(chart(shown))
    shown.click("#xlog")
    pictures.append(chart(shown))
    shown.click("#legend input")
    pictures.append(chart(shown))
    assert len(set(pictures)) == len(pictures)
    assert "pre-training compute, FLOPs" in pictures[-1]
    assert "error, %" in pictures[-1]


def test_laws_are_thin_lines_over_compute_dashed_beyond_the_data(shown: Browser) -> None:
    assert shown.find("#laws").text == ""
    assert "with the same model and number of images seen" in shown.find("#count").text
    shown.choose("x", "flops")
    assert "lines join the means over seeds with the same number of unique images." in shown.find("#count").text
    dashes = [
        line.get_attribute("stroke-dasharray") for line in shown.all("#plot .layer_1_marks path, #plot .mark-line path")
    ]
    assert "5,4" in dashes
    assert shown.find("#laws").text.startswith("Thin: laws fitted to the error of a family's runs with 55k images")
    laws = len(shown.all("#plot .layer_1_marks path"))
    shown.click("#legend input")
    assert len(shown.all("#plot .layer_1_marks path")) < laws  # those of the family that is hidden
    shown.click("#legend input")
    shown.choose("images", "4000")  # another set size than the laws'
    assert shown.find("#laws").text == ""


def test_the_metric_decides_which_tasks_there_are(shown: Browser) -> None:
    assert "digits, 5 shots a class" in shown.find("#task").text
    shown.choose("metric", "loss")
    assert shown.find("#task").text.splitlines() == ["Upstream, test set", "Upstream, validation set"]
    assert "loss, nats" in chart(shown)


def test_baselines_are_level_lines_without_dashes_and_named(shown: Browser) -> None:
    assert shown.find("#bars").text == ""
    shown.choose("task", next(o.get_attribute("value") for o in shown.all("#task option") if "5 shots" in o.text))
    assert shown.find("#bars").text.startswith("Level lines: ")
    assert "raw pixels" in shown.find("#bars").text
    assert len(shown.all("#plot .mark-rule line:not([stroke-dasharray])")) >= 4
    assert shown.all("#plot .mark-rule line[stroke-dasharray]") == []


def column(shown: Browser, table: str, number: int) -> list[str]:
    return list(
        shown.run(
            f"return [...document.querySelectorAll('#{table} tbody tr')].map((row) => row.cells[{number}].textContent)"
        )
    )


def test_a_table_is_sorted_by_number_and_back(shown: Browser) -> None:
    header = shown.all("#cells th button")[1]
    header.click()
    sizes = list(dict.fromkeys(column(shown, "cells", 1)))
    assert sizes == ["1k", "4k", "16k", "55k", ""]
    assert header.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    header.click()
    assert list(dict.fromkeys(column(shown, "cells", 1))) == ["55k", "16k", "4k", "1k", ""]


def test_a_table_is_saved_as_csv_with_its_numbers(shown: Browser, tmp_path: Path, frame: pd.DataFrame) -> None:
    shown.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    shown.find("[data-csv=cells]").click()
    saved = tmp_path / "cells.csv"
    shown.wait(lambda: saved.is_file() and saved.stat().st_size)  # its name is taken before it is written
    rows = list(csv.DictReader(saved.read_text("utf-8").splitlines()))
    cell = next(row for row in rows if row["model"] == "ViT-nano/4" and row["images"] == "4000")
    values = frame.query(
        "family == 'vit' and examples == 4000 and task == 'upstream_test' and metric == 'accuracy'"
    )["value"]  # fmt: skip
    assert float(cell["Upstream, test set"]) == pytest.approx(values.mean(), abs=1e-6)
    assert HOSTILE in {row["model"] for row in rows}


def test_every_switch_fits_a_phone(chromium: Browser, page: Path) -> None:
    chromium.show(page, width=360)
    for name in ("metric", "task", "x", "counting", "images", "seen"):
        values = [option.get_attribute("value") for option in Select(chromium.find(f"#{name}")).options]
        for value in values[1:] if chromium.find(f"#{name}").is_displayed() else []:
            chromium.choose(name, value)
            assert chromium.run("return document.documentElement.scrollWidth") <= 360, (name, value)
        if name == "x" and values[-1] != "flops":
            chromium.choose("x", "flops")
    assert chromium.find("#counting").rect["x"] + chromium.find("#counting").rect["width"] <= 360
    chromium.click("#ylog")
    card_of(chromium, TRACED)
    chromium.wait(lambda: chromium.find("#card").is_displayed())
    assert chromium.run("return document.documentElement.scrollWidth") <= 360
    assert chromium.find("figure").get_attribute("tabindex") == "0"
    assert chromium.errors() == []


def test_a_logarithmic_axis_names_its_powers_of_ten(shown: Browser) -> None:
    shown.choose("x", "flops")
    labels = shown.run(
        "return [...document.querySelectorAll('#plot .role-axis-label text')].map((text) => text.textContent)"
    )
    flops = [float(label) for label in labels if "e" in label]
    low, high = min(flops), max(flops)
    power = 10.0 ** len(str(int(low)))
    assert power > high or power in flops


@pytest.fixture(scope="module")
def overlaid(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fine-tuned on a task of the paper's, its ViTs of two sizes, and the paper's tables beside."""
    vit = frame["family"] == "vit"
    large = frame[vit].assign(model="ViT-micro/4", params_total=9_000_000, value=frame["value"] * 0.99)
    large = large.assign(**{name: large[name] + "L" for name in ("run_id", "parent_id")})
    both = pd.concat([frame.assign(params_total=frame["params_total"].mask(vit, 1_000_000)), large], ignore_index=True)
    both = both.assign(task=both["task"].replace("digits", "CIFAR_10"), flops_segment=2 * both["flops_standalone"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitscale.report.page.FIGURES", {})
        return write(both, tmp_path_factory.mktemp("overlaid"), "both", overlay=True).page


@pytest.fixture
def beside(chromium: Browser, overlaid: Path) -> Iterator[Browser]:
    """At the task that the paper has, too."""
    chromium.show(overlaid)
    chromium.choose("task", task_of(chromium, "fine-tuned"))
    yield chromium
    assert chromium.errors() == []


def task_of(shown: Browser, name: str) -> str:
    return next(str(o.get_attribute("value")) for o in shown.all("#task option") if name in o.text)


THEIRS = "#plot .mark-symbol path[stroke='var(--soft)']"


def theirs(shown: Browser) -> int:
    return len(shown.all(THEIRS))


def written_in(shown: Browser, selector: str = "#plot .mark-text.role-mark text") -> set[str]:
    return set(shown.run(f"return [...document.querySelectorAll('{selector}')].map((text) => text.textContent)"))


def test_published_points_are_hollow_grey_named_and_no_runs(beside: Browser) -> None:
    assert theirs(beside) == 5 + 5 + 4  # Table 5 has no ViT-H/14 on ImageNet
    assert {path.get_attribute("fill") for path in beside.all(THEIRS)} <= {"none", "transparent"}
    ours = len(markers(beside)) - theirs(beside)
    assert beside.find("#count").text.startswith(f"{ours} runs;")
    assert len(beside.all("#runs tbody tr")) == ours
    assert "ViT-L/16" not in beside.find("#cells").get_attribute("textContent")
    assert "ViT-L/16, paper" in written_in(beside)
    assert {"1k", "303M"} <= written_in(beside, "#plot .role-axis-label text")
    assert beside.find("#of-theirs").text == "the paper's own, not ours: arXiv 2010.11929v2, Table 5"
    ActionChains(beside.driver).move_to_element(beside.all(THEIRS)[-1]).perform()
    tip = beside.wait(lambda: beside.find("#vg-tooltip-element.visible").text)
    assert "published in" in tip
    assert "Table 5" in tip
    beside.all(THEIRS)[-1].click()
    assert not beside.find("#card").is_displayed()


def test_published_points_follow_the_switches_and_their_entry_of_the_legend(beside: Browser) -> None:
    beside.choose("x", "flops")
    assert theirs(beside) == 18
    assert "Table 6" in beside.find("#of-theirs").text
    beside.choose("counting", "flops_computed")  # which nobody has published
    assert theirs(beside) == 0
    beside.choose("counting", "flops")
    accuracies = [path.get_attribute("transform") for path in beside.all(THEIRS)]
    beside.choose("metric", "error")
    errors = [path.get_attribute("transform") for path in beside.all(THEIRS)]
    assert len(errors) == 18
    assert errors != accuracies
    beside.click("#of-theirs input")
    assert theirs(beside) == 0
    beside.click("#of-theirs input")
    assert theirs(beside) == 18
    beside.choose("task", task_of(beside, "5 shots"))
    assert theirs(beside) == 0
    assert not beside.find("#of-theirs").is_displayed()


def test_models_of_one_family_are_told_apart_by_shade_and_name(beside: Browser) -> None:
    beside.choose("task", task_of(beside, "5 shots"))
    assert written_in(beside) == {"ViT-nano/4", "ViT-micro/4"}  # the other families have one model, and a legend
    fills = {path.get_attribute("fill") for path in markers(beside)}
    tints = {fill for fill in fills if "var(--vit)" in fill}
    assert len(tints) == 2
    assert fills - tints == {"var(--hybrid)", "var(--resnet)"}
    swatches = [path.get_attribute("fill") for path in beside.all("#legend svg path")]
    assert tints <= set(swatches)
    painted = {beside.run("return getComputedStyle(arguments[0]).fill", path) for path in markers(beside)}
    assert len(painted) == 4  # the browser can mix colours


def test_one_model_a_family_needs_no_name_and_no_shade(shown: Browser) -> None:
    assert written_in(shown) == set()
    assert shown.find("#shades").text == ""
    assert {path.get_attribute("fill") for path in markers(shown)} == {"var(--vit)", "var(--hybrid)", "var(--resnet)"}
    assert shown.all("#of-theirs") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_leave_a_phone_its_width(chromium: Browser, overlaid: Path, scheme: str) -> None:
    chromium.show(overlaid, width=360, scheme=scheme)
    for task in ("fine-tuned", "5 shots"):
        chromium.choose("task", task_of(chromium, task))
        assert chromium.run("return document.documentElement.scrollWidth") <= 360
        edge = chromium.find("#plot svg").rect
        for text in chromium.all("#plot .mark-text.role-mark text"):
            assert text.rect["x"] + text.rect["width"] <= edge["x"] + edge["width"] + 1
    assert chromium.errors() == []


@pytest.fixture(scope="module")
def crowded(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten models of wide names, which end near one another."""
    vit = frame[frame["family"] == "vit"]
    models = []
    for number in range(1, 11):
        sized = {"params_total": 1_000_000 * 2**number, "patch": number, "model": f"ViT-WWMM{number}/{number}"}
        ids = {name: vit[name] + f"m{number}" for name in ("run_id", "parent_id")}
        models.append(vit.assign(**sized, **ids, value=vit["value"] * (1 - number / 1000)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitscale.report.page.FIGURES", {})
        return write(pd.concat(models, ignore_index=True), tmp_path_factory.mktemp("crowded"), "many").page


OUTSIDE = """
const edge = document.querySelector('#plot svg').getBoundingClientRect();
return [...document.querySelectorAll('#plot .mark-text.role-mark text')].filter((text) => {
  const { left, right, top, bottom } = text.getBoundingClientRect();
  return left < edge.left || right > edge.right || top < edge.top || bottom > edge.bottom;
}).map((text) => text.textContent);
"""


@pytest.mark.parametrize("width", [360, 900, 1600])
def test_no_name_leaves_the_chart_along_any_axis(chromium: Browser, crowded: Path, width: int) -> None:
    chromium.show(crowded, width=width)
    axes = [option.get_attribute("value") for option in Select(chromium.find("#x")).options]
    assert {"flops", "examples", "params_total", "patch", "upstream"} <= set(axes)
    for name in axes[1:] + axes[:1]:
        chromium.choose("x", name)
        assert chromium.run(OUTSIDE) == [], name
        assert width < 900 or name != "examples" or len(written_in(chromium)) == 10  # all end at the right


@pytest.fixture(scope="module")
def perfect(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family whose mean error is 4 % at every size: at the smallest of a run without any, and two of 6 %."""
    rows = frame[(frame["family"] == "vit") & (frame["protocol"] == "pretrain") & (frame["role"] == "cell")]
    rows = rows[(rows["metric"] == "accuracy") & (rows["examples_seen"] == 880_000)]
    smallest = rows["examples"] == rows["examples"].min()
    rows = rows.assign(value=(0.94 + 0.06 * (rows["seed"] == 0).astype(float)).where(smallest, 0.96))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitscale.report.page.FIGURES", {})
        return write(rows, tmp_path_factory.mktemp("perfect"), "perfect").page


def test_what_a_logarithmic_axis_cannot_hold_counts_in_the_means_all_the_same(chromium: Browser, perfect: Path) -> None:
    chromium.show(perfect)
    chromium.choose("metric", "error")
    assert "Not drawn" not in chromium.find("#count").text
    chromium.click("#ylog")
    assert chromium.find("#count").text.startswith("11 runs;")
    assert "Not drawn: 1 at 0, where a logarithmic axis has no place" in chromium.find("#count").text
    (line,) = [path.get_attribute("d") for path in chromium.all("#plot .mark-line path") if path.get_attribute("d")]
    heights = [float(place.split(",")[1]) for place in line.removeprefix("M").split("L")]
    assert heights == pytest.approx([heights[0]] * 4, abs=0.1)
    assert chromium.errors() == []


def test_what_is_switched_off_is_not_called_unmeasured(shown: Browser) -> None:
    assert shown.find("#click").is_displayed()
    for number in range(len(shown.all("#legend input"))):
        shown.click(f"#legend label:nth-child({number + 1}) input")
    assert shown.find("#count").text == "Switched off: all that was measured here."
    assert not shown.find("#click").is_displayed()
    shown.click("#legend input")
    assert " runs; lines join" in shown.find("#count").text
    assert shown.find("#click").is_displayed()
