"""What a person sees of a sweep: on a real terminal, in a log file, and from another terminal."""

import io
import json
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import tiny
from vitscale.cli import live, status
from vitscale.errors import DONE, INTERRUPTED
from vitscale.launch import board as board_module
from vitscale.launch import eventlog, folders, progress
from vitscale.launch.board import Board, board
from vitscale.launch.machine import Machine
from vitscale.launch.slurm.cluster import Entry
from vitscale.launch.slurm.submissions import Place, Submission
from vitscale.launch.sweep import current_plan, everything
from vitscale.study.load import load
from vitscale.study.plan import Plan

STEP: dict[str, Any] = {
    "event": "step",
    "step": 40,
    "steps": 1200,
    "loss": 1.25,
    "lr": 1e-3,
    "images_per_second": 1500.0,
}


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Plan, Path]:
    """The small study, of which the pre-training is under way; the folder of its runs."""
    study = load(tiny.write(tmp_path), base=tmp_path)
    runs = tmp_path / "runs"
    now = current_plan(study, runs)
    folder = folders.prepare(now.jobs[0], runs, base=tmp_path, machine=Machine(jobs=1, threads=1).told())
    tell(folder, {"event": "start", "attempt": 1}, STEP | {"mfu": 0.31, "seconds_left": 100_000.0})
    return now, runs


def tell(folder: Path, *events: dict[str, Any]) -> None:
    with (folder / "events.jsonl").open("a") as file:
        for number, event in enumerate(events):
            file.write(json.dumps({"time": f"2026-01-01T00:00:0{number}", **event}) + "\n")


def seen(planned: tuple[Plan, Path], **more: Any) -> Board:
    now, runs = planned
    with folders.lease.hold(runs / now.jobs[0].id):
        return board(now, runs, everything, **more)


def test_a_board_counts_the_study_and_shows_who_works(planned: tuple[Plan, Path]) -> None:
    found = seen(planned)
    assert dict(found.counts) == {"done": 0, "running": 1, "failed": 0, "to do": len(planned[0].jobs) - 1}
    assert found.summary().startswith(f"0 done, 1 running, 0 failed, {len(planned[0].jobs) - 1} to do, about ")
    assert "step 40/1,200, loss 1.250" in found.lines[0].words
    assert "27:46:40 left" in found.lines[0].words, "more than a day"
    assert not found.over


def test_no_time_is_left_where_nobody_works(planned: tuple[Plan, Path]) -> None:
    now, runs = planned
    assert seen(planned).seconds_left
    stopped = board(now, runs, everything)
    assert stopped.summary() == f"0 done, 0 running, 0 failed, {len(now.jobs)} to do"
    assert board(now, runs, everything, at_once=1).seconds_left, "a sweep is between two runs"


def test_a_worker_that_does_not_hold_its_run_yet_is_starting(planned: tuple[Plan, Path]) -> None:
    now, runs = planned
    found = board(now, runs, everything, started=[now.jobs[1:3]])
    assert [(line.job.id, line.doing) for line in found.lines] == [(now.jobs[1].id, "starting")]


def test_numbers_of_an_attempt_before_are_not_shown_as_those_of_this_one(planned: tuple[Plan, Path]) -> None:
    now, runs = planned
    tell(runs / now.jobs[0].id, {"event": "start", "attempt": 2, "time": "2026-01-01T00:01:00"})
    assert seen(planned).lines[0].doing == "starting"


def test_a_failure_that_may_be_tried_again_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    def stands(**counts: int) -> Board:
        return Board(lines=(), counts={"done": 3, "running": 0, "failed": 0, "to do": 0, **counts}, seconds_left=None)

    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    ended = board_module.Ending(stands(running=1))
    assert not ended(stands(failed=1))
    now += 5
    assert not ended(stands(running=1))  # it was tried again
    assert not ended(stands(failed=1))
    now += 14
    assert not ended(stands(failed=1))
    now += 2
    assert ended(stands(failed=1))
    assert board_module.Ending(stands(failed=1))(stands(failed=1))  # which failed long before anybody looked


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_jumps_hides_no_run(planned: tuple[Plan, Path], hours: int) -> None:
    now, runs = planned
    folder = runs / now.jobs[0].id
    tell(folder, {"event": "start", "attempt": 2}, STEP | {"seconds_left": 5.0, "time": f"2026-01-0{2 + hours}T00:00"})
    with folders.lease.hold(folder):
        (line,) = board(now, runs, everything).lines
        assert "step 40/1,200" in line.words


def test_silence_is_what_the_watcher_has_seen(planned: tuple[Plan, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    now, runs = planned
    folder, clock = runs / now.jobs[0].id, 0.0
    monkeypatch.setattr(eventlog.time, "monotonic", lambda: clock)
    monkeypatch.setattr(eventlog.time, "time", lambda: 1e12)
    (folder / "heartbeat").touch()
    os.utime(folder / "heartbeat", (0, 0))
    assert eventlog.silent_seconds(folder) == 0.0, "nobody holds it, and it may have moved just now"
    clock = 40.0
    assert eventlog.silent_seconds(folder) == 40.0
    os.utime(folder / "heartbeat", (7200, 7200))  # it moves, whatever its clock says
    assert eventlog.silent_seconds(folder) == 0.0


def test_at_a_first_look_a_run_is_as_silent_as_its_lease_says(planned: tuple[Plan, Path]) -> None:
    folder = planned[1] / planned[0].jobs[0].id
    with folders.lease.hold(folder) as claim:
        (folder / "heartbeat").touch()
        os.utime(folder / "heartbeat", (1000, 1000))
        os.utime(claim.path, (1090, 1090))  # by the same clock, whichever that is
        assert eventlog.silent_seconds(folder) == pytest.approx(90, abs=1)


def test_a_fine_tuning_counts_the_steps_of_all_its_trainings(planned: tuple[Plan, Path]) -> None:
    now, runs = planned
    job = next(job for job in now.jobs if job.parent and job.run.transfer and job.run.transfer.protocol == "finetune")
    folder = folders.prepare(job, runs, base=runs.parent, machine={})
    lines = [STEP | {"step": step, "steps": 4, "device_seconds": 2.0 * step, "seconds_left": 0.0} for step in (1, 4)]
    # Two rates and two repetitions of 4 steps; one ended in the attempt before, and one diverged.
    tell(folder, *(line | {"training": 1} for line in lines), {"event": "start", "attempt": 2})
    tell(folder, *(line | {"training": 2} for line in lines), {"event": "diverged"}, lines[0] | {"training": 3})
    with folders.lease.hold(folder):
        found = board(now, runs, everything)
    told = next(line for line in found.lines if line.job.id == job.id).step
    assert told is not None
    assert (told["step"], told["steps"], told["seconds_left"]) == (9, 16, 14.0)


def test_no_time_is_left_by_the_first_step_alone(planned: tuple[Plan, Path]) -> None:
    """Of a pre-training its line says so; a fine-tuning goes by the steps behind the first of each training."""
    now, runs = planned
    tell(runs / now.jobs[0].id, {"event": "start", "attempt": 2}, STEP | {"step": 1, "seconds_left": None})
    (line,) = seen(planned).lines
    assert "left" not in line.words
    assert live._cells(line)[-1] == ""
    job = next(job for job in now.jobs if job.parent and job.run.transfer and job.run.transfer.protocol == "finetune")
    first, last = (STEP | {"step": step, "steps": 4, "device_seconds": 60.0 + step} for step in (1, 4))
    (runs / job.id).mkdir()
    tell(runs / job.id, first)
    newest = progress.newest(runs / job.id, job) or {}
    assert newest["seconds_left"] is None
    tell(runs / job.id, last, first | {"training": 2})
    newest = progress.newest(runs / job.id, job) or {}
    assert (newest["step"], newest["seconds_left"]) == (5, 11.0)


def test_a_stopped_run_goes_on_from_its_checkpoint_whatever_it_has_logged(
    planned: tuple[Plan, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line is logged every 5 s; the checkpoint may be of an earlier step, of a kill, or of a later one."""
    now, runs = planned
    monkeypatch.chdir(runs.parent)
    job, tuned = now.jobs[0], next(job for job in now.jobs if job.parent and job.run.transfer.protocol == "finetune")
    tell(folders.prepare(tuned, runs, base=runs.parent, machine={}), STEP | {"step": 3, "steps": 4, "seconds_left": 0})

    def detail(id_: str) -> str:
        status.status(Path("study.toml"))
        return next(line for line in capsys.readouterr().out.splitlines() if f"\t{id_} " in line).split("\t")[2]

    assert detail(job.id) == "begins again, 00:00:00 left"
    tell(runs / job.id, STEP | {"step": 5, "images_per_second": 0.5, "seconds_left": 1.0})
    for saved in (4, 7):
        (runs / job.id / "checkpoints" / f"step-{saved:08d}").mkdir(parents=True)
        left = (12 - saved) * 16 / 0.5
        assert detail(job.id) == f"goes on from step {saved}/12, {progress.clock(left)} left"
    tell(runs / job.id, STEP | {"step": 8, "images_per_second": 1e-3, "seconds_left": None})  # an attempt's first
    assert detail(job.id) == f"goes on from step 7/12, {progress.clock(left)} left"
    (runs / job.id / "events.jsonl").unlink()
    tell(runs / job.id, STEP | {"step": 1, "images_per_second": 1e-3, "seconds_left": None})
    assert detail(job.id) == "goes on from step 7/12"
    assert detail(tuned.id) == "begins again, 00:00:00 left"
    tell(runs / tuned.id, STEP | {"training": 2, "step": 3, "steps": 4, "images_per_second": 0.5, "seconds_left": 1})
    (runs / tuned.id / "checkpoints" / "step-00000006").mkdir(parents=True)
    assert detail(tuned.id) == f"goes on from step 6/16, {progress.clock(10 * 16 / 0.5)} left", "of four trainings"


def test_a_run_whose_job_has_just_started_is_running_and_those_behind_it_are_queued(
    planned: tuple[Plan, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, runs = planned
    monkeypatch.chdir(runs.parent)
    first, second, *others = [job.id for job in now.jobs]
    task = Submission(name="0001", study="study", array=False, tasks={0: ("gone", first, second)}, job="7")
    waits = Submission(name="0002", study="study", array=False, tasks={0: (others[0],)}, job="8")
    places = {id_: Place(task, 0, Entry("7", "RUNNING")) for id_ in (first, second)}
    places[others[0]] = Place(waits, 0, Entry("8", "PENDING", "Priority"))
    monkeypatch.setattr("vitscale.launch.slurm.submissions.standing", lambda *_: places)
    status.status(Path("study.toml"), json=True)
    states = {run["run"]: run["state"] for run in json.loads(capsys.readouterr().out)["runs"]}
    assert [states[id_] for id_ in (first, second, others[0])] == ["running", "queued", "queued"]
    assert {states[id_] for id_ in others[1:]} == {"to do"}


def test_a_table_has_what_someone_watching_needs(planned: tuple[Plan, Path]) -> None:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=80).print(live.drawn(seen(planned)))
    lines = [line for line in out.getvalue().splitlines() if line.strip()]
    assert lines[0].split() == ["run", "model", "step", "loss", "images/s", "MFU", "left"]
    assert planned[0].jobs[0].id in lines[2]
    assert lines[2].split()[-5:] == ["40/1,200", "1.250", "1,500", "31.0%", "27:46:40"]
    assert max(map(len, lines)) <= 80


def test_a_log_gets_a_line_every_half_minute(
    planned: tuple[Plan, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 0.0
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    with (tmp_path / "log").open("w") as log, live.view(log) as view:
        for second in range(95):
            now = float(second)
            view.tick(lambda: seen(planned))
            if second == 40:
                view.say("done     x")
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["0 done", "done     x", "0 done"]  # at 30, 40 and 70 s
    assert "; " + planned[0].jobs[0].id in lines[0]


@dataclass
class Terminal:
    """A command on a terminal of its own."""

    words: list[str]
    folder: Path
    text: str = ""
    pid: int = field(init=False)
    file: int = field(init=False)

    def __post_init__(self) -> None:
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests in the background has it ignored
            os.chdir(self.folder)
            os.execvpe(
                sys.executable, [sys.executable, "-m", "vitscale", *self.words], {**os.environ, "COLUMNS": "100"}
            )

    def read(self, seconds: float) -> bool:
        """False at its end."""
        if select.select([self.file], [], [], seconds)[0]:
            try:
                data = os.read(self.file, 2**16)
            except OSError:
                return False
            self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", data.decode(errors="replace"))
            return bool(data)
        return True

    def until(self, pattern: str) -> None:
        end = time.monotonic() + 100
        while not re.search(pattern, self.text):
            assert self.read(0.5), self.text
            assert time.monotonic() < end, self.text

    def press_ctrl_c(self) -> None:
        os.write(self.file, b"\x03")

    def wait(self) -> int:
        end = time.monotonic() + 100
        while self.read(0.5):
            assert time.monotonic() < end, self.text
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    text = tiny.STUDY.partition("[[transfer]]")[0].replace("steps = 12", "steps = 100_000")
    tiny.write(tmp_path, text.replace("every = 48", "every = 1_600_000"))
    yield tmp_path
    for run in tmp_path.glob("runs/*"):  # where a test failed
        if (holder := folders.lease.holder(run)) is not None:
            os.kill(holder.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_sweep_on_a_terminal_is_one_table_and_stops_at_ctrl_c(folder: Path) -> None:
    sweep = Terminal(["sweep", "study.toml", "--threads", "1"], folder)
    sweep.until(r"1 running, 0 failed")
    sweep.until(r"[1-9][\d,]*/100,000 +\d+\.\d+ +[\d,]+ +[\d.]+% +\d\d:\d\d:\d\d")
    other = Terminal(["status", "study.toml", "--watch"], folder)
    other.until(r"[1-9][\d,]*/100,000 +\d+\.\d+")
    other.press_ctrl_c()
    assert other.wait() == DONE
    assert "Traceback" not in other.text
    sweep.press_ctrl_c()
    assert sweep.wait() == INTERRUPTED
    assert "stopping: 1 run saves first; Ctrl-C again does not wait" in sweep.text
    assert "stopped; the same command goes on from here" in sweep.text
    (run,) = folder.glob("runs/*")
    assert (run / "checkpoints" / "latest").is_file()
    before = (run / "checkpoints" / "latest").read_text()
    again = Terminal(["sweep", "study.toml", "--threads", "1"], folder)
    again.until(r"[1-9][\d,]*/100,000 +\d+\.\d+")
    (worker,) = [holder.pid for holder in [folders.lease.holder(run)] if holder]
    os.kill(worker, signal.SIGSTOP)  # it does not save
    again.press_ctrl_c()
    again.until("stopping: 1 run saves first")
    again.press_ctrl_c()
    assert again.wait() == INTERRUPTED
    assert "stopping now" in again.text
    assert (run / "checkpoints" / "latest").read_text() == before
    assert folders.result(run) is None
