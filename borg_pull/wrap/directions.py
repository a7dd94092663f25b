"""Both directions between borg's standard streams and the peer, at once.

Each direction is a thread with blocking calls, because borg's streams cannot be made
non-blocking: O_NONBLOCK belongs to the open file description, which other processes may share.
Measured against ``socat -b 65536`` (tests/bench/wrap_throughput.py, 256 MiB, 15 rounds, Linux
6.18, 2 cores), to and from the peer:

* these threads: 1.07 and 1.14 times as fast; a poll loop on re-opened descriptors was no faster;
* pipes enlarged to 1 MiB: 1.20 and 0.97, which is not worth taking from the account's
  pipe-user-pages-soft (64 MiB), where sessions of one account would starve one another;
* larger socket buffers: 1.04 and 1.10, no gain;
* splice(2) holds the lock of borg's pipe while it waits for the socket, so that borg's read of
  what is already in the pipe hangs: not usable here at all.
"""

from __future__ import annotations

import errno
import os
import select
from _socket import AF_UNIX, SHUT_RD, SHUT_WR, SOCK_STREAM, socket
from _thread import start_new_thread

from borg_pull.errors import SocketError, SystemRefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

STDIN = 0
STDOUT = 1
TICK = 5.0  # seconds

_BLOCK = 64 * 1024  # bytes


class Traffic:
    """Bytes delivered each way so far; each number is written by one thread alone."""

    __slots__ = ("from_peer", "to_peer")

    def __init__(self) -> None:
        self.to_peer = 0
        self.from_peer = 0


class _Direction:
    """One way, from the descriptor ``source`` to ``sink``, carried by a thread of its own.

    ``account`` is told the bytes of each write. A byte in ``wake`` says that it has ended.
    """

    __slots__ = (
        "_account",
        "_sink",
        "_source",
        "_wake",
        "ended",
        "fault",
        "sink_error",
        "source_error",
    )

    def __init__(self, source: int, sink: int, account: Callable[[int], None], wake: int) -> None:
        self._source = source
        self._sink = sink
        self._account = account
        self._wake = wake
        self.ended = False
        self.source_error: OSError | None = None
        self.sink_error: OSError | None = None
        self.fault: Exception | None = None

    def start(self) -> None:
        """Raises SystemRefusedError."""
        try:
            start_new_thread(self._run, ())
        except RuntimeError as error:
            raise SystemRefusedError(f"cannot start a thread: {error}") from error

    def _run(self) -> None:
        try:
            self._carry()
        except Exception as error:  # noqa: BLE001 - raised by the main thread
            self.fault = error
        self.ended = True
        os.write(self._wake, b"\0")

    def _carry(self) -> None:
        # One buffer for all blocks: os.read would allocate and shrink one for each.
        block = bytearray(_BLOCK)
        view = memoryview(block)
        while size := self._read(block):
            done = 0
            while done < size:
                written = self._write(view[done:size])
                if written is None:
                    return
                done += written
                self._account(written)

    def _read(self, block: bytearray) -> int:
        """Bytes read, 0 at the end or at an error, which is kept."""
        while True:
            try:
                return os.readv(self._source, (block,))
            except BlockingIOError:
                _wait(self._source, select.POLLIN)
            except OSError as error:
                self.source_error = error
                return 0

    def _write(self, block: memoryview) -> int | None:
        """Bytes written; None at an error, which is kept."""
        while True:
            try:
                return os.write(self._sink, block)
            except BlockingIOError:
                _wait(self._sink, select.POLLOUT)
            except OSError as error:
                self.sink_error = error
                return None


def join(connection: socket, traffic: Traffic, tick: Callable[[], None]) -> None:
    """Carry both directions until both have ended; ``tick`` is called every 5 idle seconds.

    The end of one direction is passed on (half-close) and leaves the other as it is. Raises
    SocketError when the peer ends before borg does, SystemRefusedError.
    """
    peer = connection.fileno()
    woken, wake = os.pipe()

    def sent(size: int) -> None:
        traffic.to_peer += size

    def received(size: int) -> None:
        traffic.from_peer += size

    to_peer = _Direction(STDIN, peer, sent, wake)
    from_peer = _Direction(peer, STDOUT, received, wake)
    to_peer.start()
    from_peer.start()

    # Ends are passed on from here, not from the directions' threads: while poll waits it holds the
    # open files, and a pipe so held has no end for its reader.
    to_peer_open = from_peer_open = borg_reads = peer_connected = True
    while from_peer_open or (to_peer_open and peer_connected):
        watch = select.poll()
        watch.register(woken, select.POLLIN)
        if peer_connected:
            watch.register(peer, 0)  # POLLHUP: nothing can pass either way any more
        if borg_reads:
            watch.register(STDOUT, 0)  # POLLERR of a pipe, POLLHUP of a socket: nobody reads
        events = dict(watch.poll(TICK * 1000))
        if not events:
            tick()
        if woken in events:
            os.read(woken, 2)
        if peer in events:
            peer_connected = False
        if STDOUT in events:
            borg_reads = False
            _shut(peer, SHUT_RD)
        if to_peer.ended and to_peer_open:
            to_peer_open = False
            _shut(peer, SHUT_WR)
            _shut(STDIN, SHUT_RD)
            os.close(STDIN)
        if from_peer.ended and from_peer_open:
            from_peer_open = borg_reads = False
            _shut(peer, SHUT_RD)
            _shut(STDOUT, SHUT_WR)
            os.close(STDOUT)
    _raise_failure(to_peer, from_peer, cut_off=to_peer_open)


def _raise_failure(to_peer: _Direction, from_peer: _Direction, *, cut_off: bool) -> None:
    """Raise what made a direction end too soon; that borg reads no more is borg's own affair."""
    fault = to_peer.fault or from_peer.fault
    if fault is not None:
        raise fault
    if to_peer.source_error is not None:
        raise SystemRefusedError(f"cannot read from borg: {to_peer.source_error.strerror}")
    error = from_peer.sink_error
    if error is not None and error.errno not in (errno.EPIPE, errno.ECONNRESET):
        raise SystemRefusedError(f"cannot write to borg: {error.strerror}")
    if cut_off or to_peer.sink_error is not None or from_peer.source_error is not None:
        raise SocketError(
            "the peer closed the connection before borg had finished",
            "look at ssh and borg serve on the backup server",
        )


def _shut(descriptor: int, how: int) -> None:
    """shutdown(2) where ``descriptor`` is a socket that is still connected; else nothing."""
    try:
        end = socket(AF_UNIX, SOCK_STREAM, 0, descriptor)
    except OSError:
        return  # ENOTSOCK: closing is all that a pipe needs
    try:
        end.shutdown(how)
    except OSError:
        return  # ENOTCONN: the other end has gone
    finally:
        end.detach()


def _wait(descriptor: int, event: int) -> None:
    """Wait for a descriptor that borg has made non-blocking, without changing that."""
    watch = select.poll()
    watch.register(descriptor, event)
    watch.poll()
