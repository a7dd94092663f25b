"""``borg-pull-socket-wrap``: joins borg's standard streams to the reverse-forwarded socket.

borg starts it as its remote shell (``BORG_RSH``). The arguments that borg gives, a host and a
command, are ignored: what runs at the other end is for the backup server to say. `_serve` is the
story, one step a line.
"""

from __future__ import annotations

import os
import stat

from borg_pull.errors import (
    BorgPullError,
    InternalError,
    RequestError,
    SystemRefusedError,
    printable,
)
from borg_pull.linux import capabilities, process
from borg_pull.linux.signals import SIGHUP, SIGINT, SIGKILL, SIGTERM, signal
from borg_pull.wrap import peer
from borg_pull.wrap.directions import Count, Traffic, join

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAM = "borg-pull-socket-wrap"
REPORT = "BORG_PULL_WRAP_REPORT"

_ENDING_SIGNALS = (SIGTERM, SIGINT, SIGHUP)


class _EndedBySignalError(BaseException):
    """Raised in the main thread by the first ending signal; no error handler is to catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number
        self.message = f"ended by signal {number}"


def main() -> int:
    """Join borg to its peer until both have ended.

    The exit code is 0, one of ``docs/protocol.md``, or 128 and the number of the signal that
    ended it.
    """
    report = _Report()
    try:
        return _report_outcome(report)
    except _EndedBySignalError as ending:
        return _fail(report, ending.exit_code, ending.message)


def _report_outcome(report: _Report) -> int:
    try:
        _serve(os.environb, report)
    except BorgPullError as error:
        return _fail(report, error.exit_code, error.line())
    except OSError as error:
        refused = SystemRefusedError(f"the system refused: {error.strerror}")
        return _fail(report, refused.exit_code, refused.line())
    except Exception as error:  # noqa: BLE001 - a traceback would go to the peer
        fault = InternalError(f"a fault of this program: {type(error).__name__}: {error}")
        return _fail(report, fault.exit_code, fault.line())
    report.end(0, "")
    return 0


def _serve(environment: Mapping[bytes, bytes], report: _Report) -> None:
    capabilities.drop_all()
    process.hide_from_debuggers()
    _end_on_signals()
    _check_streams()
    report.open(environment.get(REPORT.encode()))
    endpoint = peer.endpoint(environment)
    _tie_to_parent()
    connection = peer.connect(endpoint.path)
    peer.verify(connection, endpoint)
    report.connected()
    join(connection, report.traffic, report.progress)


def _check_streams() -> None:
    """A socket or report that took the number of a closed stream would be read or written as it."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            raise RequestError(
                f"standard stream {descriptor} is closed", "borg starts this program, not a person"
            ) from None


def _tie_to_parent() -> None:
    """Die with borg, which starts its remote shell in a session that no signal of ours reaches.

    A borg that ended before even this program had started is told by its pipes, in `join`.
    """
    parent = os.getppid()
    process.set_parent_death_signal(SIGKILL)
    if os.getppid() != parent:
        raise SystemRefusedError("the program that started this one has ended")


def _end_on_signals() -> None:
    for number in _ENDING_SIGNALS:
        signal(number, _end)


def _end(number: int, _frame: object) -> None:
    for ending in _ENDING_SIGNALS:
        signal(ending, _already_ending)
    raise _EndedBySignalError(number)


def _already_ending(_number: int, _frame: object) -> None:
    """One signal is enough."""


def _fail(report: _Report, exit_code: int, message: str) -> int:
    report.end(exit_code, message)
    try:
        os.write(2, f"{PROGRAM}: {message}\n".encode())
    except OSError:
        return exit_code  # nobody reads it: the code says it all the same
    return exit_code


class _Report:
    """What the forced command learns: lines ``PID EVENT TO_PEER FROM_PEER EXIT [MESSAGE]``.

    TO_PEER and FROM_PEER are bytes delivered so far. Without a file nothing is written.
    """

    def __init__(self) -> None:
        self.traffic = Traffic(to_peer=Count(), from_peer=Count())
        self._descriptor: int | None = None
        self._reported = (0, 0)
        self._ended = False

    def open(self, path: bytes | None) -> None:
        """Append to the existing file ``path``. Raises RequestError, SystemRefusedError."""
        if path is None:
            return
        try:
            # O_NONBLOCK: a FIFO in its place must not hold borg up.
            descriptor = os.open(
                path,
                os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            )
        except OSError as error:
            raise SystemRefusedError(
                f"cannot open the report {os.fsdecode(path)}: {error.strerror}",
                f"{REPORT} names it",
            ) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RequestError(f"{REPORT} names no regular file: {os.fsdecode(path)}")
        self._descriptor = descriptor

    def connected(self) -> None:
        """The peer has been reached and verified."""
        self._write("connected 0 0 0")

    def progress(self) -> None:
        """Report the bytes so far, if there were any since the last time."""
        now = self._bytes()
        if now != self._reported:
            self._reported = now
            self._write(f"progress {now[0]} {now[1]} 0")

    def end(self, exit_code: int, message: str) -> None:
        """The last line; a second call does nothing."""
        if not self._ended:
            self._ended = True
            to_peer, from_peer = self._bytes()
            self._write(f"end {to_peer} {from_peer} {exit_code} {printable(message)}")

    def _bytes(self) -> tuple[int, int]:
        return self.traffic.to_peer.bytes, self.traffic.from_peer.bytes

    def _write(self, line: str) -> None:
        if self._descriptor is not None:
            try:
                os.write(self._descriptor, f"{os.getpid()} {line}\n".encode())
            except OSError:
                # A full disk under the report is no reason to end a backup that goes elsewhere.
                self._descriptor = None
