"""Asking the companion, and handing its answer on line by line as it comes."""

from __future__ import annotations

import os
import select
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket

from borg_pull.companion import END, MAX_ANSWER_LINE, request_line
from borg_pull.errors import (
    BORG_ERROR,
    BORG_SUCCESS,
    BORG_WARNING,
    AuditError,
    BorgPullError,
    ConfigurationError,
    EndedError,
    InternalError,
    LimitedError,
    NotAllowedError,
    RequestError,
    SocketError,
    SystemRefusedError,
)
from borg_pull.linux.signals import check_endings
from borg_pull.linux.sockets import listener_of
from borg_pull.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from borg_pull.companion import Ask

CONNECT_SECONDS = 10.0
"""How long a companion may take to accept: it is started by the first request."""
ANSWER_SECONDS = 120.0
"""How long nothing may come of an answer that tells of no event; a slow engine may be asked."""
_WAITING = MAX_ANSWER_LINE * 4  # bytes for a slow peer; then the companion waits
_LAST_SECONDS = 5.0  # without taking anything a peer has for the last of it
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Answer(Record):
    """How it ended."""

    exit: int
    """0, 1 or 2, as of borg."""
    error: str | None
    hint: str | None
    is_peer_gone: bool
    """The peer left before the end; what it asked for goes on."""


def ask(path: str, what: Ask, watch: int, *, is_stream: bool) -> Answer:
    """Ask the companion at ``path`` and hand its lines to standard output.

    A signal that ``watch`` notes ends it: what was asked for goes on. The last line is handed on
    with those of a stream, and when it tells of a failure. Raises SocketError when there is no
    companion, and what the companion raised.
    """
    hint = "is borg-pull-aio serve running on this host?"
    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect(path)
            # Else whoever took the name could say that all is well.
            if listener_of(connection).uid != 0:
                raise SocketError(f"the socket {path} is not the companion's", hint)
            # It fits the buffer of a new connection. One that is refused is told before it asks.
            try:  # noqa: SIM105 - contextlib takes long to import
                connection.sendall(request_line(what))
            except BrokenPipeError:
                pass
        except OSError as error:
            reason = error.strerror or "it does not answer"
            raise SocketError(f"no companion at {path}: {reason}", hint) from error
        connection.setblocking(False)
        return _Relay(connection, watch, is_stream=is_stream).run()
    finally:
        connection.close()


class _Relay:
    """From the companion to standard output."""

    def __init__(self, connection: socket, watch: int, *, is_stream: bool) -> None:
        self._connection = connection
        self._watch = watch
        self._is_stream = is_stream
        self._read = b""
        self._written = b""
        self._end: Answer | BorgPullError | None = None
        self._patience = None if is_stream else ANSWER_SECONDS
        self._deadline: float | None = None
        self._wait_anew()

    def run(self) -> Answer:
        while self._end is None or self._written:
            ready = self._poll()
            if self._watch in ready and self._is_told_to_end():
                return Answer(
                    exit=BORG_ERROR,
                    error="a signal ended this request; what it asked for goes on",
                    hint="see jobs",
                    is_peer_gone=False,
                )
            if ready.get(1, 0) & _GONE:
                return _left()
            if ready.get(1, 0) & select.POLLOUT and not self._write():
                return _left()
            if self._connection.fileno() in ready:
                self._receive()
            self._check_deadline()
        if isinstance(self._end, BorgPullError):
            raise self._end
        return self._end

    def _is_told_to_end(self) -> bool:
        try:
            check_endings(self._watch)
        except EndedError:
            return True
        return False

    def _poll(self) -> dict[int, int]:
        poll = select.poll()
        poll.register(self._watch, select.POLLIN)
        # Also with nothing to write: that the peer is gone shows there.
        poll.register(1, select.POLLOUT if self._written else 0)
        if self._end is None and len(self._written) < _WAITING:
            poll.register(self._connection.fileno(), select.POLLIN)
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        return dict(poll.poll(None if left is None else left * 1000 + 1))

    def _wait_anew(self) -> None:
        """Something has come, or gone on: the time without begins again."""
        if self._patience is not None:
            self._deadline = time.monotonic() + self._patience

    def _check_deadline(self) -> None:
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        if self._end is not None:
            self._written = b""
            return
        if self._written:
            raise SocketError("the answer is not read", "ask again")
        raise SocketError("the companion does not answer", "look at its log")

    def _write(self) -> bool:
        """Whether there is still somebody to write to."""
        try:
            count = os.write(1, self._written[: select.PIPE_BUF])
        except OSError:
            return False
        self._written = self._written[count:]
        self._wait_anew()
        return True

    def _receive(self) -> None:
        try:
            received = self._connection.recv(MAX_ANSWER_LINE)
        except BlockingIOError:
            return
        except OSError as error:
            raise _cut_off() from error
        if not received:
            raise _cut_off()
        self._read += received
        self._wait_anew()
        while self._end is None and b"\n" in self._read:
            line, _, self._read = self._read.partition(b"\n")
            self._take(line)
        if len(self._read) > MAX_ANSWER_LINE:
            raise InternalError("the companion sent a line without an end")

    def _take(self, line: bytes) -> None:
        import json

        # Nothing that a terminal could act on goes through, whoever made the companion say it.
        if not line.isascii() or not line.decode("ascii").isprintable():
            raise InternalError("the companion sent what is not printable")
        try:
            fields = json.loads(line)
            kind = fields["type"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise InternalError("the companion sent a line that is no object") from error
        if kind != END:
            self._written += line + b"\n"
            return
        self._end = _answer(fields)
        self._patience = _LAST_SECONDS
        self._wait_anew()
        if self._is_stream or not isinstance(self._end, Answer) or self._end.exit:
            self._written += line + b"\n"


def _answer(fields: dict[str, object]) -> Answer | BorgPullError:
    """What the last line says: how it ended, or why nothing was done."""
    code, error, hint = (fields.get(name) for name in ("exit", "error", "hint"))
    said = error if isinstance(error, str) else None
    advice = hint if isinstance(hint, str) else None
    if type(code) is int and code in (BORG_SUCCESS, BORG_WARNING, BORG_ERROR):
        return Answer(exit=code, error=said, hint=advice, is_peer_gone=False)
    for kind in _ERRORS:
        if type(code) is int and kind.exit_code == code:
            return kind(said or "the companion does not say why", advice)
    return InternalError("the companion ended without an exit code of its own", said)


_ERRORS: tuple[type[BorgPullError], ...] = (
    RequestError,
    SocketError,
    InternalError,
    SystemRefusedError,
    AuditError,
    LimitedError,
    NotAllowedError,
    ConfigurationError,
)


def _left() -> Answer:
    return Answer(exit=BORG_ERROR, error="the connection closed", hint=None, is_peer_gone=True)


def _cut_off() -> SocketError:
    return SocketError(
        "the companion ended before it had answered", "what it was doing goes on: see jobs"
    )
