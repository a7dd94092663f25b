"""When jobs are due, in whatever zone and after whatever the clock did."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from borg_pull.pull.config import Job
from borg_pull.pull.due import is_due, next_due, next_event


def job(schedule: str | None) -> Job:
    return Job(source="s", repository="r", paths=["/p"], schedule=schedule)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Riga")


def test_a_job_without_a_schedule_is_never_due() -> None:
    assert next_due(job(None), None, at("2026-11-21T12:00")) is None
    assert not is_due(job(None), None, at("2026-11-21T12:00"))


def test_a_job_that_never_ran_is_due() -> None:
    assert is_due(job("daily"), None, at("2026-11-21T12:00"))


def test_local_midnight_is_when_a_daily_job_is_due() -> None:
    last = at("2026-11-20T22:00")  # midnight in Riga
    assert next_due(job("daily"), last, at("2026-11-21T21:59")) == at("2026-11-21T22:00")
    assert not is_due(job("daily"), last, at("2026-11-21T21:59"))
    assert is_due(job("daily"), last, at("2026-11-21T22:00"))


def test_several_missed_events_are_one_run() -> None:
    last = at("2026-11-01T00:00")
    assert is_due(job("hourly"), last, at("2026-11-21T12:30"))
    assert not is_due(job("hourly"), at("2026-11-21T12:30"), at("2026-11-21T12:31"))


def test_a_clock_set_back_delays_nothing() -> None:
    """Counted from now, the next event would stay in the future until the old date is past."""
    now = at("2026-11-21T12:00")
    future = now + timedelta(days=400)
    assert is_due(job("daily"), future, now)
    assert next_due(job("daily"), future, now) == now
    slightly = now + timedelta(seconds=20)
    assert not is_due(job("daily"), slightly, now)


def test_an_expression_s_own_zone_counts() -> None:
    after = at("2026-11-21T12:00")
    assert next_event("02:30 UTC", after) == at("2026-11-22T02:30")
    assert next_event("02:30", after) == at("2026-11-22T00:30")
    assert next_event("2020-01-01", after) is None


def test_the_change_to_summer_time_moves_no_event() -> None:
    # Riga's clocks go forward on 2026-03-29 at 03:00.
    assert next_event("05:00", at("2026-03-28T12:00")) == at("2026-03-29T02:00")
