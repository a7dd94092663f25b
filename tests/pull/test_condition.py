"""Whether backups are fine: staleness, failures, and a clock that was set back."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from borg_pull.errors import BorgPullError, BusyError, FailedError
from borg_pull.pull import metrics, notify, status
from borg_pull.pull.by_hand import logged
from borg_pull.pull.condition import Condition, conditions
from borg_pull.pull.config import Config
from borg_pull.pull.ledger import Ledger
from borg_pull.pull.places import Places
from borg_pull.pull.pull import UnreachableError
from borg_pull.pull.run import task

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)

Past = Callable[..., None]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


@pytest.fixture
def past(ledger: Ledger, tmp_path: Path) -> Past:
    """Put a run into the ledger that began some hours ago."""

    def put(hours: float, outcome: str | None, *, kind: str = "create", **fields: Any) -> None:
        run = ledger.begin("job", "s", "r", kind=kind, log=None)
        if outcome is not None:
            ledger.finish(run, outcome, **fields)
        started = (NOW - timedelta(hours=hours)).timestamp()
        with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
            database.execute(
                "UPDATE run SET started = ?, finished = iif(finished, ?, NULL) WHERE id = ?",
                (started, started + 60, run),
            )

    return put


def a_config(**keys: Any) -> Config:
    return Config.model_validate(
        {
            "source": {"s": {"host": "h", "identity": "/key"}},
            "repository": {"r": {"path": "/r"}},
            "job": {"job": {"source": "s", "repository": "r", "paths": ["/p"]} | keys},
        }
    )


def condition(ledger: Ledger, **keys: Any) -> Condition:
    (found,) = conditions(a_config(**keys), ledger, NOW)
    return found


def test_a_job_that_never_ran(ledger: Ledger) -> None:
    found = condition(ledger, schedule="daily")
    assert (found.state, found.is_fine, found.age) == ("never", False, None)
    assert found.next_due == NOW


def test_a_fresh_success_is_fine(ledger: Ledger, past: Past) -> None:
    past(30, "success", original_size=10)
    past(6, "success", original_size=20)
    found = condition(ledger)
    assert (found.state, found.is_fine) == ("ok", True)
    assert found.age == timedelta(hours=6)
    assert found.sizes == (10, 20)


def test_an_old_success_is_stale(ledger: Ledger, past: Past) -> None:
    past(36.1, "success")
    assert condition(ledger).state == "stale"
    assert condition(ledger, stale_after="2d").state == "ok"


@pytest.mark.parametrize("outcome", ["failure", "interrupted"])
def test_a_failure_after_a_fresh_success_is_failing(
    ledger: Ledger, past: Past, outcome: str
) -> None:
    past(6, "success")
    past(1, outcome, error="why")
    found = condition(ledger)
    assert (found.state, found.is_fine) == ("failing", False)
    assert found.as_json()["last_error"] == "why"


def test_a_skipped_run_changes_nothing(ledger: Ledger, past: Past) -> None:
    past(6, "success")
    past(1, "skipped")
    assert condition(ledger).state == "ok"


def test_recovery(ledger: Ledger, past: Past) -> None:
    past(6, "failure")
    past(1, "success")
    assert condition(ledger).state == "ok"


def test_a_warning_is_a_backup(ledger: Ledger, past: Past) -> None:
    past(1, "warning")
    found = condition(ledger)
    assert (found.state, found.is_fine) == ("warning", True)


@pytest.mark.parametrize(("kind", "rules"), [("prune", "retention"), ("check", "check")])
def test_failed_care_is_failing(ledger: Ledger, past: Past, kind: str, rules: str) -> None:
    past(2, "success")
    past(1, "failure", kind=kind)
    keys: dict[str, Any] = {rules: {"keep_last": 1} if rules == "retention" else {}}
    assert condition(ledger, **keys).state == "failing"
    assert condition(ledger).state == "ok", "without the rule nobody waits for it"
    past(0.5, "success", kind=kind)
    assert condition(ledger, **keys).state == "ok"


def test_what_runs_now(ledger: Ledger, past: Past) -> None:
    past(6, "success")
    past(0.1, None)
    found = condition(ledger)
    assert found.running is not None
    assert found.state == "ok"


def test_a_success_of_the_future_is_not_fresh(ledger: Ledger, past: Past, tmp_path: Path) -> None:
    past(6, "success")
    past(-1000, "success")
    found = condition(ledger, schedule="daily")
    assert (found.state, found.is_ahead, found.age) == ("stale", True, None)
    assert found.next_due == NOW, "at once, for nobody knows when it last was"
    assert found.as_json()["dated_ahead"] is True
    assert found.as_json()["age_seconds"] is None
    assert "is dated 2027-01-02T04:00:00Z, in the future" in status.why(found)
    values = tmp_path / "borg_pull.prom"
    metrics.write(values, Config(), [found], NOW)
    assert 'borg_pull_job_stale{job="job"} 1.0' in values.read_text()
    assert "last_success_timestamp_seconds{" not in values.read_text()
    past(1, "success")
    found = condition(ledger, schedule="daily")
    assert (found.state, found.is_ahead, found.age) == ("ok", False, timedelta(hours=1))


def test_a_clock_set_back_by_little_makes_nothing_stale(ledger: Ledger, past: Past) -> None:
    past(-0.05, "success")
    found = condition(ledger, schedule="daily")
    assert (found.state, found.is_ahead, found.age) == ("ok", False, timedelta(0))
    assert found.next_due is not None
    assert NOW < found.next_due <= NOW + timedelta(days=1)


def test_what_failed_last_is_told_first(ledger: Ledger, past: Past) -> None:
    keys: dict[str, Any] = {"check": {}, "retention": {"keep_last": 1}}
    past(5, "success")
    past(4, "failure", kind="prune", error="it moved")
    past(3, "failure", kind="verify", error="refused")
    past(2, "failure", error="the host key")
    assert status.why(condition(ledger, **keys)) == (
        "job: the host key; see borg-pull logs 4; failed before and not tried since: verify, prune"
    )
    past(1, "failure", kind="check", error="damage")
    assert "job: check failed: damage; see borg-pull logs 5" in status.why(
        condition(ledger, **keys)
    )
    assert notify.text(condition(ledger, **keys), "failing").startswith("job fails: damage")
    stale = condition(ledger, **keys, stale_after="1h")
    assert "more than 60 min; check failed: damage" in status.why(stale)
    past(0.5, "success")
    past(0.5, "success", kind="prune")
    past(0.5, "success", kind="check")
    assert status.why(condition(ledger, **keys)).startswith("job: verify failed: refused")


@pytest.mark.parametrize(
    ("error", "state"), [(UnreachableError, "ok"), (BusyError, "ok"), (FailedError, "failing")]
)
def test_a_verify_that_was_not_tried_fails_no_job(
    ledger: Ledger, past: Past, tmp_path: Path, error: type[BorgPullError], state: str
) -> None:
    past(6, "success")
    config = a_config()
    places = Places(tmp_path, tmp_path)
    places.logs.mkdir()
    with pytest.raises(error), logged(ledger, task(config, "job"), places, "verify"):
        raise error("no")
    assert condition(ledger).state == state
    (run,) = [run for run in ledger.runs("job") if run.kind == "verify"]
    assert run.outcome == ("skipped" if state == "ok" else "failure")
