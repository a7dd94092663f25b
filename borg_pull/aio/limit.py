"""How long an HTTP answer may take, and how large it may be, from its first byte to its last.

The timeout of the HTTP library is that of one read: whoever sends a byte now and then holds it for
ever. So the limits are kept where bytes come in.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import urllib3.connection

if TYPE_CHECKING:
    from typing import Any

    from _typeshed import WriteableBuffer

_MOST_AT_ONCE = 1 << 16  # bytes, whatever length is announced


class Limit:
    """What an answer may still take."""

    def __init__(self, seconds: float, size: int) -> None:
        self._seconds = seconds
        self._end: float | None = time.monotonic() + seconds
        self._size = size
        self._left = size

    def lift(self) -> None:
        """The answer has begun, and lasts."""
        self._end = None

    def left(self) -> float | None:
        """Seconds; None when there is no end. Raises OSError when there are none left."""
        if self._end is None:
            return None
        if self._left <= 0:
            raise OSError(f"its answer is larger than {self._size} bytes")
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.late()
        return left

    def late(self) -> TimeoutError:
        """What to raise when there are none left."""
        return TimeoutError(f"no whole answer in {self._seconds:g} s")

    def took(self, count: int) -> None:
        """So many bytes have come."""
        self._left -= count


_current = threading.local()


@contextlib.contextmanager
def limited(seconds: float, size: int) -> Iterator[Limit]:
    """Limit the answers that this thread gets, together."""
    _current.limit = limit = Limit(seconds, size)
    try:
        yield limit
    finally:
        _current.limit = None


class _Bytes(socket.SocketIO):
    """What comes in on a socket."""

    incoming: socket.socket
    limit: Limit

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        self.incoming.settimeout(self.limit.left())
        count: int | None = None
        is_late = False
        try:
            count = super().readinto(buffer)
        except TimeoutError:
            is_late = True
        if is_late:
            raise self.limit.late()
        self.limit.took(count or 0)
        return count

    def read(self, size: int = -1, /) -> bytes | None:
        # Room is made for all that is asked for, and a frame says that it has gigabytes.
        return super().read(min(size, _MOST_AT_ONCE))


class _Answer(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        limit: Limit | None = getattr(_current, "limit", None)
        if limit is not None:
            # The object that the socket has made, and counts, is kept.
            raw: Any = self.fp.detach()
            raw.__class__ = _Bytes
            raw.incoming, raw.limit = sock, limit
            self.fp = io.BufferedReader(raw)


# Of every kind of connection that requests makes; without a limit it is as it was.
urllib3.connection.HTTPConnection.response_class = _Answer
