"""What tests of figures share."""

from collections.abc import Callable, Iterator
from functools import cache

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from browser import Browser, browser
from matplotlib.figure import Figure

from vitscale.analysis.curves import curves
from vitscale.report import figures


@pytest.fixture(scope="module")
def drawn(frame: pd.DataFrame) -> Iterator[Callable[[str], Figure]]:
    """The made-up study's figures by name, each drawn once."""
    found = curves(frame)

    @cache
    def draw(name: str) -> Figure:
        figure = figures.FIGURES[name](found)
        assert figure is not None
        return figure

    yield draw
    plt.close("all")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("downloads")) as found:
        yield found
