"""Who listens on a Unix socket (unix(7), SO_PEERCRED)."""

from __future__ import annotations

from _socket import SO_PEERCRED, SOL_SOCKET

from borg_pull.linux.process import start_time
from borg_pull.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket


class Listener(Record):
    """The process that called listen(2), by the credentials the connection itself carries."""

    pid: int
    uid: int
    start_time: int | None
    """Clock ticks since boot; None when the process is gone or hidden."""

    @property
    def identity(self) -> tuple[int, int | None]:
        """What tells it from a later process with its pid."""
        return self.pid, self.start_time


def listener_of(connection: socket) -> Listener:
    """The process at the other end of a connected Unix socket."""
    credentials = connection.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)  # struct ucred
    pid, uid, _gid = memoryview(credentials).cast("I")
    return Listener(pid=pid, uid=uid, start_time=start_time(pid))
