"""Before anything of vitscale is imported: shapes and types are checked at every call, and nothing opens a window."""

import atexit
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

os.environ["MPLBACKEND"] = "Agg"
# pytest-xdist runs one process a core; threads of their own would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Nothing of a test comes from, or goes to, the cache of whoever runs it.
_cache = tempfile.TemporaryDirectory(prefix="vitscale-cache-")
os.environ["VITSCALE_CACHE"] = _cache.name
atexit.register(_cache.cleanup)

install_import_hook("vitscale", "type_checks.check")


@pytest.fixture(scope="session")
def results_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with the made-up study `synthetic`; to be read only."""
    from synthetic_results import study

    root = tmp_path_factory.mktemp("results")
    study(root / "synthetic")
    return root


@pytest.fixture(scope="session")
def frame(results_root: Path) -> Any:
    """The rows of the study `synthetic`."""
    from vitscale.results.store import read

    return read(results_root / "synthetic")
