"""The one training loop: pre-training and fine-tuning differ in what they give it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from vitscale.errors import RUN_FAILED, VitscaleError
from vitscale.failures import Failure
from vitscale.study.schedule import learning_rate
from vitscale.train import group
from vitscale.train.checkpoint import Progress
from vitscale.train.engine import Engine, Stepped
from vitscale.train.meter import Meter
from vitscale.train.objective import Batch
from vitscale.train.reader import Reader
from vitscale.train.stop import Interrupted, Stop
from vitscale.wording import count


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What a training needs beside its engine.

    `batch_of(step)` gives the global batch of a step from 0, `keys_of(step)` names its samples for an error.
    `validate(step)` returns (score, FLOPs) and runs after every `validate_every` steps and after the last, unless
    others go on from there (`validate_last`); the score is None where there are no images for one. `after_step()` is
    called between the steps, by every device.
    `save(progress)` takes a checkpoint, every `save_every` seconds and where `saves_at(step)`, which may be written
    while training goes on; `written()` waits until it is. Its step counts those of trainings `before` this one, too,
    as does the one that is named where something is not finite, with the setting that gave the `rate`.
    One that is due goes before the validation of its step, so that this can cost no training; `amend(progress)` then
    tells it what came of that. `log(event, facts)` writes a line of `events.jsonl`.
    """

    engine: Engine
    steps: int
    batch_of: Callable[[int], Batch]
    keys_of: Callable[[int], list[str]]
    log: Callable[[str, dict[str, Any]], None]
    stop: Stop
    after_step: Callable[[], None] | None = None
    save: Callable[[Progress], None] | None = None
    amend: Callable[[Progress], None] | None = None
    save_every: float = 60.0
    saves_at: Callable[[int], bool] = lambda _: False
    written: Callable[[], None] | None = None
    before: int = 0
    rate: str = "recipe.lr"
    validate: Callable[[int], tuple[float | None, float]] | None = None
    validate_every: int | None = None
    validate_last: bool = True
    score_name: str = "accuracy"
    keep_best: bool = False
    flops_per_step: float = 0.0
    skip_nonfinite: int = 0
    log_seconds: float = 5.0

    def run(self, progress: Progress) -> Progress:
        """Trains from `progress.step` to the end.

        Raises:
            Interrupted: a signal came; a checkpoint of the last whole step was written.
            VitscaleError: the loss or the gradients of more than `skip_nonfinite` steps are not finite (exit 4).
        """
        meter = Meter(self.engine, self.flops_per_step)  # before the clock starts: it may measure the device's peak
        clock = _Clock(progress.device_seconds)
        if self.stop.asked():
            raise Interrupted
        if progress.validation_due:
            if self.validate is not None:  # probes are no part of the run, and may be asked for no more
                progress, _ = self._validated(progress, clock)
            progress = replace(progress, validation_due=False)
            self._save(progress)
        steps = range(progress.step, self.steps)
        with closing(Reader(lambda step: self.batch_of(step).pinned(), steps, self.stop)) as reader:
            progress = self._steps(progress, reader, clock, meter)
        self.wait_for_writing()
        return progress

    def _steps(self, progress: Progress, reader: Reader[int, Batch], clock: _Clock, meter: Meter) -> Progress:
        """From `progress.step` to the last one."""
        attempt = _Attempt(self, progress, clock, meter)
        for step in range(progress.step, self.steps):
            self._step(attempt, step, reader)
            last = step + 1 == self.steps
            due = last or self.saves_at(step + 1) or time.monotonic() - attempt.saved > self.save_every
            if self.validate is not None and self._validates_at(step + 1):
                due = self._measure(attempt, due=due) or due
            # Their clocks differ, and all of them save.
            stopping, due = (n > 0 for n in group.summed(self.stop.requested, due and group.is_first()))
            if stopping:
                attempt.tell()
            if due or stopping:
                attempt.keep(attempt.progress)
            if stopping and not last:
                self.wait_for_writing()
                raise Interrupted
        return attempt.progress

    def _step(self, attempt: _Attempt, step: int, reader: Reader[int, Batch]) -> None:
        """One step behind `step` others, and a line of it where one is due."""
        first = step == attempt.first
        self.stop.at(f"waiting for the data of step {step + 1}", slow=first)
        lr = learning_rate(self.engine.recipe, step, self.steps)
        try:
            with attempt.meter.part("wait"):
                batch = reader.take()
            self.stop.at(f"in step {step + 1}", slow=first, together=True)
            stepped = self.engine.step(batch, lr, self.stop.asked)
        except Interrupted:
            attempt.leave(attempt.progress)
            raise
        attempt.meter.stepped(self.engine.seconds)
        progress = attempt.progress
        if not stepped.finite:
            progress = self._skipped(progress, step, stepped, attempt.kept.step if attempt.kept else None)
        if self.after_step is not None:
            self.after_step()
        attempt.stepped(stepped, replace(progress, step=step + 1, device_seconds=attempt.clock.seconds()))
        if first or step + 1 == self.steps or time.monotonic() - attempt.lines.at > self.log_seconds:
            attempt.tell()

    def _measure(self, attempt: _Attempt, *, due: bool) -> bool:
        """Validates what the last step has left; True where it is the best, and so to be kept.

        What is `due` is kept before: a validation that dies costs no training.
        """
        unmeasured = replace(attempt.progress, validation_due=True)
        if group.any_of(due and group.is_first()):
            attempt.keep(unmeasured)
        try:
            with attempt.meter.part("validate"):
                attempt.progress, improved = self._validated(attempt.progress, attempt.clock)
        except Interrupted:
            attempt.leave(unmeasured)
            raise
        return improved

    def keep(self, progress: Progress, kept: Progress | None) -> None:
        """Takes a checkpoint, or tells the one that was `kept` last more, where it is of the same step."""
        if kept is not None and kept.step == progress.step:
            self._amend(kept, progress)
        else:
            self._save(progress)

    def _save(self, progress: Progress) -> None:
        if self.save is not None:
            self.stop.at(f"saving the checkpoint of step {progress.step}", slow=True, together=True)
            self.save(replace(progress, step=self.before + progress.step))

    def _amend(self, kept: Progress, progress: Progress) -> None:
        if self.amend is not None and progress != kept:
            self.stop.at(f"saving the checkpoint of step {progress.step}", slow=True, together=True)
            self.amend(progress)

    def wait_for_writing(self) -> None:
        if self.written is not None:
            self.stop.at("writing the last checkpoint", slow=True, together=True)
            self.written()

    def _skipped(self, progress: Progress, step: int, stepped: Stepped, kept: int | None) -> Progress:
        """Counts a step whose gradients were not finite, or refuses to go on."""
        if progress.skipped >= self.skip_nonfinite or math.isfinite(stepped.grad_norm):
            self.wait_for_writing()
            raise self._not_finite(step, stepped, kept, progress.skipped)
        progress = replace(progress, skipped=progress.skipped + 1)
        self.log("skipped", {"step": step + 1, "skipped": progress.skipped, "keys": self.keys_of(step)[:5]})
        return progress

    def _validates_at(self, step: int) -> bool:
        if step == self.steps and self.validate_last:
            return True
        return self.validate_every is not None and step % self.validate_every == 0

    def _validated(self, progress: Progress, clock: _Clock) -> tuple[Progress, bool]:
        assert self.validate is not None
        score, flops = self.validate(progress.step)
        seconds, flops = clock.seconds(), progress.flops_eval + flops
        progress = replace(progress, flops_eval=flops, device_seconds=seconds, validation_due=False)
        if score is None:
            return progress, False
        spent = {"device_seconds": seconds, "flops_eval": flops}
        self.log("validate", {"step": progress.step, self.score_name: score, **spent})
        improved = progress.best_score is None or score > progress.best_score
        if improved:
            progress = replace(progress, best_step=progress.step, best_score=score)
        return progress, improved and self.keep_best

    def facts(self, progress: Progress, meter: Meter, stepped: Stepped, per_step: float | None) -> dict[str, Any]:
        """`per_step`: seconds, where that is known."""
        left = self.steps - progress.step
        return {
            "step": progress.step,
            "steps": self.steps,
            # What is not finite has no number in JSON.
            "loss": stepped.loss if math.isfinite(stepped.loss) else None,
            "lr": learning_rate(self.engine.recipe, progress.step - 1, self.steps),
            "grad_norm": stepped.grad_norm if math.isfinite(stepped.grad_norm) else None,
            **meter.take(),
            "device_seconds": progress.device_seconds,
            "seconds_left": None if left and per_step is None else left * (per_step or 0.0),
        }

    def _not_finite(self, step: int, stepped: Stepped, kept: int | None, skipped: int) -> VitscaleError:
        keys = self.keys_of(step)
        last = ""
        if self.save is not None:
            saved = f"the last checkpoint is that of step {self.before + (kept or 0)}; "
            last = saved if kept else "no checkpoint was written before it; "
        shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
        at = f"{self.before + step + 1}" + (f", after {count(skipped, 'skipped step')}" if skipped else "")
        return VitscaleError(
            f"the loss is {stepped.loss} and the gradient norm {stepped.grad_norm} at step {at}; "
            f"samples of the batch: {shown}",
            hint=f"{last}a lower {self.rate} or a longer warm-up usually helps",
            exit_code=RUN_FAILED,
            failure=Failure.NOT_FINITE,
        )


class _Attempt:
    """Where an attempt stands, and what it has told and kept of that."""

    def __init__(self, loop: Loop, progress: Progress, clock: _Clock, meter: Meter) -> None:
        self.progress, self.clock, self.meter = progress, clock, meter
        self.first = progress.step
        self.kept: Progress | None = progress if self.first else None
        """As the newest checkpoint has it."""
        self.saved = time.monotonic()
        self.lines = _Lines(self.first)
        self._loop = loop
        self._last: Stepped | None = None

    def stepped(self, last: Stepped, progress: Progress) -> None:
        self._last, self.progress = last, progress

    def tell(self) -> None:
        """A line of the last step, once."""
        if self._last is not None and self.lines.told != self.progress.step:
            per_step = self.lines.seconds_per_step(self.progress.step, self.clock.here())
            self._loop.log("step", self._loop.facts(self.progress, self.meter, self._last, per_step))

    def keep(self, progress: Progress) -> None:
        with self.meter.part("checkpoint"):
            self._loop.keep(progress, self.kept)
        self.kept, self.saved = progress, time.monotonic()

    def leave(self, progress: Progress) -> None:
        """Tells and keeps it, as a signal has come."""
        self.tell()
        self.keep(progress)
        self._loop.wait_for_writing()


class _Lines:
    """The lines of numbers of one attempt, each of which tells how long a step takes."""

    def __init__(self, first: int) -> None:
        self.told, self.at = first, time.monotonic()
        self._first, self._began = first, 0.0

    def seconds_per_step(self, step: int, here: float) -> float | None:
        """For a line of this step, so many seconds after the attempt began to train; None for its first step.

        Compilation and the first fetches are in that: it tells nothing of the others.
        """
        self.told, self.at = step, time.monotonic()
        if step == self._first + 1:
            self._began = here
            return None
        return (here - self._began) / (step - self._first - 1)


class _Clock:
    """Device-seconds of these processes on top of those of earlier attempts."""

    def __init__(self, earlier: float) -> None:
        self.earlier, self.start = earlier, time.monotonic()

    def here(self) -> float:
        return time.monotonic() - self.start

    def seconds(self) -> float:
        return self.earlier + self.here() * group.world_size()
