"""What people see of a run where no terminal shows it live."""

from __future__ import annotations

from typing import Any

import pytest

from borg_pull.pull.progress import PeopleScreen

REASON = "luna: another run for this repository is under way since 2026-11-21T02:00:00Z; " * 3


def events() -> list[dict[str, Any]]:
    wait = {"event": "retry", "job": "web1", "seconds": 30.0, "reason": REASON}
    return [
        {"event": "run_start", "job": "web1"},
        wait,
        wait,
        {"event": "run_end", "job": "web1", "outcome": "failure", "error": REASON},
    ]


def test_a_line_stays_one_line_and_a_wait_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with PeopleScreen(quiet=False) as screen:
        for event in events():
            screen.show(event)
    assert capsys.readouterr().err.splitlines() == [
        f"web1: busy, again in 30 s: {REASON}",
        f"web1: failure: {REASON}",
    ]


def test_quiet_tells_of_bad_ends_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with PeopleScreen(quiet=True) as screen:
        for event in events():
            screen.show(event)
    assert capsys.readouterr().err.splitlines() == [f"web1: failure: {REASON}"]
