"""`vitscale logs` over run folders as workers leave them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EVENTS = [
    {"event": "start", "attempt": 1, "device": "a processor"},
    {
        "event": "step",
        "step": 5,
        "steps": 10,
        "loss": 2.5,
        "lr": 0.01,
        "images_per_second": 100.0,
        "seconds_left": 90.0,
    },
    {"event": "validate", "step": 5, "accuracy": 0.25},
    {
        "event": "engine",
        "micro_batch": 8,
        "zero_stage": 0,
        "activation_checkpointing": True,
        "offload": False,
        "how": "measured",
    },
    {"event": "out_of_memory"},
    {"event": "failed", "failure": "out of memory", "reason": "out of memory: no 3 GiB left"},
]
SAID = [
    "attempt 1 begins on a processor",
    "step 5/10, loss 2.500, lr 0.01, 100 images/s, 00:01:30 left",
    "validation at step 5: 0.2500",
    "engine: micro-batch 8, ZeRO stage 0, activation checkpointing, measured",
    "out of memory",
    "failed: out of memory: no 3 GiB left",
]


def log(run: Path, *events: dict[str, object], end: str = "\n") -> None:
    with (run / "events.jsonl").open("a") as file:
        file.write("\n".join(json.dumps({"time": "2026-01-01T10:00:00.000+00:00", **event}) for event in events) + end)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "0123456789ab"
    folder.mkdir(parents=True)
    told = {"id": folder.name, "kind": "pretrain", "config": {}, "provenance": {}}
    (folder / "run.json").write_text(json.dumps(told))
    return folder


def logs(run: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vitscale", "logs", run.name[:6], *options]
    return subprocess.Popen(command, cwd=run.parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_s_log_is_its_events_in_words_and_what_its_processes_printed(run: Path) -> None:
    log(run, *EVENTS)
    log(run, {"event": "step"}, end="")
    (run / "log.txt").write_text("Traceback: here\n")
    (run / "log-1.txt").write_text("and there\n")
    out, err = logs(run).communicate(timeout=30)
    assert out.splitlines() == [*(f"2026-01-01 10:00:00  {words}" for words in SAID), "and there", "Traceback: here"]
    assert err == ""


def test_a_log_is_followed_until_the_run_has_ended(run: Path) -> None:
    log(run, EVENTS[0])
    process = logs(run, "--follow")
    assert process.stdout is not None
    assert process.stdout.readline().endswith(SAID[0] + "\n")
    log(run, EVENTS[1])
    assert process.stdout.readline().endswith(SAID[1] + "\n")
    log(run, EVENTS[2], end="")
    log(run, end="\n")  # a line that came in two parts
    assert process.stdout.readline().endswith(SAID[2] + "\n")
    outcome = {"status": "failed", "reason": "", "rows": [], "attempt": 1}
    log(run, EVENTS[-1])
    (run / "result.json").write_text(json.dumps(outcome))
    out, _ = process.communicate(timeout=30)
    assert out.endswith(SAID[-1] + "\n")
    assert process.returncode == 0


def test_a_run_that_has_said_nothing_says_so(run: Path) -> None:
    out, err = logs(run).communicate(timeout=30)
    assert (out, err) == ("", "run 0123456789ab has logged nothing yet\n")
