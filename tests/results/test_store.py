import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vitscale.errors import MISSING, VitscaleError
from vitscale.results.schema import COLUMNS, NAMES, SCHEMA
from vitscale.results.store import Held, read, read_plan, write_part, write_plan


def test_rows_come_back_as_written_and_what_is_missing_is_null(tmp_path: Path) -> None:
    started = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    path = write_part(
        [{"family": "vit", "shots": 5, "value": 0.5, "git_dirty": True, "started": started}],
        tmp_path / "study",
        run_id="ab12",
        attempt=2,
    )
    assert path.name == "ab12-2.parquet"
    (row,) = read(tmp_path / "study").to_dict("records")
    assert list(row) == list(NAMES)
    assert (row["run_id"], row["attempt"], row["schema"]) == ("ab12", 2, SCHEMA)
    assert (row["family"], row["shots"], row["value"], row["git_dirty"]) == ("vit", 5, 0.5, True)
    assert row["started"] == started
    given = {"run_id", "attempt", "schema", "family", "shots", "value", "git_dirty", "started"}
    assert all(pd.isna(row[name]) for name in NAMES if name not in given)


def test_pandas_reads_the_folder_as_it_is_beside_a_report_and_an_interrupted_write(tmp_path: Path) -> None:
    write_part([{"value": 0.1}, {"value": 0.2}], tmp_path, run_id="a", attempt=1)
    write_part([{"shots": 1, "value": None, "status": "failed"}], tmp_path, run_id="b", attempt=1)
    (tmp_path / "_report").mkdir()
    (tmp_path / "_report" / "figure.png").write_bytes(b"not Parquet")
    (tmp_path / ".c-1.parquet.123").write_bytes(b"half a part")
    assert len(pd.read_parquet(str(tmp_path))) == 3
    assert len(read(tmp_path)) == 3


def test_flops_beyond_64_bits_are_kept(tmp_path: Path) -> None:
    write_part([{"flops_standalone": 10**23 + 1}], tmp_path, run_id="a", attempt=1)
    assert read(tmp_path)["flops_standalone"][0] == float(10**23 + 1)


def test_json_columns_take_objects_and_text(tmp_path: Path) -> None:
    rows = [{"settings": {"seed": 1, "recipe.lr": 1e-3}}, {"settings": '{"seed": 2}'}]
    write_part(rows, tmp_path, run_id="a", attempt=1)
    assert [json.loads(text) for text in read(tmp_path)["settings"]] == [{"seed": 1, "recipe.lr": 1e-3}, {"seed": 2}]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"famly": "vit"}, "unknown result column 'famly'; did you mean 'family'"),
        ({"width": 0.5}, "'width' holds int64"),
        ({"shots": "five"}, "'shots' holds int64"),
        ({"family": 3}, "'family' holds string"),
        ({"started": datetime(2026, 1, 1)}, "'started'.*no time zone"),
    ],
)
def test_a_wrong_column_or_value_is_refused_before_anything_is_written(
    tmp_path: Path, row: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        write_part([{"value": 1.0}, row], tmp_path / "study", run_id="a", attempt=1)
    assert not (tmp_path / "study").exists()


def test_the_same_attempt_replaces_its_part_and_another_one_stands_beside_it(tmp_path: Path) -> None:
    for attempt, value in ((1, 0.1), (1, 0.2), (2, 0.3)):
        write_part([{"value": value}], tmp_path, run_id="a", attempt=attempt)
    assert sorted(read(tmp_path)["value"]) == [0.2, 0.3]


def test_a_writer_killed_at_any_moment_leaves_whole_parts_only(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from vitscale.results.store import write_part\n"
        "print('ready', flush=True)\n"
        "for n in range(10**6): write_part([{'value': 0.5}] * 2000, Path(sys.argv[1]), run_id=f'{n}', attempt=1)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    while not (tmp_path / "3-1.parquet").exists():
        assert writer.poll() is None
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert len(read(tmp_path)) % 2000 == 0
    assert len(pd.read_parquet(str(tmp_path))) % 2000 == 0


def test_a_missing_folder_is_named_with_the_nearest_one_that_is_there(tmp_path: Path) -> None:
    write_part([{"value": 0.1}], tmp_path / "data_size", run_id="a", attempt=1)
    with pytest.raises(VitscaleError) as caught:
        read(tmp_path / "data_sise")
    assert caught.value.exit_code == MISSING
    assert "data_sise" in str(caught.value)
    assert "did you mean 'data_size'" in str(caught.value)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(VitscaleError, match="no result parts") as caught:
        read(tmp_path)
    assert caught.value.exit_code == MISSING


def test_a_truncated_part_is_named_and_left_where_it_is(tmp_path: Path) -> None:
    write_part([{"value": 0.1}], tmp_path, run_id="a", attempt=1)
    path = write_part([{"value": 0.1}], tmp_path, run_id="b", attempt=1)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(VitscaleError, match=r"b-1\.parquet: not a readable Parquet file") as caught:
        read(tmp_path)
    assert caught.value.exit_code == MISSING
    assert path.stat().st_size == 200


def test_a_part_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    write_part([{"value": 0.1, "schema": SCHEMA + 1}], tmp_path, run_id="a", attempt=1)
    with pytest.raises(VitscaleError, match=rf"a-1\.parquet: written with results schema {SCHEMA + 1}"):
        read(tmp_path)


def test_a_part_from_before_a_column_existed_reads_as_null(tmp_path: Path) -> None:
    path = write_part([{"value": 0.1, "mfu": 0.4}], tmp_path, run_id="a", attempt=1)
    pq.write_table(pq.read_table(path).drop_columns(["mfu"]), path)
    assert read(tmp_path)["mfu"].isna().all()


def test_a_column_of_another_type_is_named_with_its_part(tmp_path: Path) -> None:
    path = write_part([{"value": 0.5}], tmp_path, run_id="a", attempt=1)
    table = pq.read_table(path)
    at = table.column_names.index("seed")
    pq.write_table(table.set_column(at, "seed", pa.array(["x"])), path)
    with pytest.raises(VitscaleError, match=r"a-1\.parquet: column 'seed' holds what is no int64") as caught:
        read(tmp_path)
    assert caught.value.exit_code == MISSING


def test_columns_that_are_not_ours_are_no_matter(tmp_path: Path) -> None:
    for run_id, extra in (("a", [1]), ("b", ["text"])):
        path = write_part([{"value": 0.5}], tmp_path, run_id=run_id, attempt=1)
        pq.write_table(pq.read_table(path).append_column("extra", pa.array(extra)), path)
    assert list(read(tmp_path).columns) == list(NAMES)


def test_a_foreign_parquet_file_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "mine.parquet")
    with pytest.raises(VitscaleError, match=r"mine\.parquet: not a result part"):
        read(tmp_path)


def test_every_column_has_a_meaning_and_a_name_of_its_own() -> None:
    assert len(set(NAMES)) == len(COLUMNS)
    assert all(column.meaning for column in COLUMNS)


def test_the_documentation_lists_every_column() -> None:
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text("utf-8")
    for column in COLUMNS:
        assert f"| `{column.name}` | {column.type} | {column.meaning} |" in text


def test_the_plan_comes_back_and_readers_of_parquet_skip_it(tmp_path: Path) -> None:
    assert read_plan(tmp_path) is None
    write_plan(tmp_path / "study", Held(frozenset(["b", "a", "b"])))
    assert read_plan(tmp_path / "study") == Held(frozenset({"a", "b"}))
    assert json.loads((tmp_path / "study" / "_plan.json").read_text()) == {"schema": 1, "runs": ["a", "b"]}
    write_part([{"value": 0.1}], tmp_path / "study", run_id="a", attempt=1)
    assert len(pd.read_parquet(str(tmp_path / "study"))) == len(read(tmp_path / "study")) == 1
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == ["_plan.json", "a-1.parquet"]


def test_the_plan_is_written_anew_only_where_it_changes(tmp_path: Path) -> None:
    write_plan(tmp_path, Held(frozenset(["a", "b"])))
    before = (tmp_path / "_plan.json").stat()
    write_plan(tmp_path, Held(frozenset(iter(["b", "a"]))))
    assert (tmp_path / "_plan.json").stat().st_ino == before.st_ino
    write_plan(tmp_path, Held(frozenset(["a"])))
    assert read_plan(tmp_path) == Held(frozenset({"a"}))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"schema": 1, "ru', "not readable"),
        ('{"schema": 1}', "not readable"),
        ("[]", "not readable"),
        ('{"schema": 1, "runs": [1]}', "not readable"),
        ('{"schema": 2, "runs": []}', "schema 2; this vitscale reads up to 1"),
    ],
)
def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "_plan.json").write_text(text)
    with pytest.raises(VitscaleError, match=rf"_plan\.json: .*{complaint}") as caught:
        read_plan(tmp_path)
    assert caught.value.exit_code == MISSING
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("file", ["results", "results/study"])
def test_a_file_in_the_place_of_the_folder_is_said(tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(VitscaleError, match=f"^error: {tmp_path / file} is a file and no folder") as caught:
        read_plan(tmp_path / "results" / "study")
    assert "writes it anew" not in str(caught.value)


def test_what_is_recorded_again_unchanged_is_not_written_again(tmp_path: Path) -> None:
    """So that a sweep with nothing left to do leaves a folder under version control as it was, and takes no time."""
    path = write_part([{"value": 0.1}], tmp_path, run_id="a", attempt=1)
    before = path.stat()
    write_part([{"value": 0.1}], tmp_path, run_id="a", attempt=1)
    assert path.stat().st_ino == before.st_ino
    write_part([{"value": 0.2}], tmp_path, run_id="a", attempt=1)
    assert list(read(tmp_path)["value"]) == [0.2]
    assert [each.name for each in tmp_path.iterdir()] == ["a-1.parquet"]


def test_what_schema_1_calls_a_fine_tuning_s_compute_is_read_as_unknown(tmp_path: Path) -> None:
    for protocol in ("finetune", "pretrain", "fewshot"):
        write_part([{"protocol": protocol, "flops_segment": 5.0, "schema": 1}], tmp_path, run_id=protocol, attempt=1)
    write_part([{"protocol": "finetune", "flops_segment": 5.0}], tmp_path, run_id="new", attempt=1)
    found = read(tmp_path).set_index("run_id")["flops_segment"]
    assert found.isna().to_dict() == {"finetune": True, "pretrain": False, "fewshot": False, "new": False}
