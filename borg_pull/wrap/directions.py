"""Both directions between borg's standard streams and the peer, at once.

Each direction is a thread with blocking calls, because borg's streams cannot be made
non-blocking: O_NONBLOCK belongs to the open file description, which other processes may share.
Measured on 2 cores, Linux 6.18, against ``socat -b 65536``, to and from the peer
(tests/bench/wrap_throughput.py, 256 MiB, 31 rounds):

* these threads: 1.08 and 1.08 times as fast; a poll loop on re-opened descriptors: no faster;
* pipes enlarged to 1 MiB: 1.4 to the peer, none from it; but they count against the account's
  pipe-user-pages-soft (64 MiB), past which all new pipes of the account shrink to two pages, so
  that one client's sessions would slow down another's;
* larger socket buffers, or blocks of 128 KiB: no gain that stood out;
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
from borg_pull.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

STDIN = 0
STDOUT = 1
TICK = 5.0  # seconds

_BLOCK = 64 * 1024  # bytes


class Count:
    """Bytes delivered one way so far; one thread alone writes it."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Traffic(Record):
    """What has been delivered each way."""

    to_peer: Count
    from_peer: Count


class _Direction:
    """One way, from the descriptor ``source`` to ``sink``, carried by a thread of its own.

    A byte in ``wake`` says that it has ended.
    """

    __slots__ = (
        "_count",
        "_sink",
        "_source",
        "_wake",
        "ended",
        "fault",
        "sink_error",
        "source_error",
    )

    def __init__(self, source: int, sink: int, count: Count, wake: int) -> None:
        self._source = source
        self._sink = sink
        self._count = count
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
        """Until the end of the source or an error, which is kept.

        In one piece: calls of methods for each block took 5 to 10 % off the throughput.
        """
        source, sink, count = self._source, self._sink, self._count
        # One buffer for all blocks: os.read would allocate and shrink one for each.
        block = bytearray(_BLOCK)
        blocks = (block,)
        view = memoryview(block)
        while True:
            try:
                size = os.readv(source, blocks)
            except BlockingIOError:
                _wait(source, select.POLLIN)
                continue
            except OSError as error:
                self.source_error = error
                return
            if size == 0:
                return
            done = 0
            while done < size:
                try:
                    written = os.write(sink, view[done:size])
                except BlockingIOError:
                    _wait(sink, select.POLLOUT)
                    continue
                except OSError as error:
                    self.sink_error = error
                    return
                done += written
                count.bytes += written


def join(connection: socket, traffic: Traffic, tick: Callable[[], None]) -> None:
    """Carry both directions until both have ended; ``tick`` is called every 5 idle seconds.

    The end of one direction is passed on (half-close) and leaves the other as it is. Raises
    SocketError when the peer ends before borg does, SystemRefusedError.
    """
    peer = connection.fileno()
    woken, wake = os.pipe()
    to_peer = _Direction(STDIN, peer, traffic.to_peer, wake)
    from_peer = _Direction(peer, STDOUT, traffic.from_peer, wake)
    to_peer.start()
    from_peer.start()

    # Ends are passed on from here, not from the directions' threads: while poll waits it holds the
    # open files, and a pipe so held has no end for its reader. While both directions run, nothing
    # but their ends is waited for: to have the streams watched as well cost 10 % of throughput.
    to_peer_open = from_peer_open = borg_reads = peer_connected = True
    while from_peer_open or (to_peer_open and peer_connected):
        watch = select.poll()
        watch.register(woken, select.POLLIN)
        if not from_peer_open:
            watch.register(peer, 0)  # POLLHUP: nothing can pass either way any more
        elif not to_peer_open and borg_reads:
            watch.register(STDOUT, 0)  # POLLERR of a pipe, POLLHUP of a socket: borg has gone
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
