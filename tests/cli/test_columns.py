"""What a terminal shows of a table: whole ids and numbers, and a word about what it has no room for."""

import re
import sys

import pytest

from vitscale.cli import plan_memory
from vitscale.cli.columns import fitted, total
from vitscale.cli.plan_screen import HEADER, SPARE
from vitscale.cli.screen import print_table

ROW = ("0123456789ab", "cell", "ViT-nano/7", "55,000", "640,000", "0", "0.001", "85,798,656", "17,563.5", "1.234e+05",
       "1.234e+05", "1.35e+03", "0.000673 to 0.000488", "to do")  # fmt: skip
ROWS = [ROW, ("ba9876543210", "trunk", *ROW[2:])]


def shown(rows: list[tuple[str, ...]], room: int) -> dict[str, int]:
    return {HEADER[number]: width for number, width in fitted(HEADER, rows, room, SPARE).items()}


@pytest.mark.parametrize("room", [40, 80, 100, 120, 160])
def test_ids_and_numbers_stay_whole_at_any_width(room: int) -> None:
    widths = shown(ROWS, room)
    assert total(widths.values()) <= room
    for name, width in widths.items():
        assert all(width >= len(word) for row in ROWS for word in row[HEADER.index(name)].split())
    assert {"run", "model", "state"} <= widths.keys()


def test_what_is_alike_in_all_rows_gives_way_before_what_tells_them_apart() -> None:
    assert len(shown(ROWS, 160)) == len(HEADER)
    assert "params" not in shown(ROWS, 80)
    sizes = [ROW, tuple(cell.replace("85,798,656", "5,717,416") for cell in ROW)]
    assert {"params", "hours"} & shown(sizes, 80).keys() == {"params"}


def test_what_a_device_needs_fits_80_columns() -> None:
    rows = [("R50+ViT-B/16", "224", "8", "512", "3, offload", "yes", "0.000673", "yes", "0.000801", "1.19")]
    assert 80 < total(fitted(plan_memory.HEADER, rows, 100, plan_memory.SPARE).values()) <= 100
    assert total(fitted(plan_memory.HEADER, rows, 80, plan_memory.SPARE).values()) <= 80


def test_headers_are_folded_before_text_and_text_between_words() -> None:
    header, rows = ["per device and step", "words"], [["1", "a word and others of it"]]
    assert fitted(header, rows, 60) == {0: 19, 1: 23}
    assert fitted(header, rows, 34) == {0: 9, 1: 23}
    assert fitted(header, rows, 20) == {0: 6, 1: 12}
    assert fitted(header, rows, 5) == {0: 6, 1: 6}, "what is wider even so is not cut"


def test_a_narrow_terminal_says_what_it_leaves_out_and_a_file_has_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_table(ROWS, HEADER, SPARE)
    assert [line.split("\t") for line in capsys.readouterr().out.splitlines()] == [[*HEADER], *map(list, ROWS)]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    print_table(ROWS, HEADER, SPARE)
    told = capsys.readouterr()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", told.out).splitlines()
    assert [line.split()[0] for line in lines] == ["run", "─" * 38, *(row[0] for row in ROWS)]
    assert max(map(len, lines)) <= 40
    assert told.err.startswith("no room for: ")
    assert told.err.endswith("; a wider terminal shows them, and so does --json\n")
