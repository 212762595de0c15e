"""`vitscale status`: where each run of a study stands."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitscale.cli import options
from vitscale.cli.live import view
from vitscale.cli.screen import print_json, print_table, reports_errors, say, tell_refused
from vitscale.errors import USAGE, VitscaleError

if TYPE_CHECKING:
    from vitscale.launch.board import Board
    from vitscale.launch.slurm.submissions import Place
    from vitscale.study.job import Job
    from vitscale.study.load import Study

STATES = ("done", "failed", "refused", "running", "queued", "stopped", "to do")


@reports_errors
def status(
    study: options.StudyFile,
    settings: options.Settings = None,
    runs: options.Runs = Path("runs"),
    watch: Annotated[
        bool, typer.Option("--watch", help="Show what is under way, until all is done or Ctrl-C comes.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Say where each run of STUDY stands: done, failed and why, running and how far, queued, stopped, to do.

    What cannot begin waits for the run that failed. A folder that is damaged, or holds another run, is refused.
    """
    from vitscale.launch import folders, standing
    from vitscale.launch.progress import title
    from vitscale.launch.slurm.submissions import describe
    from vitscale.launch.sweep import current_plan
    from vitscale.study.load import load

    loaded = load(study, settings=settings or [])
    if watch and json:
        raise VitscaleError("--watch is to be looked at", hint="leave --json or --watch out", exit_code=USAGE)
    if watch:
        _watch(loaded, runs)
        return
    now = current_plan(loaded, runs)
    in_slurm = _in_slurm(now.jobs, runs)
    states = standing.states(now.jobs, runs)
    found = [(job, _state(job, states, in_slurm), _detail(job, runs, in_slurm)) for job in now.jobs]
    counts = {state: sum(each == state for _, each, _ in found) for state in STATES}
    held_back, waiting = standing.stuck(states, now.jobs), len(now.waiting)
    if not standing.can_choose(now.jobs, states):
        held_back, waiting = held_back + waiting, 0
    failures = Counter(
        (folders.outcome_of(job, runs) or {}).get("failure", "code") for job, state, _ in found if state == "failed"
    )
    if json:
        runs_ = [
            {
                "state": state,
                "run": job.id,
                "title": title(job),
                "detail": detail,
                "slurm": describe(in_slurm.get(job.id)),
            }
            for job, state, detail in found
        ]
        told = {"counts": counts, "failures": dict(failures), "waiting": waiting, "stuck": held_back, "runs": runs_}
        print_json({"study": loaded.name, **told})
        return
    print_table([(state, title(job), detail) for job, state, detail in found], ["state", "run", "detail"])
    tell_refused(now.jobs, states, runs)
    say(_summary(counts, failures, waiting, held_back))


def _in_slurm(jobs: Sequence[Job], runs: Path) -> Mapping[str, Place]:
    """Of runs that have not ended what Slurm says, where any was ever submitted and Slurm answers."""
    from vitscale.launch import folders
    from vitscale.launch.slurm import submissions

    try:
        return submissions.standing(runs, [job.id for job in jobs if folders.outcome_of(job, runs) is None])
    except VitscaleError as error:
        say(f"Slurm: {error.problems[0].message}")
        return {}


def _state(job: Job, states: Mapping[str, str], in_slurm: Mapping[str, Place]) -> str:
    """Of a run that nobody holds what Slurm says of its job: one that has just started has yet to load Python."""
    state, place = states[job.id], in_slurm.get(job.id)
    if state not in ("stopped", "to do") or place is None or not place.is_live:
        return state
    next_of_task = next(id_ for id_ in place.submission.tasks[place.task] if id_ in in_slurm)
    return "running" if place.is_running and job.id == next_of_task else "queued"


def _detail(job: Job, runs: Path, in_slurm: Mapping[str, Place]) -> str:
    from vitscale.launch import folders
    from vitscale.launch.progress import failure_words, goes_on, progress, summary

    outcome = folders.outcome_of(job, runs)
    if outcome is None:
        place = in_slurm.get(job.id)
        how_far = progress if folders.is_held(runs / job.id) else goes_on
        words = [how_far(runs / job.id, job), place.words if place else ""]
        return "; ".join(filter(None, words))
    return summary(outcome) if outcome["status"] == "done" else failure_words(outcome)


def _summary(counts: Mapping[str, int], failures: Mapping[str, int], waiting: int, held_back: int) -> str:
    """`3 done, 2 failed (1 killed, 1 time), 1 to do`."""
    from vitscale.launch.progress import stuck_words

    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(failures.items()))
    words = [
        f"{count} {state}" + (f" ({kinds})" if state == "failed" else "") for state, count in counts.items() if count
    ]
    words += [f"{waiting} wait for [select]"] if waiting else []
    return ", ".join([*words, *([stuck_words(held_back)] if held_back else [])])


class Queue:
    """What is queued in Slurm, which is not asked at every look."""

    EVERY = 10.0

    def __init__(self, runs: Path) -> None:
        self._runs, self._next, self._words = runs, 0.0, ""

    def words(self, jobs: Sequence[Job]) -> str:
        from vitscale.launch.slurm.submissions import queued_words

        if time.monotonic() >= self._next:
            self._words = queued_words(_in_slurm(jobs, self._runs))
            self._next = time.monotonic() + self.EVERY
        return self._words


def _watch(study: Study, runs: Path) -> None:
    """Until nothing is left, in whatever processes and on whatever hosts it runs."""
    from vitscale.launch.board import Ending, board
    from vitscale.launch.sweep import current_plan, everything

    def look() -> Board:
        now = current_plan(study, runs)
        seen[:] = [board(now, runs, everything, note=queue.words(now.jobs))]
        return seen[0]

    queue = Queue(runs)
    seen: list[Board] = []
    with view(sys.stdout) as shown, suppress(KeyboardInterrupt):
        shown.say(f"{study.title}: {look().summary()}")
        ended = Ending(seen[0])
        while not ended(seen[0]):
            shown.tick(look)
            time.sleep(1.0)
        shown.say(seen[0].summary())
