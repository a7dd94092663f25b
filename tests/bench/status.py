"""(k): the backup server's ``status`` with a long past."""

from __future__ import annotations

import itertools
import os
import sqlite3
import subprocess
import time
from pathlib import Path

from borg_pull.pull.ledger import Ledger
from tests.harness import builds
from tests.harness.source import toml
from tests.harness.workplace import Workplace

from .figures import Aim, Limit, Measure, Section

HOUR = 3600.0
WITHIN = Aim(at_most=True, bound=0.5)


def answers(workplace: Workplace, *, repeats: int, jobs: int, rows: int) -> Section:
    """Of so many jobs with so many runs behind them, for people and for programs."""
    section = Section("k", f"borg-pull status: {jobs:,} jobs, {rows:,} runs in the ledger")
    directory = workplace.directory("k", mode=0o700)
    configuration = _configuration(directory, jobs)
    _past(directory / "state", jobs, rows)
    program = builds.frozen_bundle() / "borg-pull"
    commands = {
        "status": ["status"],
        "status --json": ["status", "--json"],
        "history --limit 100": ["history", "--limit", "100"],
        "--version": ["--version"],
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    for turn, (name, words) in itertools.product(range(-1, repeats), commands.items()):
        started = time.monotonic()
        done = subprocess.run(
            [program, "--config", configuration, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        seconds = time.monotonic() - started
        assert done.returncode == 0, done.stderr
        if turn >= 0:
            found[name].append(seconds)
    for name, values in found.items():
        measure = Measure(name, "s", values)
        section.measures.append(measure)
        if name.startswith("status"):
            section.limits.append(Limit(measure, WITHIN))
    return section


def _configuration(directory: Path, jobs: int) -> Path:
    path = directory / "pull.toml"
    names = [f"job-{number:04}" for number in range(jobs)]
    document = {
        "settings": {"state_dir": str(directory / "state"), "runtime_dir": str(directory / "r")},
        "source": {
            name: {"host": f"{name}.example.org", "identity": f"/etc/borg-pull/keys/{name}"}
            for name in names
        },
        "repository": {
            name: {
                "path": f"/srv/borg/{name}",
                "passphrase_file": f"/etc/borg-pull/passphrases/{name}",
            }
            for name in names
        },
        "job": {
            name: {
                "source": name,
                "repository": name,
                "paths": ["/etc", "/home", "/var/lib"],
                "schedule": f"*-*-* {number % 24:02}:{number % 60:02}:00",
                "retention": {"keep_daily": 7, "keep_weekly": 4},
            }
            for number, name in enumerate(names)
        },
    }
    path.write_text(toml(document))
    path.chmod(0o600)
    return path


def _past(state: Path, jobs: int, rows: int) -> None:
    """A ledger of ``rows`` runs, an hour apart: a prune after two backups, and some failures."""
    state.mkdir(mode=0o700)
    ledger = state / "ledger.sqlite"
    Ledger(ledger).close()
    with sqlite3.connect(ledger) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute(
            """
            WITH RECURSIVE count (i) AS (
                SELECT 0 UNION ALL SELECT i + 1 FROM count WHERE i + 1 < :rows
            )
            INSERT INTO run (
                job, kind, source, repository, started, finished, outcome, attempt, exit, session,
                archive, archive_id, files, original_size, new_size, duration, log, pid, pid_start
            )
            SELECT
                printf('job-%04d', i % :jobs),
                iif(i / :jobs % 3 = 1, 'prune', 'create'),
                printf('job-%04d', i % :jobs),
                printf('job-%04d', i % :jobs),
                :now - ((:rows - i - 1) / :jobs + 1) * :hour,
                :now - ((:rows - i - 1) / :jobs + 1) * :hour + 60,
                -- The last ones are good: status is to say that all is well.
                iif(i * 7 % 13 = 0 AND i + 3 * :jobs < :rows, 'failure', 'success'),
                1,
                0,
                'e8a3c4f0-0000-4000-8000-000000000000',
                printf('job-%04d-%d', i % :jobs, i / :jobs),
                printf('%064x', i),
                50000,
                1000000000 + i * 31 % 500000000,
                12345678,
                60.5,
                '/var/lib/borg-pull/logs/job.log',
                1,
                1
            FROM count
            """,
            {"rows": rows, "jobs": jobs, "now": time.time(), "hour": HOUR},
        )
    # What is still to be written would be in the way of what is measured.
    os.sync()
