"""The ledger: what it keeps, what it survives."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from borg_pull.errors import SystemRefusedError
from borg_pull.pull import ledger as ledger_module
from borg_pull.pull.ledger import Ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def test_a_run_is_kept_whole(path: Path) -> None:
    ledger = Ledger(path)
    run = ledger.begin("job", "source", "repository", log="/log")
    assert [one.id for one in ledger.unfinished()] == [run]
    ledger.finish(run, "success", archive="a", archive_id="00ff", original_size=2**62, attempt=2)
    ledger.close()
    found = Ledger(path).get(run)
    assert found is not None
    assert (found.job, found.kind, found.outcome, found.attempt) == ("job", "create", "success", 2)
    assert found.original_size == 2**62
    assert found.finished is not None
    assert found.finished >= found.started
    assert path.stat().st_mode & 0o777 == 0o600


def test_only_columns_can_be_set(path: Path) -> None:
    ledger = Ledger(path)
    run = ledger.begin("job", "source", "repository", log=None)
    with pytest.raises(ValueError, match="job"):
        ledger.update(run, job="other")


def test_the_last_run_by_outcome(path: Path) -> None:
    ledger = Ledger(path)
    for outcome in ("success", "failure", "warning", "failure"):
        ledger.finish(ledger.begin("job", "s", "r", log=None), outcome)
    last = ledger.last("job")
    assert last is not None
    assert last.outcome == "failure"
    good = ledger.last("job", outcomes=("success", "warning"))
    assert good is not None
    assert good.outcome == "warning"
    assert ledger.last("other") is None
    assert [run.outcome for run in ledger.successes("job", 5)] == ["warning", "success"]


def test_what_must_still_be_in_the_repository(path: Path) -> None:
    ledger = Ledger(path)
    for name in ("a", "b"):
        run = ledger.begin("job", "s", "r", log=None)
        ledger.finish(run, "success", archive=name, archive_id=f"id-{name}")
    assert ledger.kept("job") == {"id-a": "a", "id-b": "b"}
    ledger.mark_gone("job", ["id-a"])
    assert ledger.kept("job") == {"id-b": "b"}


@pytest.mark.parametrize("committed", [0, 3])
def test_a_killed_process_leaves_an_interrupted_run(path: Path, committed: int) -> None:
    """kill -9 in the middle of writing: what was finished stays, what was not is recovered."""
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from borg_pull.pull.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "for _ in range(int(sys.argv[2])):\n"
        "    ledger.finish(ledger.begin('job', 's', 'r', log=None), 'success')\n"
        "ledger.begin('job', 's', 'r', log=None)\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    ledger.set_state('key', os.urandom(2000).hex())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path), str(committed)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        ledger = Ledger(path)
        assert ledger.recover() == [], "it still runs"
        writer.send_signal(signal.SIGKILL)
    (lost,) = ledger.recover()
    assert lost.outcome == "interrupted"
    assert lost.finished is not None
    assert ledger.recover() == []
    assert len(ledger.runs("job")) == committed + 1
    (sound,) = sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone()
    assert sound == "ok"


def test_another_process_with_the_same_pid_is_not_the_one_that_began(path: Path) -> None:
    ledger = Ledger(path)
    run = ledger.begin("job", "s", "r", log=None)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE run SET pid_start = pid_start - 1")
    assert [one.id for one in ledger.recover()] == [run]


def test_a_newer_schema_is_refused(path: Path) -> None:
    Ledger(path).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {len(ledger_module.MIGRATIONS) + 1}")
    with pytest.raises(SystemRefusedError, match="newer borg-pull"):
        Ledger(path)


def test_an_older_schema_is_brought_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(path)
    run = ledger.begin("job", "s", "r", log=None)
    ledger.close()
    migrations = (*ledger_module.MIGRATIONS, "CREATE TABLE added (x INTEGER) STRICT;")
    monkeypatch.setattr(ledger_module, "MIGRATIONS", migrations)
    ledger = Ledger(path)
    assert ledger.get(run) is not None
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO added VALUES (1)")


def test_two_processes_write_at_once(path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from borg_pull.pull.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "for _ in range(50):\n"
        "    ledger.finish(ledger.begin('job', 's', 'r', log=None), 'success')\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path)]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert len(Ledger(path).runs("job", limit=1000)) == 150


def test_a_ledger_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "ledger.sqlite"
    broken.write_bytes(os.urandom(8192))
    with pytest.raises(SystemRefusedError, match="ledger"):
        Ledger(broken)
