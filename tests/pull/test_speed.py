"""What keeps ``borg-pull`` quick, held by counts: modules loaded, queries made, indexes used.

`make bench` has the times.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from borg_pull.pull.condition import ENDS, GOOD, conditions
from borg_pull.pull.config import Config
from borg_pull.pull.ledger import Ledger
from tests.pull.runs import imported_by

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
JOBS = [f"job-{number}" for number in range(40)]
# Libraries of which each is a tenth of a start, or more.
HEAVY = {"apprise", "keyring", "oncalendar", "prometheus_client", "requests", "rich", "ssl"}
MODELS = {"pydantic", "sqlite3"}


@pytest.mark.parametrize(
    ("modules", "unwanted", "most"),
    [
        ("main", HEAVY | MODELS, 130),
        ("main, borg_pull.pull.status, borg_pull.pull.loading", HEAVY, 290),
        ("main, borg_pull.pull.run, borg_pull.pull.loading", HEAVY, 320),
    ],
    ids=["--version", "status", "run"],
)
def test_a_start_loads_what_its_command_needs(modules: str, unwanted: set[str], most: int) -> None:
    loaded = imported_by(f"import borg_pull.pull.{modules}")
    assert not unwanted & loaded
    assert len(loaded) <= most, sorted(loaded)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Forty jobs with a past of all kinds and outcomes."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    chance = random.Random(4)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        database.executemany(
            "INSERT INTO run (job, kind, source, repository, started, outcome, original_size,"
            " pid, pid_start) VALUES (?, ?, 's', 'r', ?, ?, ?, 1, 1)",
            (
                (
                    chance.choice(JOBS[:-1]),
                    chance.choice(("create", "create", "prune", "check", "verify")),
                    # Few enough that some began at the same time.
                    NOW.timestamp() - chance.randrange(1000),
                    chance.choice((*ENDS, "skipped", None)),
                    chance.choice((None, chance.randrange(10**9))),
                )
                for _ in range(4000)
            ),
        )
    return ledger


def test_asking_for_all_jobs_at_once_gives_what_asking_for_each_gives(ledger: Ledger) -> None:
    for kind in ("create", "prune", "verify"):
        for outcomes in (None, GOOD, ENDS, ("success",)):
            singly = {job: ledger.last(job, kind=kind, outcomes=outcomes) for job in JOBS}
            assert ledger.latest(JOBS, kind=kind, outcomes=outcomes) == {
                job: run for job, run in singly.items() if run is not None
            }
    sizes = ledger.sizes(JOBS, 10)
    for job in JOBS:
        of_job = [run.original_size for run in ledger.successes(job, 10)]
        assert sizes.get(job, []) == [size for size in of_job if size is not None]
    assert ledger.latest([]) == {}
    assert ledger.sizes(["unheard-of"], 10) == {}


def config(jobs: int) -> Config:
    rules = {"retention": {"keep_daily": 1}, "check": {}, "schedule": "daily"}
    return Config.model_validate(
        {
            "source": {"s": {"host": "h", "identity": "/key"}},
            "repository": {"r": {"path": "/r"}},
            "job": {
                name: {"source": "s", "repository": "r", "paths": ["/p"], **rules}
                for name in JOBS[:jobs]
            },
        }
    )


def asked(ledger: Ledger, act: Callable[[], object]) -> list[str]:
    """The queries that ``act`` makes."""
    found: list[str] = []
    ledger._database.set_trace_callback(found.append)
    act()
    ledger._database.set_trace_callback(None)
    return found


def test_status_asks_as_often_for_many_jobs_as_for_one(ledger: Ledger) -> None:
    one, many = (
        asked(ledger, partial(conditions, config(jobs), ledger, NOW)) for jobs in (1, len(JOBS))
    )
    # One for each kind of run that can fail, the look for archives among them.
    assert len(one) == len(many) <= 10


@pytest.mark.parametrize(
    "act",
    [
        lambda ledger: (ledger.recover(), conditions(config(40), ledger, NOW)),
        lambda ledger: ledger.latest(JOBS),
        lambda ledger: (ledger.last("job-1", outcomes=ENDS), ledger.successes("job-1", 10)),
        lambda ledger: (ledger.runs(limit=5), ledger.runs("job-1", limit=5)),
        lambda ledger: (ledger.kept("job-1"), ledger.mark_gone("job-1", ["a"]), ledger.get(1)),
    ],
    ids=["status", "due", "run", "history", "retention"],
)
def test_no_question_reads_the_whole_ledger(
    ledger: Ledger, act: Callable[[Ledger], object]
) -> None:
    queries = asked(ledger, partial(act, ledger))
    assert queries
    for query in queries:
        plan = [
            row[3] for row in ledger._database.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
        ]
        steps = [step for step in plan if step.startswith(("SCAN run", "SEARCH run"))]
        assert steps, plan
        for step in steps:
            # The index of unfinished runs holds those that run now, and history reads newest first.
            is_short = "run_unfinished" in step or "run_by_time" in step
            assert step.startswith("SEARCH") or is_short, plan
