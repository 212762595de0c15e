"""Rows of a result, as far as the worker knows them; the study fills in the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def measured(common: Mapping[str, Any], *, value: float, n_test: int, **columns: Any) -> dict[str, Any]:
    """A row with a share of `n_test` images, 0 to 1, and its binomial standard error."""
    error = math.sqrt(value * (1 - value) / n_test)
    return {**common, **columns, "value": value, "value_se": error, "n_test": n_test}
