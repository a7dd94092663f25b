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
from borg_pull.record import Record
from borg_pull.trust import open_past_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

RECORD_BYTES = 512
"""One place in the table of all sessions; its first byte is what is locked."""

BUCKET_BYTES = 20 + 1 + 20 + 1
"""``CREDIT TIME`` in 20 digits each, and a newline."""

RETRY_SECONDS = 60
"""When to come back, where nobody can know when a session will end."""

LOCK_SECONDS = 10.0
"""How long a request waits for a bucket that others are drawing from."""

_FIRST_PLACE = 1024  # of a client's own places, behind its bucket
_TOKEN = 3_600_000  # credit of one request: milliseconds of an hour, so that no refill is rounded
_UNKNOWN = "-"
_DIGITS = str.maketrans("123456789", "000000000")
_SINCE = "%Y-%m-%dT%H:%M:%SZ"
_WRITING_SECONDS = 0.2  # between taking a place and having written into it


class LiveSession(Record):
    """A request under way."""

    pid: int
    """The forced command's, as the kernel knows it; 0 where it cannot name the holder: one of
    another pid namespace, or no forced command of ours."""
    client: str
    """``-`` if it has only just come and not told yet; no client is called so."""
    verb: str | None
    """None until the request is let in and parsed."""
    since: str
    """RFC 3339 in UTC."""
    session: str
    """As in the audit records; ``-`` like ``client``."""
    report: str | None
    """Path of the wrap's report, None where no wrap runs."""


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
        self._since = time.strftime(_SINCE, time.gmtime())

    def tell(self, verb: str | None, report: str | None) -> None:
        """Have the admin see what is being done. Raises SystemRefusedError."""
        head = f"{os.getpid()} {self._client} {verb or _UNKNOWN} {self._since} {self._session} "
        encoded = os.fsencode(head + (report or _UNKNOWN))
        if len(encoded) >= RECORD_BYTES:
            encoded = os.fsencode(head + _UNKNOWN)
        try:
            _write(self._table, encoded.ljust(RECORD_BYTES - 1) + b"\n", self._offset)
        except OSError as error:
            raise _refused(_table_path(self._home), error) from error

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
            raise _refused(_own_path(self._home, self._client), error) from error
        if wait:
            raise LimitedError(
                f"client {self._client} has made too many requests "
                f"({requests_per_hour} an hour are let in, {burst} at once)",
                f"try again in {-(-wait // 1000)} seconds",
            )


def directory(home: str) -> str:
    """Where the files stand; the caller makes it."""
    return f"{home.rstrip('/')}/limits"


def _table_path(home: str) -> str:
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
        since = min((one.since for one in live(home) if one.client == client), default=None)
        raise LimitedError(
            f"client {client} has {_sessions(most_of_client)} under way, which is all it may have"
            + ("" if since is None else f" (the longest since {since})"),
            f"try again in {RETRY_SECONDS} seconds",
        )
    table_path = _table_path(home)
    table = _open(table_path)
    position = _lock_one(table, table_path, 0, RECORD_BYTES, most)
    if position is None:
        os.close(own)
        os.close(table)
        raise LimitedError(
            f"this host has {_sessions(most)} under way, which is all it may have",
            f"try again in {RETRY_SECONDS} seconds",
        )
    place = Place(table, position, own, home, client, session)
    place.tell(None, None)
    return place


def _sessions(number: int) -> str:
    return f"{number} session{'' if number == 1 else 's'}"


def _open(path: str) -> int:
    """Raises SystemRefusedError: what cannot be counted does not run."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = open_past_socket(path, flags)
    except OSError as error:
        raise _refused(path, error) from error
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
            raise _refused(path, error) from error
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


def _refused(what: str, error: OSError) -> SystemRefusedError:
    hint = "remove the link" if error.errno == errno.ELOOP else None
    return SystemRefusedError(f"cannot use {what}: {error.strerror}", hint)


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


def live(home: str) -> list[LiveSession]:
    """The requests under way below ``home``, by the locks the kernel knows of.

    Not for a process that has a place itself: it would give it up (see `Place`). Raises
    SystemRefusedError.
    """
    path = _table_path(home)
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _refused(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SystemRefusedError(f"cannot use {path}: not a regular file", "move it away")
    deadline = time.monotonic() + _WRITING_SECONDS
    try:
        found = [
            _live_session(descriptor, position, pid, home, deadline)
            for position, pid in _holders(descriptor)
        ]
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        os.close(descriptor)
    return sorted(found, key=lambda one: (one.since, one.pid))


def _holders(descriptor: int) -> Iterator[tuple[int, int]]:
    """(offset, pid) of each lock on the first byte of a place.

    The kernel answers with any one lock in a range, so what lies on both sides of it is asked
    about next.
    """
    import struct

    layout = "hhqqi0q"  # struct flock of a 64-bit Linux
    ranges = [(0, 0)]  # (first byte, behind the last; 0: no end)
    while ranges:
        first, end = ranges.pop()
        asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, first, max(0, end - first), 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, asked)
        kind, _, start, length, pid = struct.unpack(layout, answer)
        if kind == fcntl.F_UNLCK:
            continue
        if start > first:
            ranges.append((first, start))
        if length and (not end or start + length < end):
            ranges.append((start + length, end))
        if length == 1 and start % RECORD_BYTES == 0:
            yield start, max(0, pid)  # -1: of an open file, by F_OFD_SETLK


def _live_session(
    descriptor: int, offset: int, pid: int, home: str, deadline: float
) -> LiveSession:
    while True:
        told = _told(os.pread(descriptor, RECORD_BYTES, offset), pid, home)
        if told is not None:
            return told
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)
    # What stands there is of an earlier holder.
    return LiveSession(
        pid=pid,
        client=_UNKNOWN,
        verb=None,
        since=time.strftime(_SINCE, time.gmtime()),
        session=_UNKNOWN,
        report=None,
    )


def _told(content: bytes, pid: int, home: str) -> LiveSession | None:
    """What the holder of a place wrote there; None for anything else.

    The account can write there and the admin reads it: nothing of another form goes through.
    """
    from borg_pull.audit import is_session
    from borg_pull.source.request import VERBS
    from borg_pull.source.whitelist import client_name_fault

    words = os.fsdecode(content).rstrip("\n").rstrip(" ").split(" ", 5)
    if len(words) != 6 or words[0] != str(pid):
        return None
    client, verb, since, session, report = words[1:]
    if since.translate(_DIGITS) != "0000-00-00T00:00:00Z" or client_name_fault(client):
        return None
    if not is_session(session) or verb not in (*VERBS, _UNKNOWN):
        return None
    above, _, name = report.rpartition("/")
    # Right there, and not by "..": the admin opens it as root.
    is_there = above == f"{home.rstrip('/')}/locks/{client}" and name not in ("", ".", "..")
    return LiveSession(
        pid=pid,
        client=client,
        verb=None if verb == _UNKNOWN else verb,
        since=since,
        session=session,
        report=report if is_there and report.isprintable() else None,
    )
