"""What the socket wrap reports: whether it reached the peer, and the bytes each way."""

from __future__ import annotations

import os
import stat

from borg_pull.errors import InternalError, RequestError, SocketError, SystemRefusedError
from borg_pull.record import Record

# Bytes read of each end of a report: a run of days writes 20 MiB a month, a line every 5 seconds.
PART = 128 * 1024
_MAX_DIGITS = 18  # of a number of bytes
_MAX_BYTES = 10**_MAX_DIGITS - 1  # no record is to hold a number that its readers cannot
MAX_MESSAGE = 500  # characters
# Anything else is no failure of the wrap's own to tell of: it was killed, say.
_FAILURES = (
    RequestError.exit_code,
    SocketError.exit_code,
    InternalError.exit_code,
    SystemRefusedError.exit_code,
)


class WrapReport(Record):
    """The reports of all wraps of one run together."""

    connected: bool
    """Whether a connection was made and, where it could be checked, found to be this session's."""
    bytes_to_peer: int
    bytes_from_peer: int
    failure: tuple[int, str] | None
    """Exit code and message of a wrap that failed."""


def take(path: str) -> WrapReport | None:
    """Read the report at ``path`` and remove it; None when no wrap of ours reported.

    The run itself can put anything there, so nothing in it is waited for or believed.
    """
    found = look_at(path)
    try:
        os.unlink(path)
    except OSError:
        return None
    return found


def look_at(path: str) -> WrapReport | None:
    """As `take`, of a run that goes on."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            content = _content(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    return parse(content.decode("utf-8", "replace"))


def _content(descriptor: int) -> bytes:
    """The whole report, or its first and its last lines: what is between them they say, too."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return b""
    first = os.pread(descriptor, PART, 0)
    if status.st_size <= PART:
        return first
    start = max(PART, status.st_size - PART)
    last = os.pread(descriptor, PART, start)
    if start > PART:
        first, last = first[: first.rfind(b"\n") + 1], last.partition(b"\n")[2]
    return first + last


def parse(text: str) -> WrapReport | None:
    """The report in ``text``: lines ``PID EVENT TO_PEER FROM_PEER EXIT [MESSAGE]``, the last
    line of a pid standing for it."""
    last: dict[str, tuple[int, int, int, str]] = {}
    connected = False
    for line in text.splitlines():
        words = line.split(" ", 5)
        if len(words) < 5 or not all(map(_is_number, words[2:5])):
            continue
        connected = connected or words[1] == "connected"
        last[words[0]] = (
            int(words[2]),
            int(words[3]),
            int(words[4]),
            words[5][:MAX_MESSAGE] if len(words) > 5 else "",
        )
    if not last:
        return None
    failure = next(
        ((code, message) for _, _, code, message in last.values() if code in _FAILURES), None
    )
    return WrapReport(
        connected=connected,
        bytes_to_peer=min(_MAX_BYTES, sum(entry[0] for entry in last.values())),
        bytes_from_peer=min(_MAX_BYTES, sum(entry[1] for entry in last.values())),
        failure=failure,
    )


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= _MAX_DIGITS
