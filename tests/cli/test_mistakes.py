"""The mistakes that a new user makes first: two lines, the exit code, nothing lost."""

import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import tiny
from vitscale.errors import INTERRUPTED, INVALID_STUDY, MISSING, USAGE, VitscaleError
from vitscale.study.toml import parse


def vitscale(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitscale.cli.main", *arguments]
    environment = {**os.environ, "COLUMNS": "200", "TERM": "dumb"}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False, env=environment
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study and its data; nothing here runs."""
    made = tmp_path_factory.mktemp("mistakes")
    tiny.write(made)
    (made / "empty").mkdir()
    (made / "wrong.toml").write_text(tiny.STUDY.replace("lr = 1e-2", "learning_rate = 1e-2"))
    (made / "nodata.toml").write_text(tiny.STUDY.replace('shards = "train"', 'shards = "data/fashion-mnist-train"'))
    (made / "nothing.toml").write_text(tiny.STUDY.replace('shards = "train"', 'shards = "empty"'))
    return made


def test_of_many_studies_a_hint_names_the_nearest(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"depth-{number:02}.toml").touch()
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "compute.toml").touch()

    def hint(name: str) -> str:
        with pytest.raises(VitscaleError) as caught:
            parse(tmp_path / name)
        return caught.value.problems[0].hint

    assert hint("compte.toml") == f"did you mean {tmp_path / 'studies' / 'compute.toml'}?"
    assert hint("depth-1.toml").count(str(tmp_path)) == 5
    assert hint("zzz") == hint("") == f"there are 61, such as {tmp_path / 'depth-00.toml'}; give the path of one"
    assert hint("studies") == f"there are: {tmp_path / 'studies' / 'compute.toml'}"


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        (["plan", "gone.toml"], MISSING, "no study file gone.toml", "study.toml"),
        (["plan", "wrong.toml"], INVALID_STUDY, "unknown key 'recipe.learning_rate'", "did you mean 'recipe.lr'?"),
        (["sweep", "nodata.toml"], MISSING, "no data set at data/fashion-mnist-train", "vitscale data fetch fashion-mnist"),
        (["sweep", "nothing.toml"], MISSING, "no data set at empty: the folder is empty", "vitscale data pack"),
        (["plan", "study.toml", "--set", "recipe.rl=1"], INVALID_STUDY, "unknown key 'recipe.rl'", "did you mean 'recipe.lr'?"),
        (["sweep", "study.toml", "--only", " "], USAGE, "--only is empty", "the start of a run id"),
        (["pretrain"], USAGE, "no data to pre-train on", "--data"),
        (["pretrain", "--size", "Q", "--data", "train"], INVALID_STUDY, "unknown model 'ViT-Q/16'", "did you mean"),
        (["pretrain", "--family", "cnn", "--data", "train"], USAGE, "unknown family 'cnn'", "vit, hybrid or resnet"),
        (["pretrain", "--data", "empty"], MISSING, "no data set at empty", "vitscale data pack"),
        (["pretrain", "--data", "train", "--set", "data.resolution=100"], INVALID_STUDY, "patch 16 does not divide resolution 100", "fit"),
        (["fewshot", "abc", "--task", "digits"], MISSING, "there is no run 'abc' in runs", "vitscale status"),
        (["finetune", "abc", "--task", "digits"], MISSING, "there is no run 'abc' in runs", "vitscale status"),
        (["status", "study.toml", "--runs", "study.toml"], MISSING, "study.toml is not a folder", "--runs"),
        (["clean", "--runs", "gone"], MISSING, "there is no folder gone", "--runs"),
        (["clean", "--runs", "study.toml"], MISSING, "there is no folder study.toml", "--runs"),
        (["swep"], USAGE, "No such command 'swep'", "vitscale --help"),
        (["plan"], USAGE, "Missing argument 'STUDY'", "vitscale plan --help"),
        (["sweep", "study.toml", "--jobs", "0"], USAGE, "Invalid value for '--jobs'", "vitscale sweep --help"),
        (["sweep", "study.toml", "--tensorboard", "study.toml"], USAGE, "study.toml is not a folder", "name a folder, old or new"),
        (["plan", "study.toml", "--price", "inf"], USAGE, "Invalid value for '--price': inf is no number", "--help"),
        (["plan", "study.toml", "--memory", "inf"], USAGE, "Invalid value for '--memory': inf is no number", "--help"),
        (["plan", "study.toml", "--nonsense"], USAGE, "No such option: --nonsense", "vitscale plan --help"),
        (["report", "gone"], MISSING, "gone", ""),
        (["results", "gone"], MISSING, "gone", ""),
        (["data", "info", "empty"], MISSING, "empty", ""),
        (["data", "pack", "gone", "out"], MISSING, "gone", ""),
    ],
)  # fmt: skip
def test_a_mistake_gets_two_lines_and_its_exit_code(
    folder: Path, arguments: list[str], code: int, error: str, hint: str
) -> None:
    done = vitscale(folder, *arguments)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert lines[-2].startswith("error: ")
    assert error in lines[-2]
    assert lines[-1].startswith("hint: ")
    assert hint in lines[-1]
    assert done.stdout == ""


def test_a_truncated_shard_is_named_and_the_data_are_kept(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    (shard,) = (tmp_path / "train").glob("*.tar")
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    done = vitscale(
        tmp_path,
        "pretrain",
        "--model",
        "ViT-mu/7",
        "--data",
        "train",
        "--set",
        "data.resolution=28",
        "--set",
        "recipe.steps=2",
        "--set",
        "recipe.warmup_steps=0",
    )
    assert done.returncode == MISSING
    lines = done.stderr.strip().splitlines()
    assert lines[-2].startswith("error: ")
    assert shard.name in lines[-2]
    assert shard.stat().st_size == len(data) // 2


def test_plan_and_status_answer_on_stdout_and_advise_on_stderr(folder: Path) -> None:
    import json

    plan = vitscale(folder, "plan", "study.toml")
    assert plan.returncode == 0
    header, first, *_ = plan.stdout.splitlines()
    assert header.split("\t")[:4] == ["run", "role", "model", "examples"]
    assert len(first.split("\t")) == len(header.split("\t"))
    document = json.loads(vitscale(folder, "plan", "study.toml", "--json").stdout)
    listed = vitscale(folder, "plan", "study.toml", "--transfers").stdout
    assert listed.startswith(plan.stdout)
    named = {line.split("\t")[0] for line in listed.splitlines()}
    assert named >= {job["id"] for job in document["jobs"]}
    assert not {job["id"] for job in document["jobs"] if job["kind"] == "transfer"} & set(plan.stdout.split())
    assert document["schema"] == 1
    assert document["jobs"][0]["id"] == first.split("\t")[0]
    assert {job["state"] for job in document["jobs"]} == {"to do"}
    status = json.loads(vitscale(folder, "status", "study.toml", "--json").stdout)
    assert status["counts"]["to do"] == len(document["jobs"])


@pytest.mark.parametrize("verb", ["plan", "status"])
def test_in_a_log_the_advice_stands_behind_the_answer(folder: Path, verb: str) -> None:
    command = [sys.executable, "-m", "vitscale", verb, "study.toml"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    lines = done.stdout.splitlines()
    assert ["\t" in line for line in lines] == sorted(("\t" in line for line in lines), reverse=True)
    assert "\t" in lines[0]
    assert "\t" not in lines[-1]


@pytest.mark.parametrize("arguments", [["plan", "study.toml"], ["plan", "study.toml", "--json"], ["sweep", "--help"]])
def test_an_answer_that_cannot_be_written_is_said(folder: Path, arguments: list[str]) -> None:
    """A disk that is full is told in two lines; a reader that has seen enough, as `head`, is none of our business."""
    command = [sys.executable, "-m", "vitscale.cli.main", *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == MISSING
    assert done.stderr.splitlines()[-2:] == [
        "error: standard output: No space left on device",
        "hint: make room there, or send the answer elsewhere",
    ]
    assert "Traceback" not in done.stderr
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, cwd=folder, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 0
    assert "rror" not in done.stderr
    closed = ["bash", "-c", 'exec "$@" >&-', "bash", *command]
    done = subprocess.run(closed, cwd=folder, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, "rror" in done.stderr) == (0, False), done.stderr


def test_a_study_that_is_not_there_has_others_named_and_no_project(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    for name in ("pyproject.toml", "studies/mine.toml"):
        (tmp_path / name).touch()
    assert vitscale(tmp_path, "plan", "mine.toml").stderr.splitlines()[-1] == "hint: there are: studies/mine.toml"


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    assert vitscale(tmp_path, "--version").stdout == f"vitscale {metadata.version('vitscale')}\n"


def test_help_starts_without_anything_heavy() -> None:
    code = (
        "import sys; from vitscale.cli.main import app; from typer.testing import CliRunner;"
        "out = CliRunner().invoke(app, ['--help']); assert out.exit_code == 0, out.output; assert 'sweep' in out.output;"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'pyarrow', 'scipy', 'deepspeed'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_planning_loads_neither_torch_nor_numpy(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from vitscale.study.load import load; from vitscale.study.plan import plan;"
        "plan(load(Path('study.toml')), {}); heavy = {'torch', 'numpy', 'pandas', 'deepspeed'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)


def test_a_disk_that_fills_up_in_a_run_is_said_and_the_run_goes_on_later(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    settings = ["--set", "data.resolution=28", "--set", "recipe.steps=4", "--set", "recipe.warmup_steps=0"]
    command = ["pretrain", "--model", "ViT-Ti/7", "--data", "train", "--set", "recipe.batch_size=16", *settings]
    megabytes = 10**6  # Ti's weights take 22
    limited = f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (5 * {megabytes}, -1));"
    limited += f"sys.argv = ['vitscale', *{command!r}]; runpy.run_module('vitscale.cli.main', run_name='__main__')"
    full = subprocess.run(
        [sys.executable, "-c", limited], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert full.returncode == MISSING, full.stderr
    error, hint = full.stderr.strip().splitlines()[-2:]
    assert error.startswith("error: runs/")
    assert "the disk took no checkpoint" in error
    assert "free some disk space" in hint
    assert vitscale(tmp_path, *command).returncode == 0


def test_ctrl_c_while_the_verbs_are_being_loaded_is_a_line_and_no_traceback() -> None:
    code = """
import sys
class Person:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Person())
from vitscale.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "stopped\n")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"vitscale": "vitscale.__main__:main"}
