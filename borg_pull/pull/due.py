"""When a job is due: systemd's calendar expressions, without systemd."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from borg_pull.pull.config import Job

SLACK = timedelta(minutes=5)
"""What a clock may be set back without anything that it dated being doubted."""


def is_ahead(moment: datetime, now: datetime) -> bool:
    """Whether it was noted under a clock that was ahead of this one, so that nobody knows when."""
    return moment > now + SLACK


def next_due(job: Job, last_start: datetime | None, now: datetime) -> datetime | None:
    """When the job is to start next, in UTC; None for a job without a schedule.

    Not in the future for one that is due, also for one that never ran, or nobody knows when.
    ``last_start`` is that of its last run, whatever came of it.
    """
    return None if job.schedule is None else next_after(job.schedule, last_start, now)


def is_due(job: Job, last_start: datetime | None, now: datetime) -> bool:
    """Whether it is to start now."""
    due = next_due(job, last_start, now)
    return due is not None and due <= now


def next_after(expression: str, last: datetime | None, now: datetime) -> datetime | None:
    """The first moment after ``last`` that the expression names; now without a ``last`` to trust.

    Counted from now such a moment would for ever be to come.
    """
    if last is None or is_ahead(last, now):
        return now
    return next_event(expression, min(last, now))


def next_event(expression: str, after: datetime) -> datetime | None:
    """The first moment after ``after`` that the expression names, in UTC; None if there is none.

    Without a time zone of its own the expression is in local time (systemd.time(7)).
    """
    from oncalendar import OnCalendar

    found = next(OnCalendar(expression, after.astimezone(local_zone())), None)
    return None if found is None else found.astimezone(UTC)


def local_zone() -> tzinfo:
    """This host's time zone with its changes of the clock, as the C library finds it."""
    return _zone(os.environ.get("TZ", "").removeprefix(":"))


@cache
def _zone(name: str) -> tzinfo:
    try:
        if name:
            return ZoneInfo(name)
        with Path("/etc/localtime").open("rb") as file:
            return ZoneInfo.from_file(file, key="localtime")
    except (OSError, ValueError, ZoneInfoNotFoundError):
        return UTC
