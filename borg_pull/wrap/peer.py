"""The forwarded socket: where it is, the connection to it, and who listens there."""

from __future__ import annotations

import errno
import os
import select
import stat
from _socket import AF_UNIX, SO_SNDTIMEO, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket

from borg_pull.errors import RequestError, SocketError
from borg_pull.linux.sockets import listener_of
from borg_pull.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET_PATH = "BORGSOCKETWRAP_SOCKET_PATH"
SESSION_PROCESSES = "BORG_PULL_SESSION_PROCESSES"

_MAX_PATH = 107  # bytes: sun_path without its terminating NUL, unix(7)
_MAX_DIGITS = 19  # of a pid, and of the clock ticks since boot
_MAX_SHOWN = 100  # bytes of what is malformed
_SO_PEERPIDFD = 77  # asm-generic/socket.h, Linux 6.5
# struct timeval: seconds and microseconds, 64 bits each.
_ROOM_WITHIN = (2).to_bytes(8, "little") + bytes(8)
_NO_LIMIT = bytes(16)
_NAME_OF_ITS_OWN = "have ssh forward to a name of this run alone, and say it with --socket NONCE"


class Endpoint(Record):
    """The socket that borg is to be joined to, as the environment names it."""

    path: bytes
    session_processes: tuple[tuple[int, int], ...] | None
    """(pid, start time) of the processes of this session, one of which must be the listener;
    None when nobody tells, as with the original tool."""


def endpoint(environment: Mapping[bytes, bytes]) -> Endpoint:
    """What the forced command tells through borg. Raises RequestError."""
    path = environment.get(SOCKET_PATH.encode())
    if not path:
        raise RequestError(f"{SOCKET_PATH} is not set", "borg-pull-source sets it for borg")
    if len(path) > _MAX_PATH:
        raise RequestError(
            f"{SOCKET_PATH} is {len(path)} bytes long, {_MAX_PATH} is the most",
            "choose a shorter runtime.socket_dir",
        )
    told = environment.get(SESSION_PROCESSES.encode())
    return Endpoint(path=path, session_processes=None if told is None else _processes(told))


def _processes(told: bytes) -> tuple[tuple[int, int], ...]:
    processes = []
    for entry in told.split(b","):
        pid, _, start_time = entry.partition(b":")
        if not (_is_number(pid) and _is_number(start_time)):
            raise RequestError(
                f"{SESSION_PROCESSES} is malformed at {os.fsdecode(entry[:_MAX_SHOWN])!r}",
                "it holds PID:STARTTIME, separated by commas",
            )
        processes.append((int(pid), int(start_time)))
    return tuple(processes)


def _is_number(word: bytes) -> bool:
    return word.isdigit() and len(word) <= _MAX_DIGITS


def connect(path: bytes) -> socket:
    """A blocking connection to the socket at ``path``. Raises SocketError."""
    shown = os.fsdecode(path)
    forward = f"forward one with ssh -R {shown}:LOCAL_SOCKET"
    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    # A full queue of a listener that accepts nothing would hold a blocking connect for ever; one
    # that accepts, as every sshd does at once, has room again in less.
    connection.setsockopt(SOL_SOCKET, SO_SNDTIMEO, _ROOM_WITHIN)
    try:
        connection.connect(path)
    except FileNotFoundError:
        raise SocketError(f"no forwarded socket at {shown}", forward) from None
    except ConnectionRefusedError:
        if not _is_socket(path):
            raise SocketError(f"{shown} is not a socket", f"remove it, then {forward}") from None
        raise SocketError(
            f"nobody listens on {shown}",
            f"its session has ended: remove it, then {forward}",
        ) from None
    except PermissionError:
        raise SocketError(
            f"no permission to connect to {shown}",
            "it must belong to the account that borg runs as",
        ) from None
    except BlockingIOError:
        raise SocketError(
            f"a foreign session holds {shown}, or this one is stopped: connections wait there and "
            "nobody takes them",
            _NAME_OF_ITS_OWN,
        ) from None
    except OSError as error:
        raise SocketError(f"cannot connect to {shown}: {error.strerror}", forward) from error
    connection.setsockopt(SOL_SOCKET, SO_SNDTIMEO, _NO_LIMIT)
    return connection


def _is_socket(path: bytes) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True  # gone in between; that it was refused is what is known


def verify(connection: socket, endpoint: Endpoint) -> None:
    """Make sure that the listener is the sshd of this session, or at least of this account.

    The credentials are those of the process that called listen(2) and are read from the
    connection itself, so nothing done to the path can alter them. Raises SocketError.
    """
    listener = listener_of(connection)
    if listener.uid not in (0, os.getuid()):
        raise _foreign(endpoint.path, f"pid {listener.pid} of uid {listener.uid}")
    if endpoint.session_processes is None:
        return
    if listener.identity not in endpoint.session_processes or not _is_alive(connection):
        raise _foreign(endpoint.path, f"pid {listener.pid}")


def _is_alive(connection: socket) -> bool:
    """Whether the process that called listen(2) still runs.

    Its pid and start time could otherwise be those of a later process with its pid, while the
    socket lives on in a child of the one that ended.
    """
    try:
        pidfd = connection.getsockopt(SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        # Before Linux 6.5 there is no telling; other errors say that the process is gone.
        return error.errno == errno.ENOPROTOOPT
    try:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        return not ended.poll(0)
    finally:
        os.close(pidfd)


def _foreign(path: bytes, listener: str) -> SocketError:
    return SocketError(
        f"a foreign session holds {os.fsdecode(path)}: {listener} listens there, which is no "
        "process of this session; nothing was sent",
        _NAME_OF_ITS_OWN,
    )
