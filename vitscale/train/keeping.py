"""The checkpoints of one run: which of them stay, which can be gone on from, and who writes them meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vitscale import checkpoints
from vitscale.errors import VitscaleError
from vitscale.study.cost import KEPT
from vitscale.train import checkpoint
from vitscale.train.checkpoint import STATE, Checkpoint, ForeignError, Progress, folder_of

PassedOver = Callable[[int, str], None]
"""(step, what is wrong with its checkpoint)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Which checkpoints survive, the best one apart."""

    last: int = KEPT
    """So many of the latest."""
    every: int | None = None
    """Those of every so many steps."""
    branches: Callable[[], frozenset[int]] = frozenset
    """Of a trunk: those that other runs start from, of which there may be more as it trains."""
    damaged: frozenset[int] = frozenset()
    """Those that this attempt could not read as it began."""

    def at(self, step: int) -> bool:
        """Whether there is to be one of this step, and to stay."""
        return self.marks(step) or step in self.branches()

    def marks(self, step: int) -> bool:
        """Whether that of this step is to stay for good, whatever later attempts are told."""
        return bool(self.every and step % self.every == 0)

    def steps(self, run: Path, progress: Progress) -> set[int]:
        """The steps to be kept of those that a run has, and the best one until each of them.

        Later ones than that of `progress` are whole but for their best one, which is trained again, or damaged.
        """
        there = sorted(checkpoints.steps(run))
        until = [step for step in there if step <= progress.step]
        later = [step for step in there[len(until) :] if step not in self.damaged]
        stay = [step for step in until if self.at(step) or checkpoints.is_milestone(folder_of(run, step))]
        kept = {*until[-self.last :], progress.step, *stay, *later}
        best = {progress.best_step, *(_best_until(folder_of(run, step)) for step in kept)}
        return kept | {step for step in best if step is not None}


def save(
    run: Path,
    progress: Progress,
    *,
    keep: Keep = Keep(),  # frozen
    check: Callable[[], None] = lambda: None,
    **tensors: Mapping[str, Tensor],
) -> Path:
    """Writes one more, of the `tensors` that `checkpoint.save` takes; then those go that need not stay.

    Raises:
        As `checkpoint.save`, and whatever `check` raises.
    """
    final = checkpoint.save(run, progress, milestone=_marked(run, progress, keep), check=check, **tensors)
    check()
    prune(final.parent, keep.steps(run, progress))
    return final


def amend(run: Path, progress: Progress, *, keep: Keep, check: Callable[[], None]) -> Path:
    """Gives the checkpoint of that step this `progress`; its tensors stay as they lie there.

    Raises:
        As `save`.
    """
    check()
    own = checkpoint.load(folder_of(run, progress.step), verify=False)
    final = checkpoint.adopt(own, run, progress, milestone=_marked(run, progress, keep))
    check()
    prune(final.parent, keep.steps(run, progress))
    return final


def _marked(run: Path, progress: Progress, keep: Keep) -> bool:
    return keep.marks(progress.step) or checkpoints.is_milestone(folder_of(run, progress.step))


class Writer:
    """Writes checkpoints one after another while training goes on."""

    def __init__(self, run: Path, keep: Keep, check: Callable[[], None] = lambda: None) -> None:
        self._run, self._keep, self._check = run, keep, check
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None

    def submit(self, progress: Progress, **tensors: Mapping[str, Tensor]) -> None:
        """Takes tensors that nobody changes any more.

        Raises:
            NotSaved: the one before could not be written (exit 5).
        """
        self.wait()
        self._writing = self._threads.submit(save, self._run, progress, keep=self._keep, check=self._check, **tensors)

    def amend(self, progress: Progress) -> None:
        """Tells the checkpoint of that step, which has been submitted, more of where the run stood.

        Raises:
            NotSaved: the checkpoint itself could not be written (exit 5).
        """
        self.wait()
        self._writing = self._threads.submit(amend, self._run, progress, keep=self._keep, check=self._check)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True)

    def wait(self) -> None:
        """Until all is on the disk. Raises as `submit`."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def newest(run: Path, *, with_best: bool = False, passed_over: PassedOver = lambda *_: None) -> Path | None:
    """The newest of `whole`, of those written last before others; None where there is none. To be asked by whoever
    holds the run: another process may just be putting one aside."""
    checkpoint.put_back(run / "checkpoints")  # before `last` looks: it may have been the newest
    until = checkpoints.last(run)
    return next((found.folder for found in whole(run, until, with_best=with_best, passed_over=passed_over)), None)


def whole(
    run: Path,
    until: int | None = None,
    *,
    after: int = -1,
    with_best: bool = False,
    passed_over: PassedOver = lambda *_: None,
) -> Iterator[Checkpoint]:
    """The checkpoints that can be gone on from, after step `after` and not after `until`, the newest first; damaged
    ones are passed over.

    `with_best`: and whose best until then is whole as well. `passed_over` is told of each damaged one.

    Raises:
        ForeignError: there is one that does not belong here (exit 5).
    """
    damaged: set[int] = set()

    def opened(step: int) -> Checkpoint | None:
        if step in damaged:
            return None
        try:
            return checkpoint.load(folder_of(run, step))
        except ForeignError:
            raise
        except VitscaleError as error:
            damaged.add(step)
            print(error.problems[0].message, flush=True)
            passed_over(step, error.problems[0].message)
            return None

    steps = [step for step in checkpoints.steps(run) if after < step and (until is None or step <= until)]
    for step in sorted(steps, reverse=True):
        found = opened(step)
        if found is None:
            continue
        best = found.progress.best_step if with_best else None
        if _is_half_adopted(run, found, best):
            continue
        if best in (None, step) or opened(best) is not None:
            yield found
        else:
            print(f"checkpoint {step} passed over: checkpoint {best}, the best until then, cannot be used", flush=True)


def _is_half_adopted(run: Path, start: Checkpoint, best: int | None) -> bool:
    """Whether a process ended that had taken it from a trunk, and had yet to take the best one."""
    from_trunk = start.progress.branched_at == start.progress.step > 0
    return from_trunk and best is not None and not folder_of(run, best).exists()


def prune(folder: Path, keep: Collection[int]) -> None:
    """Removes all checkpoints but those of the steps `keep`, and what was left half written."""
    names = {f"step-{step:08d}" for step in keep}
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name not in names and checkpoints.is_own(entry.name):
            shutil.rmtree(entry, ignore_errors=True)


def _best_until(folder: Path) -> int | None:
    """The best step that its state names; None where there is none, or it cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # one that is kept may have been altered since
        best = json.loads((folder / STATE).read_text())["progress"]["best_step"]
        return best if isinstance(best, int) else None
    return None
