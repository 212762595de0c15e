"""Which of a study's runs are meant: `--only`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from vitscale.errors import USAGE, VitscaleError

if TYPE_CHECKING:
    from vitscale.study.job import Job
    from vitscale.study.load import Study


def filter_of(pattern: str | None, study: Study | None = None) -> Callable[[Job], bool]:
    """A filter of jobs: ids that begin with the text, or models whose name holds it; and what those need.

    That is a run's trunk and, with the `study`, a transfer's pre-training; a trunk's runs are wanted with it, as it is
    trained for them. An id that no run of the study has before its settings are chosen needs the runs that choose them.
    """
    if pattern is None:
        from vitscale.launch.sweep import everything

        return everything
    if not pattern.strip():
        raise VitscaleError(
            "--only is empty", hint="give the start of a run id, or a part of a model's name", exit_code=USAGE
        )
    to_choose = study is not None and study.select is not None and _names_nothing_yet(pattern, study)
    origins: dict[str, bool] = {}

    def starts_one(job: Job) -> bool:
        from vitscale.study.plan import transfer_job

        if study is None or job.kind == "transfer":
            return False
        if job.id not in origins:
            origins[job.id] = any(transfer_job(job, *each).id.startswith(pattern) for each in study.transfers)
        return origins[job.id]

    def wanted(job: Job) -> bool:
        ids = (job.id, job.branch.trunk if job.branch else job.id)
        named = any(id_.startswith(pattern) for id_ in ids) or pattern in job.run.model.name
        # Trunks that no wanted run needs are in no `current_plan`.
        return job.role == "trunk" or named or (to_choose and job.role == "tuning") or starts_one(job)

    return wanted


def _names_nothing_yet(pattern: str, study: Study) -> bool:
    from vitscale.study.plan import plan

    now = plan(study, {})
    jobs = [*now.jobs, *now.waiting]
    known = any(pattern in job.run.model.name for job in jobs) or any(job.id.startswith(pattern) for job in now.jobs)
    return not known and re.fullmatch(r"[0-9a-f]{1,12}", pattern) is not None
