"""How much may be asked of this host: sessions at one time, for all and for each client, and
requests over time for each client.

In ``limits`` below home lies one file of all sessions and one of each client. What counts sessions
are the kernel's locks on bytes of these files, which end with the process that holds them, however
it ends; what is written beside a lock tells the admin who holds it. A client's file begins with its
bucket of tokens: each request takes one, time puts them back.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from borg_pull.errors import LimitedError, SystemRefusedError
from borg_pull.trust import open_past_socket

RECORD_BYTES = 512
"""One place in the table of all sessions; its first byte is what is locked."""

BUCKET_BYTES = 20 + 1 + 20 + 1
"""``CREDIT TIME`` in 20 digits each, and a newline."""

RETRY_SECONDS = 60
"""When to come back, where nobody can know when a session will end."""

UNKNOWN = "-"
"""What is not known yet, or does not apply."""

SINCE = "%Y-%m-%dT%H:%M:%SZ"
"""How a time is written there (strftime): RFC 3339 in UTC."""

LOCK_SECONDS = 10.0
"""How long a request waits for a bucket that others are drawing from."""

_FIRST_PLACE = 1024  # of a client's own places, behind its bucket
_TOKEN = 3_600_000  # credit of one request: milliseconds of an hour, so that no refill is rounded


class Place:
    """A request's places among the sessions under way, given back when the process ends.

    The files stay open until then: closing any descriptor of a file gives up all of the
    process's locks on it.
    """

    def __init__(
        self, table: int, position: int, own: int, home: str, client: str, session: str
    ) -> None:
        self._table = table
        self._offset = position * RECORD_BYTES
        self._own = own
        self._home = home
        self._client = client
        self._session = session
        self._since = time.strftime(SINCE, time.gmtime())

    def tell(self, verb: str | None, report: str | None) -> None:
        """Have the admin see what is being done. Raises SystemRefusedError."""
        head = f"{os.getpid()} {self._client} {verb or UNKNOWN} {self._since} {self._session} "
        encoded = os.fsencode(head + (report or UNKNOWN))
        if len(encoded) >= RECORD_BYTES:
            encoded = os.fsencode(head + UNKNOWN)
        try:
            _write(self._table, encoded.ljust(RECORD_BYTES - 1) + b"\n", self._offset)
        except OSError as error:
            raise refused(table_path(self._home), error) from error

    def take_token(self, requests_per_hour: int, burst: int) -> None:
        """Count this request. Raises LimitedError when there have been too many."""
        try:
            _lock_bucket(self._own)
            content = os.pread(self._own, BUCKET_BYTES, 0)
            now = max(0, time.time_ns() // 1_000_000)
            content, wait = draw(content, now, requests_per_hour, burst)
            _write(self._own, content, 0)
            fcntl.lockf(self._own, fcntl.LOCK_UN, 1, 0)
        except OSError as error:
            raise refused(_own_path(self._home, self._client), error) from error
        if wait:
            raise LimitedError(
                f"client {self._client} has made too many requests "
                f"({requests_per_hour} an hour are let in, {burst} at once)",
                f"try again in {_counted(-(-wait // 1000), 'second')}",
            )


def directory(home: str) -> str:
    """Where the files stand; the caller makes it."""
    return f"{home.rstrip('/')}/limits"


def table_path(home: str) -> str:
    """The file of all sessions."""
    return f"{directory(home)}/sessions"


def _own_path(home: str, client: str) -> str:
    # With an ending, because a client may be called "sessions".
    return f"{directory(home)}/{client}.limits"


def claim(home: str, client: str, session: str, *, most: int, most_of_client: int) -> Place:
    """Take a place among all sessions and one among the client's.

    Raises LimitedError when either are all taken, SystemRefusedError when that cannot be told.
    """
    own_path = _own_path(home, client)
    own = _open(own_path)
    # The client's first: those it has too many of must not take places from others meanwhile.
    if _lock_one(own, own_path, _FIRST_PLACE, 1, most_of_client) is None:
        os.close(own)
        from borg_pull.source.places import live

        since = min((one.since for one in live(home) if one.client == client), default=None)
        raise LimitedError(
            f"client {client} has {_counted(most_of_client, 'session')} under way, "
            "which is all it may have" + ("" if since is None else f" (the longest since {since})"),
            f"try again in {RETRY_SECONDS} seconds",
        )
    path = table_path(home)
    table = _open(path)
    position = _lock_one(table, path, 0, RECORD_BYTES, most)
    if position is None:
        os.close(own)
        os.close(table)
        raise LimitedError(
            f"this host has {_counted(most, 'session')} under way, which is all it may have",
            f"try again in {RETRY_SECONDS} seconds",
        )
    place = Place(table, position, own, home, client, session)
    place.tell(None, None)
    return place


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _open(path: str) -> int:
    """Raises SystemRefusedError: what cannot be counted does not run."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = open_past_socket(path, flags)
    except OSError as error:
        raise refused(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SystemRefusedError(f"cannot use {path}: not a regular file", "move it away")
    return descriptor


def _lock_one(descriptor: int, path: str, start: int, step: int, most: int) -> int | None:
    """Lock the first free one of ``most`` bytes; its number, None when none is free."""
    for number in range(most):
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, start + number * step)
        except BlockingIOError:
            continue
        except OSError as error:
            raise refused(path, error) from error
        return number
    return None


def _lock_bucket(descriptor: int) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    pause = 0.0001
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 2, 0.002)


def _write(descriptor: int, content: bytes, offset: int) -> None:
    if os.pwrite(descriptor, content, offset) != len(content):
        # No kernel splits so few bytes but for want of space.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refused(what: str, error: OSError) -> SystemRefusedError:
    """The error for a file that cannot be used."""
    if error.errno == errno.ELOOP:
        return SystemRefusedError(f"cannot use {what}: it is a link", "remove it")
    if error.errno == errno.EAGAIN:
        return SystemRefusedError(
            f"cannot use {what}: another process holds the lock",
            "look for a stopped borg-pull process with: fuser -v on this file",
        )
    return SystemRefusedError.because(f"cannot use {what}", error)


def draw(content: bytes, now: int, requests_per_hour: int, burst: int) -> tuple[bytes, int]:
    """Take a token at ``now``, in milliseconds since the epoch, from a bucket as it is in its file.

    Returns the new content, and how many milliseconds are missing to a token: 0 if one was taken.
    A new bucket is full, a damaged one empty. A clock that was set back adds nothing, and the
    bucket fills from the new time on.
    """
    full = burst * _TOKEN
    credit, at = _parse(content, now) if content else (full, now)
    credit = min(full, credit + max(0, now - at) * requests_per_hour)
    wait = max(0, -((credit - _TOKEN) // requests_per_hour))
    if wait == 0:
        credit -= _TOKEN
    return b"%020d %020d\n" % (credit, now), wait


def _parse(content: bytes, now: int) -> tuple[int, int]:
    """Credit and time of a bucket; no credit as of ``now`` for what no bucket looks like."""
    credit, at = content[:20], content[21:41]
    if content != b"%s %s\n" % (credit, at) or not (credit + at).isdigit():
        return 0, now
    return int(credit), int(at)
