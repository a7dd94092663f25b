"""Which requests are under way: what the admin sees of the places that `limits` counts."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import time

from borg_pull.errors import SystemRefusedError
from borg_pull.record import Record
from borg_pull.source.limits import RECORD_BYTES, SINCE, UNKNOWN, refused, table_path
from borg_pull.source.request import VERBS
from borg_pull.values import client_name_fault, is_session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK = "hhqqi0q"  # struct flock of a 64-bit Linux
_DIGITS = str.maketrans("123456789", "000000000")
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


def live(home: str) -> list[LiveSession]:
    """The requests under way below ``home``, by the locks the kernel knows of.

    Not for a process that has a place itself: it would give it up (see `limits.Place`). Raises
    SystemRefusedError.
    """
    path = table_path(home)
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise refused(path, error) from error
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
        raise refused(path, error) from error
    finally:
        os.close(descriptor)
    return sorted(found, key=lambda one: (one.since, one.pid))


def _holders(descriptor: int) -> Iterator[tuple[int, int]]:
    """(offset, pid) of each lock on the first byte of a place.

    The kernel answers with any one lock in a range, so what lies on both sides of it is asked
    about next.
    """
    ranges = [(0, 0)]  # (first byte, behind the last; 0: no end)
    while ranges:
        first, end = ranges.pop()
        asked = struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, first, max(0, end - first), 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, asked)
        kind, _, start, length, pid = struct.unpack(_LOCK, answer)
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
        client=UNKNOWN,
        verb=None,
        since=time.strftime(SINCE, time.gmtime()),
        session=UNKNOWN,
        report=None,
    )


def _told(content: bytes, pid: int, home: str) -> LiveSession | None:
    """What the holder of a place wrote there; None for anything else.

    The account can write there and the admin reads it: nothing of another form goes through.
    """
    words = os.fsdecode(content).rstrip("\n").rstrip(" ").split(" ", 5)
    if len(words) != 6 or words[0] != str(pid):
        return None
    client, verb, since, session, report = words[1:]
    if since.translate(_DIGITS) != "0000-00-00T00:00:00Z" or client_name_fault(client):
        return None
    if not is_session(session) or verb not in (*VERBS, UNKNOWN):
        return None
    above, _, name = report.rpartition("/")
    # Right there, and not by "..": the admin opens it as root.
    is_there = above == f"{home.rstrip('/')}/locks/{client}" and name not in ("", ".", "..")
    return LiveSession(
        pid=pid,
        client=client,
        verb=None if verb == UNKNOWN else verb,
        since=since,
        session=session,
        report=report if is_there and report.isprintable() else None,
    )
