"""The page in print, by the browser's own printing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browser import Browser, needs_chromium

from vitscale.report.page import write

pytestmark = needs_chromium
A4 = {"paperWidth": 8.27, "paperHeight": 11.7}
# Notes how the page is laid out when it is printed, and again afterwards.
WATCH = """
window.noted = {};
window.note = (when) => {
  const right = (found) => Math.max(...[...found].map((one) => one.getBoundingClientRect().right));
  const all = (selector) => document.querySelectorAll(selector);
  noted[when] = {
    svg: right(all('#plot svg')), texts: right(all('#plot text')), page: right(all('body')),
    closed: all('.notes details:not([open])').length, open: all('.notes details[open]').length,
    letters: all('#plot svg')[0].getBoundingClientRect().width / all('#plot svg')[0].viewBox.baseVal.width,
  };
};
matchMedia('print').addEventListener('change', ({ matches }) => { if (matches) window.note('printed'); });
"""


@pytest.fixture(scope="module")
def page(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With what its runs computed, too, so that there is a counting to choose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitscale.report.page.FIGURES", {})
        computed = frame.assign(flops_segment=2 * frame["flops_standalone"])
        return write(computed, tmp_path_factory.mktemp("paper"), "on paper").page


@pytest.fixture
def desk(chromium: Browser, page: Path) -> Iterator[Browser]:
    chromium.show(page, width=1600)
    chromium.run(WATCH)
    yield chromium
    assert chromium.errors() == []


def printed(shown: Browser) -> dict[str, Any]:
    """How the page is laid out on A4."""
    before = shown.drawn()
    shown.command("Page.printToPDF", **A4)
    shown.wait(lambda: shown.drawn() >= before + 2)  # for paper, and for the screen again
    return dict(shown.run("return noted.printed"))


def as_on_paper(shown: Browser, page: Path) -> None:
    shown.show(page, scheme="dark", media="print")


def test_a_chart_drawn_on_a_desk_is_drawn_again_for_paper_and_back(desk: Browser) -> None:
    wide = desk.find("#plot svg").rect["width"]
    paper = printed(desk)
    assert wide > 1000
    assert max(paper["svg"], paper["texts"]) <= paper["page"] < 800
    assert paper["letters"] == 1  # not the wide chart made smaller
    assert desk.find("#plot svg").rect["width"] == wide


def test_paper_of_any_width_has_the_whole_chart(desk: Browser) -> None:
    """Such as that of a browser which tells the page nothing before it prints."""
    desk.command("Emulation.setEmulatedMedia", media="print")
    desk.run("document.body.style.width = '400px'; window.note('narrow')")
    narrow = desk.run("return noted.narrow")
    assert max(narrow["svg"], narrow["texts"]) <= narrow["page"]


def test_paper_has_all_of_the_box_and_the_screen_what_was_open(desk: Browser) -> None:
    desk.find(".notes summary").click()
    before = len(desk.all(".notes details:not([open])"))
    paper = printed(desk)
    assert before > 1
    assert (paper["closed"], paper["open"]) == (0, before + 1)
    assert len(desk.all(".notes details:not([open])")) == before


def test_paper_says_in_words_what_the_switches_say(chromium: Browser, page: Path) -> None:
    chromium.show(page)
    assert not chromium.find("#switched").is_displayed()
    chromium.choose("metric", "error")
    chromium.choose("x", "flops")
    chromium.choose("counting", "flops_computed")
    chromium.choose("images", "4000")
    chromium.click("#ylog")
    chromium.command("Emulation.setEmulatedMedia", media="print")
    assert chromium.find("#switched").text == (
        "Shown: Upstream, test set; error, % (logarithmic); by pre-training compute, FLOPs (logarithmic); "
        "FLOPs of all that its job computed; only 4k images."
    )


def test_paper_has_no_boxes_to_tick_and_no_lines_that_are_switched_off(chromium: Browser, page: Path) -> None:
    as_on_paper(chromium, page)
    names = [label.text for label in chromium.all("#legend label")]
    assert all(names)
    assert not any(box.is_displayed() for box in chromium.all("#legend input"))
    chromium.run("document.querySelector('#legend input').click()")
    assert [label.text for label in chromium.all("#legend label") if label.is_displayed()] == names[1:]


def test_paper_has_no_switches_and_is_white_in_the_dark(chromium: Browser, page: Path) -> None:
    as_on_paper(chromium, page)
    assert not chromium.find("#metric").is_displayed()
    assert not chromium.find("#runs").is_displayed()
    assert chromium.find("#cells").is_displayed()
    assert chromium.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_no_heading_ends_a_page_and_a_table_has_its_header_on_each(chromium: Browser, page: Path) -> None:
    as_on_paper(chromium, page)
    style = "return [...document.querySelectorAll(arguments[0])].map((one) => getComputedStyle(one)[arguments[1]])"
    assert set(chromium.run(style, "h1, h2", "breakAfter")) == {"avoid"}
    # A button's text is missing where a header is repeated.
    assert set(chromium.run(style, "#cells th button", "display")) == {"contents"}
