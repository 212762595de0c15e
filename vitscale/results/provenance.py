"""Which code, on which machine, by which command. Imports nothing heavy: every run starts with it."""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import vitscale

PACKAGE = Path(vitscale.__file__).parent
# What can change a trained result. The rest of the package plans, prices, records and draws.
TRAINING_CODE = (
    *("models", "data", "train", "config.py", "exclusions.py", "sampling.py"),
    *(f"study/{name}.py" for name in ("archs", "datasets", "fields", "schedule", "subsets")),
)
DIFF = ("diff", "--no-ext-diff", "--no-color", "--binary")
LARGE = 2**20


def collect() -> dict[str, Any]:
    """Provenance of a run as plain JSON values; what cannot be known is None."""
    return {
        **_git(PACKAGE),
        "code_hash": code_hash(),
        "versions": _versions(),
        "host": platform.node(),
        "platform": platform.platform(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def code_hash(package: Path = PACKAGE) -> str:
    """SHA-256 over the path and bytes of every Python file of `TRAINING_CODE`."""
    files = [file for name in TRAINING_CODE for file in _python_files(package / name)]
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.relative_to(package).as_posix()):
        content = file.read_bytes()
        # Lengths keep two files from being taken for one.
        digest.update(f"{file.relative_to(package).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _python_files(path: Path) -> list[Path]:
    return list(path.rglob("*.py")) if path.is_dir() else [path] * path.is_file()


def _git(package: Path) -> dict[str, Any]:
    """Commit and changes of the repository that tracks the package; an installed copy has none."""
    unknown = {"git_commit": None, "git_dirty": None, "git_diff": None}
    if _run(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return unknown
    commit = _run(package, "rev-parse", "HEAD")
    root = _run(package, "rev-parse", "--show-toplevel")
    diff = _run(package, *DIFF, "HEAD", "--", ".")
    new = _run(package, "ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", ".")
    if commit is None or root is None or diff is None or new is None:
        return unknown
    added = [_added(Path(root.rstrip("\n")), name) for name in new.split("\0") if name]
    return {"git_commit": commit.strip(), "git_dirty": bool(diff or added), "git_diff": diff + "".join(added)}


def _added(root: Path, name: str) -> str:
    """A file that git does not track, as a patch that makes it; of a large one its name."""
    large = (root / name).stat().st_size > LARGE
    patch = None if large else _run(root, *DIFF, "--no-index", "--", "/dev/null", name, good=1)
    return f"?? {name}\n" if patch is None else patch


def _run(folder: Path, *arguments: str, good: int = 0) -> str | None:
    """What git prints; None unless it ends so."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, errors="replace", check=False
        )
    except OSError:
        return None
    return done.stdout if done.returncode == good else None


def _versions() -> dict[str, str | None]:
    return {
        **{name: _version(name) for name in ("torch", "deepspeed", "numpy")},
        "python": platform.python_version(),
        "vitscale": vitscale.__version__,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
