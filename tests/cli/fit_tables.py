"""What tests of `vitscale fit` have in common."""

import csv
import json
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from click.testing import Result

from vitscale.errors import DONE

Run = Callable[..., Result]


def tables(text: str) -> list[list[dict[str, str]]]:
    return [list(csv.DictReader(StringIO(part), delimiter="\t")) for part in text.split("\n\n")]


def answer(result: Result) -> dict[str, Any]:
    assert result.exit_code == DONE, result.stderr
    return json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
