"""What a command that a person calls shares with the runs of a batch: the ledger and the locks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from borg_pull.errors import BorgPullError, BusyError
from borg_pull.pull.ledger import Kind, Ledger
from borg_pull.pull.locks import of_job, of_repository, take
from borg_pull.pull.places import Places
from borg_pull.pull.pull import Task


@contextmanager
def on_record(ledger: Ledger, job: Task, kind: Kind, log: Path | None = None) -> Iterator[int]:
    """A run in the ledger, its id; how the body ends is how it does."""
    path = None if log is None else str(log)
    run = ledger.begin(job.name, job.source_name, job.repository_name, kind=kind, log=path)
    started = time.monotonic()
    outcome = "failure"
    error: str | None = "it was ended"
    try:
        yield run
        outcome, error = "success", None
    except BorgPullError as fault:
        error = fault.line()
        raise
    finally:
        duration = round(time.monotonic() - started, 3)
        ledger.finish(run, outcome, error=error, duration=duration)


@contextmanager
def logged(ledger: Ledger, job: Task, places: Places, kind: Kind) -> Iterator[tuple[int, BinaryIO]]:
    """The same, with a log of its own."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    path = places.logs / f"{job.name}-{kind}-{stamp}.log"
    path.touch(mode=0o600)
    with on_record(ledger, job, kind, path) as run, path.open("ab") as log:
        yield run, log


@contextmanager
def alone(job: Task, places: Places) -> Iterator[None]:
    """Hold what a pull of the job holds. Raises BusyError."""
    with ExitStack() as held:
        for lock in (of_job(job.name), of_repository(job.repository.path)):
            if not take(held, places.locks, lock):
                raise BusyError("the job or its repository is in use", "try again later")
        yield
