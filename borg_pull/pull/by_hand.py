"""What a command that a person calls shares with the runs of a batch: the ledger and the locks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

from borg_pull.errors import BorgPullError, BusyError
from borg_pull.pull.ledger import Kind, Ledger
from borg_pull.pull.locks import of_job, of_repository, take
from borg_pull.pull.log import Log, note
from borg_pull.pull.places import Places
from borg_pull.pull.pull import Task, UnreachableError


@contextmanager
def logged(
    ledger: Ledger, job: Task, places: Places, kind: Kind, doubts: Sequence[str] = ()
) -> Iterator[tuple[int, Log]]:
    """A run in the ledger, its id and its log; how the body ends is how it does.

    What found the source out of reach, or busy, was not tried: it says nothing of the backup.
    If there are ``doubts`` by then, a success is one with a warning.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    path = places.logs / f"{job.name}-{kind}-{stamp}.log"
    path.touch(mode=0o600)
    run = ledger.begin(job.name, job.source_name, job.repository_name, kind=kind, log=str(path))
    started = time.monotonic()
    outcome = "failure"
    error: str | None = "it was ended"
    try:
        with Log(path) as log:
            yield run, log
        outcome, error = ("warning", doubts[0]) if doubts else ("success", None)
    except (BusyError, UnreachableError) as fault:
        outcome, error = "skipped", fault.line()
        raise
    except BorgPullError as fault:
        error = fault.line()
        raise
    finally:
        why = "" if error is None else f": {error}"
        note(path, f"{job.name}: {kind}: {outcome}{why}")
        duration = round(time.monotonic() - started, 3)
        ledger.finish(run, outcome, error=error, duration=duration)


@contextmanager
def alone(job: Task, places: Places) -> Iterator[None]:
    """Hold what a pull of the job holds. Raises BusyError."""
    with ExitStack() as held:
        for lock in (of_job(job.name), of_repository(job.repository.path)):
            if not take(held, places.locks, lock):
                raise BusyError("the job or its repository is in use", "try again later")
        yield


@contextmanager
def unchanged(job: Task, places: Places) -> Iterator[None]:
    """Hold the job's repository as it is: nothing is pulled into it. Raises BusyError."""
    with ExitStack() as held:
        if not take(held, places.locks, of_repository(job.repository.path), shared=True):
            raise BusyError("the repository is in use", "try again later")
        yield
