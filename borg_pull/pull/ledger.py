"""The ledger: what ran, when, and what came of it. SQLite in WAL mode.

A run is begun in the ledger before anything of it starts, and finished after everything of it has
ended. One that is found unfinished while the process that began it is gone was interrupted; the
next start records that (`Ledger.recover`).

What came later is told by the id, not by the time: a clock that went wrong and was set back must
not leave a run of the future that hides all that follow.

A run is begun only while there is room set aside for its end (`RESERVE_BYTES`): a disk that fills
up under way costs no outcome.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from borg_pull.errors import SHORTAGES, SystemRefusedError
from borg_pull.linux.process import start_time
from borg_pull.pull.retention import Recorded

BUSY_SECONDS = 30.0
"""How long a writer waits for another one."""
BUSY_PAUSE = 0.05
RESERVE_BYTES = 1024 * 1024
"""Room for the ends of a good many runs, which take some pages of 4 KiB each."""

LONGEST_ERROR = 2000
"""Characters. It is one line for people, and all that a year's runs say is kept."""

Kind = Literal["create", "check", "prune", "compact", "verify", "restore", "lookup", "adopt"]

HELD = "held"
"""In the column ``shrunk``."""

# Each entry is one version of the schema; none is ever changed once released.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE run (
        id INTEGER PRIMARY KEY,
        job TEXT NOT NULL,
        kind TEXT NOT NULL,
        source TEXT NOT NULL,
        repository TEXT NOT NULL,
        started REAL NOT NULL,
        finished REAL,
        outcome TEXT,
        attempt INTEGER NOT NULL DEFAULT 0,
        exit INTEGER,
        borg_code INTEGER,
        session TEXT,
        archive TEXT,
        archive_id TEXT,
        files INTEGER,
        original_size INTEGER,
        new_size INTEGER,
        duration REAL,
        error TEXT,
        log TEXT,
        gone REAL,
        pid INTEGER NOT NULL,
        pid_start INTEGER
    ) STRICT;
    CREATE INDEX run_of_job ON run (job, kind);
    CREATE INDEX run_by_outcome ON run (job, kind, outcome);
    CREATE INDEX run_unfinished ON run (id) WHERE outcome IS NULL;
    CREATE INDEX run_by_time ON run (started);
    CREATE INDEX run_good ON run (job)
        WHERE kind = 'create' AND outcome IN ('success', 'warning');
    CREATE INDEX run_kept ON run (job, archive_id) WHERE archive_id IS NOT NULL AND gone IS NULL;
    CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    """,
    """
    ALTER TABLE run ADD COLUMN shrunk TEXT;
    CREATE INDEX run_shrunk ON run (job) WHERE shrunk IS NOT NULL;
    """,
)


@dataclass(frozen=True)
class Run:
    """One row; sizes in bytes, times in UTC."""

    id: int
    job: str
    kind: str
    source: str
    repository: str
    started: datetime
    finished: datetime | None
    outcome: str | None
    """``success``, ``warning``, ``failure``, ``interrupted``, ``skipped``; None while it runs."""
    attempt: int
    exit: int | None
    """ssh's exit code, which is the source's."""
    borg_code: int | None
    session: str | None
    """UUID in the source's audit log."""
    archive: str | None
    archive_id: str | None
    files: int | None
    original_size: int | None
    new_size: int | None
    """Deduplicated size of what the archive added."""
    duration: float | None
    """Seconds, tries and pauses included."""
    error: str | None
    log: str | None
    gone: datetime | None
    """When the archive was deleted on purpose."""
    shrunk: str | None
    """``held`` for an archive much smaller than usual, ``accepted`` once a person has said so."""


# Said, for SQLite would rather take an index that has failures to step over.
_GOOD = "INDEXED BY run_good"
_LATEST_GOOD = "AND kind = 'create' AND outcome IN ('success', 'warning') ORDER BY id DESC LIMIT ?"

_COLUMNS = tuple(one.name for one in fields(Run))
_UPDATABLE = frozenset(_COLUMNS) - {"id", "job", "kind", "source", "repository", "started"}


class Ledger:
    """The ledger at ``path``, made when missing. Threads may share one, and processes the file.

    Raises SystemRefusedError when it cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reserve = path.with_suffix(".reserve")
        with self._faults():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._one_at_a_time = threading.Lock()
            try:
                self._database = self._opened()
            except sqlite3.OperationalError as error:
                # Even to be read it takes some pages, and what happened must be known then, too.
                if _is_busy(error) or not self._give_room(keep=RESERVE_BYTES // 2):
                    raise
                self._database = self._opened()

    def _opened(self) -> sqlite3.Connection:
        database = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _use_wal(database)
            # A power cut may not take a finished run back.
            database.execute("PRAGMA synchronous = FULL")
            self._migrate(database)
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Close it."""
        self._database.close()

    def begin(
        self,
        job: str,
        source: str,
        repository: str,
        *,
        kind: str = "create",
        log: str | None,
        started: datetime | None = None,
    ) -> int:
        """A run that is about to start, or did when ``started`` says; its id.

        Raises SystemRefusedError also when there is no room for its end.
        """
        self._set_room_aside()
        mine = os.getpid()
        moment = _now() if started is None else started.timestamp()
        row = self._write(
            "INSERT INTO run (job, kind, source, repository, started, log, pid, pid_start)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (job, kind, source, repository, moment, log, mine, start_time(mine)),
        )
        assert row is not None
        return row

    def update(self, run: int, **values: Any) -> None:
        """Set columns of a run."""
        unknown = values.keys() - _UPDATABLE
        if unknown:
            raise ValueError(f"no columns of a run: {sorted(unknown)}")
        if isinstance(error := values.get("error"), str):
            values["error"] = error[:LONGEST_ERROR]
        assignments = ", ".join(f"{name} = ?" for name in values)
        self._write(
            f"UPDATE run SET {assignments} WHERE id = ?",  # noqa: S608 - names from a fixed set
            (*values.values(), run),
            from_reserve=True,
        )

    def finish(self, run: int, outcome: str, **values: Any) -> None:
        """A run has ended, and how."""
        self.update(run, finished=_now(), outcome=outcome, **values)

    def recover(self) -> list[Run]:
        """Record as interrupted what a process that is gone has left unfinished; those runs."""
        rows = self._rows("SELECT id, pid, pid_start FROM run WHERE outcome IS NULL", ())
        lost = [run for run, pid, start in rows if start is None or start_time(pid) != start]
        for run in lost:
            self._write(
                "UPDATE run SET outcome = 'interrupted', finished = ?, error = ?"
                " WHERE id = ? AND outcome IS NULL",
                (_now(), "borg-pull was killed, or the machine went down", run),
                from_reserve=True,
            )
        return [found for found in map(self.get, lost) if found is not None]

    def get(self, run: int) -> Run | None:
        """The run of that id."""
        return next(iter(self._runs("WHERE id = ?", (run,))), None)

    def last(
        self, job: str, *, kind: str = "create", outcomes: Sequence[str] | None = None
    ) -> Run | None:
        """The latest run of a job, of those that ended in one of ``outcomes``."""
        if outcomes is None:
            found = self._runs("WHERE job = ? AND kind = ? ORDER BY id DESC LIMIT 1", (job, kind))
        else:
            # One index look-up an outcome: with `outcome IN` SQLite would sort all of the job's.
            found = [
                run
                for outcome in outcomes
                for run in self._runs(
                    "WHERE job = ? AND kind = ? AND outcome = ? ORDER BY id DESC LIMIT 1",
                    (job, kind, outcome),
                )
            ]
        return max(found, key=lambda run: run.id, default=None)

    def successes(self, job: str, limit: int) -> list[Run]:
        """The latest runs of a job that made an archive, newest first."""
        return self._runs(f"{_GOOD} WHERE job = ? {_LATEST_GOOD}", (job, limit))

    def latest(
        self, jobs: Iterable[str], *, kind: str = "create", outcomes: Sequence[str] | None = None
    ) -> dict[str, Run]:
        """What `last` gives of each of ``jobs``, as far as there is one, in one query."""
        # As in `last`, an index look-up for each outcome, and the latest of what they find.
        ends = (
            [("", ())] if outcomes is None else [(" AND outcome = ?", (one,)) for one in outcomes]
        )
        found = self._runs(
            "JOIN json_each(?) AS wanted ON run.id = (SELECT id FROM ("  # noqa: S608 - fixed text
            + " UNION ALL ".join(
                "SELECT * FROM (SELECT id FROM run WHERE job = wanted.value AND kind = ?"  # noqa: S608
                f"{end} ORDER BY id DESC LIMIT 1)"
                for end, _values in ends
            )
            + ") ORDER BY id DESC LIMIT 1)",
            [json.dumps(list(jobs)), *(one for _end, values in ends for one in (kind, *values))],
        )
        return {run.job: run for run in found}

    def sizes(self, jobs: Iterable[str], limit: int) -> dict[str, list[int]]:
        """Original sizes of the latest archives of each of ``jobs``, newest first, in one query."""
        rows = self._rows(
            "SELECT wanted.value, run.original_size FROM json_each(?) AS wanted JOIN run ON run.id"  # noqa: S608 - fixed text
            f" IN (SELECT id FROM run {_GOOD} WHERE job = wanted.value {_LATEST_GOOD})"
            " ORDER BY run.id DESC",
            (json.dumps(list(jobs)), limit),
        )
        found: dict[str, list[int]] = {}
        for job, size in rows:
            if size is not None:
                found.setdefault(job, []).append(size)
        return found

    def usual_sizes(self, job: str, limit: int) -> list[int]:
        """Original sizes of the latest archives of a job that did not shrink, newest first.

        Of those since the last one whose smaller size a person has accepted.
        """
        rows = self._rows(
            f"SELECT original_size FROM run {_GOOD} WHERE job = ?"  # noqa: S608 - fixed text
            " AND original_size IS NOT NULL AND shrunk IS NOT 'held' AND id >= coalesce("
            "(SELECT max(id) FROM run WHERE job = ? AND shrunk = 'accepted'), 0) " + _LATEST_GOOD,
            (job, job, limit),
        )
        return [size for (size,) in rows]

    def held(self, job: str) -> Run | None:
        """The job's last archive, if it shrank and nobody has accepted that."""
        last = next(iter(self.successes(job, 1)), None)
        return last if last is not None and last.shrunk == HELD else None

    def accept(self, run: int) -> None:
        """The archive of that run is smaller on purpose: from it on sizes are usual."""
        self._write("UPDATE run SET shrunk = 'accepted' WHERE id = ?", (run,))

    def recorded(self, job: str) -> list[Recorded]:
        """The archives that must be in the repository, in the order they came on record."""
        rows = self._rows(
            "SELECT archive_id, archive, started, outcome, shrunk FROM run WHERE job = ?"
            " AND archive_id IS NOT NULL AND gone IS NULL AND kind IN ('create', 'adopt')"
            " ORDER BY id",
            (job,),
        )
        return [
            Recorded(
                id_,
                name,
                datetime.fromtimestamp(started, UTC),
                # Without an outcome it is the run on whose behalf somebody asks.
                is_good=outcome in (None, "success", "warning") and shrunk != HELD,
            )
            for id_, name, started, outcome, shrunk in rows
        ]

    def kept(self, job: str) -> dict[str, str]:
        """The same: id to name."""
        return {one.id: one.name for one in self.recorded(job)}

    def known(self, job: str) -> set[str]:
        """The ids of all archives the job ever had, those that are gone among them."""
        rows = self._rows(
            "SELECT archive_id FROM run WHERE job = ? AND archive_id IS NOT NULL"
            " AND kind IN ('create', 'adopt')",
            (job,),
        )
        return {id_ for (id_,) in rows}

    def mark_gone(self, job: str, archive_ids: Sequence[str]) -> None:
        """These archives of the job were deleted on purpose."""
        for archive_id in archive_ids:
            self._write(
                "UPDATE run SET gone = ? WHERE job = ? AND archive_id = ?",
                (_now(), job, archive_id),
            )

    def runs(
        self, job: str | None = None, *, limit: int = 50, since: datetime | None = None
    ) -> list[Run]:
        """Runs of one job or all, newest first."""
        conditions, values = ["started >= ?"], [0.0 if since is None else since.timestamp()]
        parameters: list[Any] = list(values)
        if job is not None:
            conditions.append("job = ?")
            parameters.append(job)
        return self._runs(
            f"WHERE {' AND '.join(conditions)} ORDER BY started DESC, id DESC LIMIT ?",
            (*parameters, limit),
        )

    def unfinished(self) -> list[Run]:
        """What runs now."""
        return self._runs("WHERE outcome IS NULL ORDER BY id", ())

    def state(self, key: str) -> str | None:
        """What was remembered under ``key``."""
        rows = list(self._rows("SELECT value FROM state WHERE key = ?", (key,)))
        return rows[0][0] if rows else None

    def set_state(self, key: str, value: str | None) -> None:
        """Remember ``value``, or forget the key."""
        if value is None:
            self._write("DELETE FROM state WHERE key = ?", (key,))
        else:
            self._write("INSERT OR REPLACE INTO state (key, value) VALUES (?, ?)", (key, value))

    def _migrate(self, database: sqlite3.Connection) -> None:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise SystemRefusedError(
                f"{self._path} is of a newer borg-pull (version {version} of its schema)",
                "update this one",
            )
        if version == len(MIGRATIONS):
            return
        database.execute("BEGIN IMMEDIATE")
        # Another process may have been first.
        (version,) = database.execute("PRAGMA user_version").fetchone()
        for migration in MIGRATIONS[version:]:
            for statement in migration.split(";"):
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        database.execute("COMMIT")

    def _set_room_aside(self) -> None:
        with self._faults():
            reserve = os.open(self._reserve, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(reserve, 0, RESERVE_BYTES)
            finally:
                os.close(reserve)

    def _give_room(self, *, keep: int) -> bool:
        """Take from what was set aside, if it holds more than ``keep`` bytes; whether it did."""
        try:
            if os.stat(self._reserve).st_size <= keep:
                return False
            os.truncate(self._reserve, keep)
        except OSError:
            return False
        return True

    def _write(
        self, statement: str, values: Sequence[Any], *, from_reserve: bool = False
    ) -> int | None:
        with self._faults(), self._one_at_a_time:
            try:
                return self._database.execute(statement, values).lastrowid
            except sqlite3.OperationalError as error:
                if not from_reserve or _is_busy(error):
                    raise
                self._give_room(keep=0)
                return self._database.execute(statement, values).lastrowid

    def _rows(self, statement: str, values: Sequence[Any]) -> list[Any]:
        with self._faults(), self._one_at_a_time:
            return self._database.execute(statement, values).fetchall()

    def _runs(self, rest: str, values: Sequence[Any]) -> list[Run]:
        columns = ", ".join(f"run.{name}" for name in _COLUMNS)
        return [_run(row) for row in self._rows(f"SELECT {columns} FROM run {rest}", values)]  # noqa: S608 - fixed text

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            said = error.strerror if isinstance(error, OSError) else str(error)
            raise SystemRefusedError(f"ledger {self._path}: {said}", self._hint(error)) from error

    def _hint(self, error: Exception) -> str:
        if isinstance(error, sqlite3.Error) and _is_busy(error):
            return "another process keeps it locked"
        if isinstance(error, sqlite3.Error) and is_damage(error):
            return "it is damaged; borg-pull doctor says what to do"
        try:
            disk = os.statvfs(self._path.parent)
        except OSError:
            disk = None
        # SQLite calls some shortages an I/O error; a file system that counts no inodes says 0.
        if disk is not None and (
            disk.f_bavail * disk.f_frsize < RESERVE_BYTES or (disk.f_files and not disk.f_favail)
        ):
            return SHORTAGES[errno.ENOSPC]
        return "look at its disk, owner and mode"


def _use_wal(database: sqlite3.Connection) -> None:
    """Switch to WAL mode, for which SQLite itself does not wait for others."""
    give_up_at = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() >= give_up_at:
                raise
            time.sleep(BUSY_PAUSE)
        else:
            return


def is_damage(error: sqlite3.Error) -> bool:
    """Whether it is the file's content that is wrong, not its disk or who may read it."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _is_busy(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _run(row: Sequence[Any]) -> Run:
    values = dict(zip(_COLUMNS, row, strict=True))
    for name in ("started", "finished", "gone"):
        if values[name] is not None:
            values[name] = datetime.fromtimestamp(values[name], UTC)
    return Run(**values)


def _now() -> float:
    return datetime.now(UTC).timestamp()
