"""Passing one stream of borg's on to the peer, looking at it, never blocking on a slow reader."""

from __future__ import annotations

import os
import select

_BLOCK = 64 * 1024
MAX_PENDING = 2 * _BLOCK
"""Most that waits for a slow peer: no block is read while there is one."""
# A pipe that polls writable takes PIPE_BUF bytes without blocking, and so does a socket.
_WRITE = 4096


# Names of files reach the peer's terminal in borg's messages. What borg itself uses stays: line
# ends, and the carriage return of its progress display.
_HARMLESS = bytes(
    ord("?") if (byte < 0x20 and byte not in b"\n\r\t") or byte == 0x7F else byte
    for byte in range(256)
)


# The controls beyond ASCII, which a terminal acts on like on an escape sequence: U+0080 to U+009F.
_LEAD = b"\xc2"
_TRAILS = range(0x80, 0xA0)


def _harmless(block: bytes, after: bytes) -> bytes:
    """``block`` for a terminal, byte for byte; ``after`` is the byte before it, if there is one."""
    text = block.translate(_HARMLESS)
    if after == _LEAD and text[0] in _TRAILS:
        # With the byte that has gone out already it would have been one.
        text = b"?" + text[1:]
    if _LEAD in text:
        for trail in _TRAILS:
            text = text.replace(_LEAD + bytes((trail,)), b"??")
    return text


class Relay:
    """Bytes read from ``reader`` go to ``target``, and the last ``keep`` of them are kept."""

    def __init__(self, reader: int, target: int, keep: int) -> None:
        self.reader = reader
        self.target = target
        self.is_open = True
        self._keep = keep
        self._pending = b""
        self._kept = bytearray()
        self._overflown = False

    def is_done(self) -> bool:
        """Whether all has been passed on."""
        return not self.is_open and not self._pending

    def reader_events(self) -> int:
        """Poll events to wait for at the reading end."""
        return select.POLLIN if len(self._pending) < _BLOCK else 0

    def target_events(self) -> int:
        """Poll events to wait for at the target; errors are reported whatever is asked for."""
        return select.POLLOUT if self._pending else 0

    def receive(self) -> None:
        """Read one block; closes the reader at its end."""
        block = os.read(self.reader, _BLOCK)
        if not block:
            os.close(self.reader)
            self.is_open = False
            return
        self._pending += _harmless(block, bytes(self._kept[-1:]))
        self._kept += block
        if len(self._kept) > self._keep:
            self._overflown = True
            del self._kept[: len(self._kept) - self._keep]

    def send(self) -> None:
        """Write some of what is pending. Raises OSError when nobody reads any more."""
        written = os.write(self.target, self._pending[:_WRITE])
        self._pending = self._pending[written:]

    def discard(self) -> None:
        """Forget what is pending: nobody will read it."""
        self._pending = b""

    def append(self, text: bytes) -> None:
        """Queue a line of our own behind what borg said."""
        self._pending += text

    def tail(self) -> bytes:
        """The last bytes that passed."""
        return bytes(self._kept)

    def whole(self) -> bytes | None:
        """All that passed, None if it was more than is kept."""
        return None if self._overflown else bytes(self._kept)
