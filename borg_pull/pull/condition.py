"""Are the backups fine: each job's condition, from the ledger and the clock alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from borg_pull.pull.config import Config, Job
from borg_pull.pull.due import is_ahead, next_due
from borg_pull.pull.ledger import HELD, Ledger, Run

TREND_RUNS = 10

State = Literal["ok", "warning", "failing", "stale", "never"]

GOOD = ("success", "warning")
ENDS = ("success", "warning", "failure", "interrupted")
"""Outcomes of runs that tried; a skipped one says nothing of the job."""


@dataclass(frozen=True)
class Condition:
    """One job's."""

    job: str
    state: State
    """The worst that holds: ``never`` (no success yet), ``stale``, ``failing`` (the last try made
    no backup, or retention, check or verify failed), ``warning``, ``ok``."""
    last_success: Run | None
    age: timedelta | None
    """Of the last success; None when there is none, or its date is not to be trusted."""
    is_ahead: bool
    """Whether the last success is dated in the future: nobody knows when it was, so it is stale."""
    stale_after: timedelta
    last: Run | None
    """The last try that has ended."""
    running: Run | None
    failed_care: tuple[Run, ...]
    """Last prune, check, verify and look for archives, as far as they failed."""
    sizes: tuple[int, ...]
    """Original sizes of the last archives, oldest first."""
    next_due: datetime | None
    last_verified: datetime | None
    last_restored: datetime | None
    """The same, and the source's word that files may not be asked for by name is no comparison."""

    @property
    def failures(self) -> tuple[Run, ...]:
        """What failed of the last try and of the last care, the newest first."""
        last = () if self.last is None or self.last.outcome in GOOD else (self.last,)
        return tuple(sorted((*last, *self.failed_care), key=lambda run: run.id, reverse=True))

    @property
    def is_shrunk(self) -> bool:
        """Whether the last archive is much smaller than usual, and nobody has accepted that."""
        return self.last_success is not None and self.last_success.shrunk == HELD

    @property
    def is_fine(self) -> bool:
        """Whether nobody needs to act."""
        return self.state in ("ok", "warning") and not self.is_shrunk

    def as_json(self) -> dict[str, Any]:
        """As ``status --json`` prints it; docs/backup-server.md has the schema."""
        last_success, last = self.last_success, self.last
        return {
            "job": self.job,
            "state": self.state,
            "last_success": None if last_success is None else rfc3339(last_success.started),
            "dated_ahead": self.is_ahead,
            "age_seconds": None if self.age is None else int(self.age.total_seconds()),
            "stale_after_seconds": int(self.stale_after.total_seconds()),
            "last_run": None if last is None else last.id,
            "last_outcome": None if last is None else last.outcome,
            "last_error": None if last is None else last.error,
            "shrunk": self.is_shrunk,
            "running": None if self.running is None else self.running.id,
            "failed_care": [run.kind for run in self.failed_care],
            "sizes": list(self.sizes),
            "next_due": None if self.next_due is None else rfc3339(self.next_due),
            "last_verified": None if self.last_verified is None else rfc3339(self.last_verified),
            "last_restored": None if self.last_restored is None else rfc3339(self.last_restored),
        }


def conditions(config: Config, ledger: Ledger, now: datetime) -> list[Condition]:
    """Of every job, in the configuration's order; a few queries in all, however many jobs."""
    jobs = config.job
    running = {run.job: run for run in ledger.unfinished() if run.kind == "create"}
    successes = ledger.latest(jobs, outcomes=GOOD)
    lasts = ledger.latest(jobs, outcomes=ENDS)
    sizes = ledger.sizes(jobs, TREND_RUNS)
    cared = [
        ledger.latest([name for name, job in jobs.items() if has(job)], kind=kind, outcomes=ENDS)
        for kind, has in _CARE.items()
    ]
    verified = ledger.latest(jobs, kind="verify", outcomes=("success",))
    restored = ledger.latest(jobs, kind="verify", outcomes=GOOD)
    return [
        _condition(
            name,
            job,
            now,
            last_success=successes.get(name),
            last=lasts.get(name),
            running=running.get(name),
            cared=[runs[name] for runs in cared if name in runs],
            sizes=sizes.get(name, []),
            verified=verified.get(name),
            restored=restored.get(name),
        )
        for name, job in jobs.items()
    ]


_CARE: dict[str, Callable[[Job], bool]] = {
    "prune": lambda job: job.retention is not None,
    "check": lambda job: job.check is not None,
    # What prune looks for where there is retention.
    "lookup": lambda job: job.retention is None,
    "verify": lambda _job: True,
}


def _condition(
    name: str,
    job: Job,
    now: datetime,
    *,
    last_success: Run | None,
    last: Run | None,
    running: Run | None,
    cared: Sequence[Run],
    sizes: Sequence[int],
    verified: Run | None,
    restored: Run | None,
) -> Condition:
    failed_care = tuple(run for run in cared if run.outcome not in GOOD)
    age = None
    if last_success is not None and not is_ahead(start_of(last_success, now), now):
        age = max(now - start_of(last_success, now), timedelta(0))
    latest = max(
        (run for run in (last, running) if run is not None), key=lambda run: run.id, default=None
    )
    return Condition(
        job=name,
        state=_state(last_success, age, job, last, failed_care),
        last_success=last_success,
        age=age,
        is_ahead=last_success is not None and age is None,
        stale_after=job.stale_after,
        last=last,
        running=running,
        failed_care=failed_care,
        sizes=tuple(reversed(sizes)),
        next_due=next_due(job, None if latest is None else start_of(latest, now), now),
        last_verified=None if verified is None else verified.started,
        last_restored=None if restored is None else restored.started,
    )


def _state(
    last_success: Run | None,
    age: timedelta | None,
    job: Job,
    last: Run | None,
    failed_care: tuple[Run, ...],
) -> State:
    if last_success is None:
        return "never"
    if age is None or age > job.stale_after:
        return "stale"
    if failed_care or (last is not None and last.outcome not in GOOD):
        return "failing"
    has_warned = last_success.outcome == "warning" and last_success.shrunk in (None, HELD)
    return "warning" if has_warned else "ok"


def start_of(run: Run, now: datetime) -> datetime:
    """When the run began; when it ended, if the clock was ahead then and no longer at its end."""
    if run.finished is not None and is_ahead(run.started, now):
        return min(run.started, run.finished)
    return run.started


def rfc3339(moment: datetime) -> str:
    """UTC, whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
