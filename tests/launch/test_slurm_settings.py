"""`[launcher.slurm]`: of the study and the user's own configuration, with its mistakes."""

import math
from pathlib import Path

import pytest

from vitscale.errors import INVALID_STUDY, VitscaleError
from vitscale.launch.slurm.settings import settings_of
from vitscale.study.launcher import Slurm, seconds
from vitscale.study.load import Study, load

STUDY = '[model]\nname = "ViT-S/16"\n[data]\nsize = 100\nnum_classes = 2\n[recipe]\nsteps = 4\nwarmup_steps = 0\n[launcher.slurm]\n'


def loaded(folder: Path, table: str) -> Study:
    (folder / "study.toml").write_text(STUDY + table)
    return load(folder / "study.toml", base=folder)


def test_a_study_says_more_than_the_users_own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    study = loaded(tmp_path, 'partition = "big"\ncpus_per_device = 8\n')
    assert settings_of(study) == Slurm(partition="big", cpus_per_device=8)
    (tmp_path / "vitscale").mkdir()
    config = tmp_path / "vitscale" / "config.toml"
    config.write_text('[launcher.slurm]\npartition = "small"\naccount = "vision"\nmodules = "cuda"\n')
    assert settings_of(study) == Slurm(partition="big", account="vision", cpus_per_device=8, modules=("cuda",))
    config.write_text('[launcher.slurm]\npartitions = "small"\n')
    with pytest.raises(VitscaleError) as error:
        settings_of(study)
    assert error.value.exit_code == INVALID_STUDY
    assert str(error.value).splitlines() == [
        f"error: {config}:2: unknown key 'launcher.slurm.partitions'",
        "hint: did you mean 'launcher.slurm.partition'?",
    ]


@pytest.mark.parametrize(
    ("time", "limit"),
    [
        ("5", 300),
        ("4:01", 300),  # in whole minutes
        ("0:30:0", 1800),
        ("1-6", 108_000),
        ("1-6:30", 109_800),
        ("1-6:30:01", 109_860),
        ("unlimited", math.inf),
        ("INFINITE", math.inf),
        ("0", math.inf),
        ("-5", None),
        ("5m", None),
        ("1:2:3:4", None),
        ("", None),
    ],
)
def test_a_time_limit_is_read_as_sbatch_does(time: str, limit: float | None) -> None:
    assert seconds(time) == limit


def test_a_run_has_time_before_it_must_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    study = loaded(tmp_path, 'time = "4"\n')
    with pytest.raises(VitscaleError, match="'4' is 240 s, and runs save and end 300 s before that") as error:
        settings_of(study)
    assert error.value.exit_code == INVALID_STUDY
    (tmp_path / "vitscale").mkdir()
    config = tmp_path / "vitscale" / "config.toml"
    config.write_text("[launcher.slurm]\nsignal = 60\n")
    assert settings_of(study).signal == 60
    config.write_text('[launcher.slurm]\ntime = "1"\n')
    with pytest.raises(VitscaleError, match="runs save and end 60 s before"):
        settings_of(loaded(tmp_path, "signal = 60\n"))


@pytest.mark.parametrize(
    ("table", "error", "hint"),
    [
        ('acount = "x"', "unknown key 'launcher.slurm.acount'", "did you mean 'launcher.slurm.account'?"),
        ("partition = 3", "launcher.slurm.partition: 3 is not a valid string", "'partition' takes a text"),
        ("gpus_per_node = -1", "launcher.slurm.gpus_per_node: -1 is less than 0", "see docs/slurm.md"),
        (
            'container = "apptainer exec \'x.sif"',
            'launcher.slurm.container: "apptainer exec \'x.sif" has a quote',
            "see",
        ),
        ("signal = 1.5", "launcher.slurm.signal: 1.5 is not a valid integer", "'signal' takes a whole number"),
        ('time = "soon"', "launcher.slurm.time: 'soon' is no time limit", "see docs/slurm.md"),
        ('time = "1-2:3:4:5"', "launcher.slurm.time: '1-2:3:4:5' is no time limit", "see"),
        (
            'time = "5"\nsignal = 300',
            "launcher.slurm.time: '5' is 300 s, and runs save and end 300 s before",
            "give jobs",
        ),
        ('time = "1\\n#SBATCH --x"', "launcher.slurm.time: '1\\n#SBATCH --x' holds '\\n'", "'time' takes a text"),
    ],
)
def test_a_mistake_in_the_table_names_its_line(tmp_path: Path, table: str, error: str, hint: str) -> None:
    with pytest.raises(VitscaleError) as raised:
        loaded(tmp_path, table)
    first, second = str(raised.value).splitlines()
    assert first.startswith(f"error: {tmp_path}/study.toml:10: {error}")
    assert second.startswith(f"hint: {hint}")
