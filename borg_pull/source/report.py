"""What the socket wrap reports: whether it reached the peer, and the bytes each way."""

from __future__ import annotations

import os
import stat

from borg_pull.errors import InternalError, RequestError, SocketError, SystemRefusedError
from borg_pull.record import Record

_MAX_REPORT = 1024 * 1024  # bytes; a run writes a few lines
_MAX_DIGITS = 18  # of a number of bytes
_MAX_MESSAGE = 500  # characters
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
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            content = os.read(descriptor, _MAX_REPORT)
        finally:
            os.close(descriptor)
        os.unlink(path)
    except OSError:
        return None
    return parse(content.decode("utf-8", "replace"))


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
            words[5][:_MAX_MESSAGE] if len(words) > 5 else "",
        )
    if not last:
        return None
    failure = next(
        ((code, message) for _, _, code, message in last.values() if code in _FAILURES), None
    )
    return WrapReport(
        connected=connected,
        bytes_to_peer=sum(entry[0] for entry in last.values()),
        bytes_from_peer=sum(entry[1] for entry in last.values()),
        failure=failure,
    )


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= _MAX_DIGITS
