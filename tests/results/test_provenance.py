import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vitscale.results import provenance


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package as git tracks it, with training and other code."""
    root = tmp_path / "repository" / "package"
    (root / "train").mkdir(parents=True)
    (root / "study").mkdir()
    for name in ("__init__.py", "config.py", "train/loop.py", "study/schedule.py", "study/plan.py"):
        (root / name).write_text(f"# {name}\n")
    return root


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def commit(package: Path) -> None:
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "all", "--no-verify")


def test_collect_is_plain_json_and_says_what_a_rerun_needs() -> None:
    found = json.loads(json.dumps(provenance.collect()))
    assert set(found) >= {"git_commit", "git_dirty", "git_diff", "code_hash", "versions", "host", "platform", "command"}
    assert set(found["versions"]) == {"torch", "deepspeed", "numpy", "python", "vitscale"}
    assert found["versions"]["torch"].startswith("2.")


def test_collect_loads_nothing_heavy() -> None:
    script = (
        "import sys; from vitscale.results import provenance; provenance.collect();"
        "print([name for name in ('torch', 'numpy', 'pandas', 'pyarrow') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("changed", ["train/loop.py", "study/schedule.py", "config.py"])
def test_code_that_trains_changes_the_hash(package: Path, changed: str) -> None:
    before = provenance.code_hash(package)
    (package / changed).write_text("# other\n")
    assert provenance.code_hash(package) != before


NO_OUTCOME = {
    "branches", "checkpoints", "errors", "failures", "files", "lease", "locations", "peaks", "processes", "remember", "results.spent",
    "study.cost", "wording",
}  # fmt: skip
"""What a worker imports that counts, prices, locks, names and remembers, and changes no weight and no accuracy."""


def test_the_hash_is_of_all_that_a_worker_imports() -> None:
    script = (
        "import sys, vitscale.train.worker, vitscale.train.pretrain, vitscale.train.finetune, vitscale.train.fewshot;"
        "print([name for name in sys.modules if name.startswith('vitscale.')])"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    files = {file for name in provenance.TRAINING_CODE for file in provenance._python_files(provenance.PACKAGE / name)}
    hashed = {".".join(file.relative_to(provenance.PACKAGE).with_suffix("").parts) for file in files}
    imported = {name.removeprefix("vitscale.") for name in ast.literal_eval(told)}
    packages = {"study", "results"}
    assert imported - hashed - {name.removesuffix(".__init__") for name in hashed} - packages == NO_OUTCOME


def test_code_that_only_plans_and_bytecode_do_not_change_the_hash(package: Path) -> None:
    before = provenance.code_hash(package)
    (package / "study" / "plan.py").write_text("# other\n")
    (package / "train" / "__pycache__").mkdir()
    (package / "train" / "__pycache__" / "loop.pyc").write_bytes(b"1")
    assert provenance.code_hash(package) == before


def test_a_renamed_file_changes_the_hash(package: Path) -> None:
    before = provenance.code_hash(package)
    (package / "train" / "loop.py").rename(package / "train" / "pool.py")
    assert provenance.code_hash(package) != before


def test_commit_changes_and_new_files_are_recorded(package: Path) -> None:
    commit(package)
    clean = provenance._git(package)
    assert len(clean["git_commit"]) == 40
    assert (clean["git_dirty"], clean["git_diff"]) == (False, "")
    (package / "config.py").write_text("# edited\n")
    (package / "new.py").write_text("")
    dirty = provenance._git(package)
    assert dirty["git_dirty"] is True
    assert "+# edited" in dirty["git_diff"]
    assert "new.py" in dirty["git_diff"]


def test_what_is_recorded_makes_the_same_code_of_the_commit(package: Path) -> None:
    commit(package)
    (package / "config.py").write_text("# edited\n")
    (package / "new file.py").write_text("# new\n")
    (package / "binary").write_bytes(bytes(range(256)))
    found = provenance._git(package)["git_diff"]
    wanted = {path.name: path.read_bytes() for path in package.iterdir() if path.is_file()}
    git(package.parent, "stash", "--include-untracked")
    patch = package.parent / "changes.patch"
    patch.write_text(found)
    git(package.parent, "apply", str(patch))
    assert {path.name: path.read_bytes() for path in package.iterdir() if path.is_file()} == wanted


def test_of_a_large_new_file_the_name_is_recorded(package: Path) -> None:
    commit(package)
    (package / "weights.bin").write_bytes(bytes(provenance.LARGE + 1))
    found = provenance._git(package)
    assert (found["git_dirty"], found["git_diff"]) == (True, "?? package/weights.bin\n")


def test_results_beside_the_package_do_not_make_it_dirty(package: Path) -> None:
    commit(package)
    (package.parent / "results.parquet").write_text("x")
    assert provenance._git(package)["git_dirty"] is False


def test_a_package_that_the_surrounding_repository_does_not_track_has_no_commit(package: Path) -> None:
    git(package.parent, "init", "-q")
    assert provenance._git(package) == {"git_commit": None, "git_dirty": None, "git_diff": None}
