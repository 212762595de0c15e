"""One run, outside any study, with a study's run folder, worker and result part."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

from vitscale.errors import HELD, MISSING, VitscaleError
from vitscale.launch import folders
from vitscale.launch.collect import collect
from vitscale.launch.local import Worker, wait_any
from vitscale.launch.progress import progress_words
from vitscale.launch.sweep import Machine, Places, Say, not_saved
from vitscale.processes import STOP_SIGNALS
from vitscale.study.plan import Job


def run_single(job: Job, *, places: Places, machine: Machine, study: str, say: Say) -> bool:
    """Runs a job to its end and records it; True where a signal stopped it before."""
    if folders.result(places.runs / job.id) is None:
        folder = folders.prepare(job, places.runs, base=Path(), machine=machine.told())
        worker = Worker([folder], machine.threads, machine.devices_for(job))
        asked = False

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal asked
            del frame
            worker.stop(now=asked and number == signal.SIGINT)  # a scheduler may say it twice; who is impatient, Ctrl-C
            asked = True

        before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
        try:
            while not wait_any([worker], 10.0):
                event = folders.last_event(folder)
                say(progress_words(event, folders.silent_seconds(folder)) if event else "starting")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        worker.record_death()
        if worker.ended() == HELD:
            raise VitscaleError(
                f"run {job.id} is being worked on by another process",
                hint="wait for it, or stop that process",
                exit_code=MISSING,
            )
        if worker.ended() == MISSING and folders.result(folder) is None:
            raise not_saved(folder)
        if asked and folders.result(folder) is None:
            return True
    collect(job, places.runs, places.results, study)
    return False
