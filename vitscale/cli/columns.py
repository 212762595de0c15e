"""Which columns of a table a terminal has room for, and how wide they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len

GAP = 2
"""Spaces between two columns."""
COMFORT = 24
"""Characters of text in a line, below which other columns give way."""
LONGEST = 24
"""Characters of a word that stays whole: an id, a number. Paths and hashes have more."""


def fitted(
    header: Sequence[str], rows: Sequence[Sequence[str]], room: int, spare: Sequence[str] = ()
) -> dict[int, int]:
    """The numbers of the columns that are shown, and their widths.

    Where not all fit, those of `spare` give way, the first of them first, and such as are alike in all rows before
    others. Then headers are folded, and text, between their words. What is wider even so, the terminal breaks.
    """
    columns = [[name, *(row[number] for row in rows)] for number, name in enumerate(header)]
    shown = list(range(len(columns)))
    given_way = [number for name in spare for number in shown if header[number] == name]
    for number in sorted(given_way, key=lambda number: len({*columns[number][1:]}) > 1):
        if total(_comfortable(columns[each]) for each in shown) <= room:
            break
        shown.remove(number)
    widths = {number: max(map(cell_len, columns[number])) for number in shown}
    for bound in (_comfortable, _least):
        least = {number: bound(columns[number]) for number in shown}
        while total(widths.values()) > room and (wide := [each for each in shown if widths[each] > least[each]]):
            widths[max(wide, key=lambda number: widths[number])] -= 1
    return widths


def total(widths: Iterable[int]) -> int:
    """Of the whole table."""
    each = list(widths)
    return sum(each) + GAP * (len(each) - 1)


def _least(column: Sequence[str]) -> int:
    """What its words need."""
    return max((min(cell_len(word), LONGEST) for cell in column for word in cell.split()), default=0)


def _comfortable(column: Sequence[str]) -> int:
    _, *cells = column
    return max(_least(column), min(COMFORT, max(map(cell_len, cells), default=0)))
