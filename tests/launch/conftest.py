"""The data of budgets that share a trunk."""

from pathlib import Path

import pytest
from trunk_folders import TEXT

import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.write(folder, TEXT)
    return folder
