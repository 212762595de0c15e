"""`--tensorboard` and `--wandb`: what they lack is said before anything runs."""

import importlib.util
from pathlib import Path

import pytest

from vitscale.cli import options
from vitscale.errors import MISSING, USAGE, VitscaleError


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_named_with_the_extra_that_has_it(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(VitscaleError, match=f"--{package} needs the Python package {package}") as caught:
        options.monitors(tmp_path if package == "tensorboard" else None, "project" if package == "wandb" else None)
    assert caught.value.exit_code == MISSING
    assert "vitscale[monitor]" in caught.value.problems[0].hint
    assert options.monitors(None, None) == {"tensorboard": None, "wandb": None}


def test_a_folder_of_the_package_s_name_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B makes a folder `wandb` where it runs."""
    (tmp_path / "only_a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("only_a_folder") is not None
    assert not options._is_installed("only_a_folder")
    assert options._is_installed("tensorboard")


def test_workers_are_told_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert options.monitors(Path("board"), "studies") == {"tensorboard": str(tmp_path / "board"), "wandb": "studies"}


def test_a_file_is_no_folder_and_a_blank_no_project(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, project in ((tmp_path / "file", None), (None, " ")):
        with pytest.raises(VitscaleError) as caught:
            options.monitors(folder, project)
        assert caught.value.exit_code == USAGE
