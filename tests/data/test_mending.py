"""Packs that went wrong before, and what a user's next command does about them."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from small_sets import class_folders, encoded, packed
from vitscale.cli.data import app
from vitscale.data.inspect import verify
from vitscale.data.pack import Packed, Plan, pack
from vitscale.data.shards import open_shards
from vitscale.data.sources import open_source
from vitscale.errors import VitscaleError
from vitscale.files import disk_errors, locked

PLAN = Plan(name="a", shard_samples=5)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def again(images: Path, out: Path, plan: Plan = PLAN) -> Packed:
    return pack(open_source(images), out, plan)


def interrupted(images: Path, out: Path, after: int) -> None:
    def stop(done: int, _: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(open_source(images), out, PLAN, workers=1, progress=stop)


def test_removing_the_bad_images_starts_the_pack_afresh(tmp_path: Path) -> None:
    images, out = class_folders(tmp_path / "in"), tmp_path / "out"
    for i in range(3):
        (images / "class1" / f"{i:03d}.png").write_bytes(b"broken")
    with pytest.raises(VitscaleError, match="repair or remove the file"):
        again(images, out, Plan(name="a"))
    for i in range(3):
        (images / "class1" / f"{i:03d}.png").unlink()
    assert again(images, out, Plan(name="a")).description["samples"] == 21
    verify(out)


def test_another_unfinished_pack_says_what_to_delete(tmp_path: Path) -> None:
    images, out = class_folders(tmp_path / "in"), tmp_path / "out"
    order = [str(key) for key in open_shards(again(images, tmp_path / "whole").folder).keys]
    for key in order[-3:]:
        (images / f"{key}.png").write_bytes(b"broken")
    with pytest.raises(VitscaleError, match="above --max-bad"):
        again(images, out)
    before = content(out)
    for key in order[-3:]:
        (images / f"{key}.png").unlink()
    with pytest.raises(VitscaleError, match="holds an unfinished pack of something else") as error:
        again(images, out)
    assert (
        f"delete .packing.json and a-000000.tar to a-00000{len(before) - 2}.tar there" in error.value.problems[0].hint
    )
    assert content(out) == before
    for name in before:
        (out / name).unlink()
    again(images, out)
    verify(out)


def test_repaired_images_are_packed_as_if_they_had_never_been_broken(tmp_path: Path) -> None:
    images, out = class_folders(tmp_path / "in"), tmp_path / "out"
    whole = again(images, tmp_path / "whole")
    order = [f"{key}.png" for key in open_shards(whole.folder).keys]
    # In the first shard, and at the end: the pack stops when all shards are written, as class 1 has lost its images.
    lost = {name for name in order if name.startswith("class1")} | {order[1], order[-1]}
    for name in lost:
        (images / name).write_bytes(b"broken")
    plan = Plan(name="a", shard_samples=5, max_bad=0.5)
    with pytest.raises(VitscaleError, match="class 'class1' has no readable image"):
        again(images, out, plan)
    for name in sorted(lost - {order[-1]}):
        shutil.copy(_fresh(tmp_path) / name, images / name)
    again_bad = again(images, tmp_path / "one-bad", plan)
    assert [file for file, _ in again(images, out, plan).bad] == [str(images / order[-1])]
    assert content(out) == content(again_bad.folder)


def _fresh(tmp_path: Path) -> Path:
    return tmp_path / "fresh" if (tmp_path / "fresh").exists() else class_folders(tmp_path / "fresh")


def test_a_repaired_image_at_the_end_joins_the_shard_it_belongs_to(tmp_path: Path) -> None:
    images, out = class_folders(tmp_path / "in"), tmp_path / "out"
    order = [f"{key}.png" for key in open_shards(again(images, tmp_path / "whole").folder).keys]
    lost = [name for name in order if name.startswith(order[-1].split("/")[0])]
    plan = Plan(name="a", shard_samples=50, max_bad=0.5)
    for name in lost:
        (images / name).write_bytes(b"broken")
    with pytest.raises(VitscaleError, match="has no readable image"):
        again(images, out, plan)
    shutil.copy(_fresh(tmp_path) / order[-1], images / order[-1])
    assert again(images, out, plan).description["samples"] == 17
    assert content(out) == content(again(images, tmp_path / "once", plan).folder)


@pytest.mark.parametrize("number", [0, 4])
@pytest.mark.parametrize("how", ["gone", "cut", "grown"])
def test_a_lost_shard_is_written_again_and_no_other(tmp_path: Path, number: int, how: str) -> None:
    images, out = class_folders(tmp_path / "in"), tmp_path / "out"
    (images / "class0" / "002.png").write_bytes(b"broken")
    plan = Plan(name="a", shard_samples=5, max_bad=0.2)
    again(images, out, plan)
    before = content(out)
    shard = out / f"a-00000{number}.tar"
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.tar") if path != shard}
    if how == "gone":
        shard.unlink()
    else:
        os.truncate(shard, shard.stat().st_size + (-700 if how == "cut" else 512))
    with pytest.raises(VitscaleError, match=shard.name) as error:
        open_shards(out)
    assert "delete it and run the `vitscale data` command that made it" in str(error.value)
    done = again(images, out, plan)
    assert (done.was_there, done.mended) == (True, (shard.name,))
    assert content(out) == before
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert again(images, out, plan).mended == ()


@pytest.mark.parametrize("name", ["index.parquet", "classes.json"])
def test_a_lost_index_is_made_again(tmp_path: Path, name: str) -> None:
    images, out = class_folders(tmp_path / "in"), tmp_path / "out"
    again(images, out)
    before = content(out)
    (out / name).unlink()
    again(images, out)
    assert content(out) == before


def test_a_lost_shard_whose_images_have_changed_is_refused_and_nothing_else_touched(tmp_path: Path) -> None:
    images, out = class_folders(tmp_path / "in"), tmp_path / "out"
    again(images, out)
    inside = images / f"{open_shards(out).keys[0]}.png"
    (out / "a-000000.tar").unlink()
    before = content(out)
    for data, message in ((encoded(999), "no longer gives the bytes"), (b"broken", "cannot be read")):
        inside.write_bytes(data)
        with pytest.raises(VitscaleError, match=message) as error:
            again(images, out)
        assert error.value.exit_code == 5
        assert f"delete the folder {out} and run the same command again" in error.value.problems[0].hint
        assert content(out) == before
    (out / "index.parquet").unlink()
    with pytest.raises(VitscaleError, match=r"a-000000\.tar is lost, and index\.parquet"):
        again(images, out)


def test_a_damaged_description_can_be_made_again(tmp_path: Path) -> None:
    out = packed(tmp_path).folder
    (out / "dataset.json").write_text('{"schema":')
    with pytest.raises(VitscaleError, match=r"dataset\.json: cannot be read") as error:
        open_shards(out)
    assert f"delete {out / 'dataset.json'} and {out / 'index.parquet'}" in error.value.problems[0].hint
    for name in ("dataset.json", "index.parquet"):
        (out / name).unlink()
    assert len(open_shards(out)) == 24


def test_a_refused_pack_deletes_nothing(tmp_path: Path) -> None:
    images, mine = class_folders(tmp_path / "in"), tmp_path / "mine"
    mine.mkdir()
    for name in (".thesis.partial", "thesis.tex"):
        (mine / name).write_text("years of work")
    with pytest.raises(VitscaleError, match="not an empty folder"):
        again(images, mine)
    assert sorted(content(mine)) == [".thesis.partial", "thesis.tex"]


def test_going_on_deletes_only_what_a_pack_makes(tmp_path: Path) -> None:
    images, out = class_folders(tmp_path / "in"), tmp_path / "out"

    interrupted(images, out, 12)
    mine = (".thesis.partial", "backup.tar", "b-000009.tar")
    litter = (".a-000002.tar.17.partial", "..packing.json.17.partial", "a-000002.tar")
    for name in mine + litter:
        (out / name).write_text("x")
    again(images, out)
    assert not set(litter[:2]) & set(content(out))
    assert {(out / name).read_text() for name in mine} == {"x"}
    assert len(content(out)["a-000002.tar"]) > 1


def test_a_folder_where_a_pack_was_killed_at_once_is_as_good_as_empty(tmp_path: Path) -> None:
    images, out = class_folders(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    for name in ("..packing.json.17.partial", ".packing.lock"):
        (out / name).write_text("")
    again(images, out)
    assert content(out) == content(again(images, tmp_path / "whole").folder)


def test_a_recorded_shard_that_went_away_is_written_again(tmp_path: Path) -> None:
    images, out = class_folders(tmp_path / "in"), tmp_path / "out"

    interrupted(images, out, 17)
    (out / "a-000001.tar").unlink()
    assert again(images, out).resumed_at == 5
    assert content(out) == content(again(images, tmp_path / "whole").folder)


def test_a_second_pack_into_the_same_folder_is_refused_and_the_first_one_ends(tmp_path: Path) -> None:
    images, out = class_folders(tmp_path / "in"), tmp_path / "out"
    half, go = threading.Event(), threading.Event()

    def wait(done: int, _: int) -> None:
        if done == 12:
            half.set()
            assert go.wait(60)

    first = threading.Thread(target=lambda: pack(open_source(images), out, PLAN, progress=wait))
    first.start()
    try:
        assert half.wait(60)
        with pytest.raises(VitscaleError, match="another process is packing into this folder") as error:
            again(images, out)
    finally:
        go.set()
        first.join()
    assert error.value.exit_code == 5
    assert content(out) == content(again(images, tmp_path / "whole").folder)


def test_a_lock_is_free_again_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for _ in range(2):
        with locked(path) as held, locked(path) as twice:
            assert (held, twice) == (True, False)
            assert path.exists()
        assert not path.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    images = str(class_folders(tmp_path / "in"))
    for words in (["fetch", "fashion-mnist", "--out", "/proc/x"], ["pack", images, "/proc/x"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 5, result.output
        assert result.stderr.splitlines()[-2:] == [
            "error: /proc/x: No such file or directory",
            "hint: it is gone, or cannot be made there: choose a folder that you may write to",
        ]
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(VitscaleError, match="is a file, where a folder is needed"),
        disk_errors(tmp_path / "file" / "x"),
    ):
        (tmp_path / "file" / "x").mkdir(parents=True)


def test_one_of_a_kind_is_said_in_the_singular(tmp_path: Path) -> None:
    images, out = class_folders(tmp_path / "in", classes=1, per_class=2), tmp_path / "out"
    (images / "class0" / "000.png").write_bytes(b"broken")
    words = ["pack", str(images), str(out), "--max-bad", "0.5"]
    first = CliRunner().invoke(app, words).stdout
    assert first.startswith(f"{out}: 1 image, 1 class, 1 shard, ")
    assert first.endswith(", 1 unreadable image skipped\n")
    assert CliRunner().invoke(app, words).stdout == f"{out} is already there: 1 image, 1 class\n"
    assert CliRunner().invoke(app, ["info", str(out)]).stdout.startswith("out: 1 image, 1 class\n")
    assert CliRunner().invoke(app, ["verify", str(out)]).stdout == f"{out}: 1 image in 1 shard: all whole\n"
    (out / "out-000000.tar").unlink()
    mended = CliRunner().invoke(app, words).stdout
    assert mended == f"{out} is already there: 1 image, 1 class; 1 lost shard written again\n"
