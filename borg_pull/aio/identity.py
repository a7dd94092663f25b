"""Who is at the other end of the companion's socket.

A borg that has been taken over runs as the account of the forced command, which may connect. What
tells them apart the kernel says: every borg of ours has been denied new privileges for good
(no_new_privs, inherited and never taken back), the forced command itself has not.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from dataclasses import dataclass

from borg_pull.errors import NotAllowedError

_SO_PEERPIDFD = 77  # Linux 6.5; include/uapi/asm-generic/socket.h
_UCRED = 12  # bytes of struct ucred: pid, uid, gid


@dataclass(frozen=True, kw_only=True)
class Peer:
    """The process that connected, checked."""

    pid: int
    uid: int


def check(connection: socket.socket, account: int) -> Peer:
    """The peer, if it may ask: a process of ``account`` that may gain privileges, or root.

    Raises NotAllowedError.
    """
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED)
    pid, uid, _gid = memoryview(credentials).cast("I")
    if uid not in (0, account):
        raise NotAllowedError(f"uid {uid} may not ask the companion")
    if uid != 0:
        _check_confinement(connection, pid)
    return Peer(pid=pid, uid=uid)


def _check_confinement(connection: socket.socket, pid: int) -> None:
    """Raises NotAllowedError for a process that was confined, or cannot be looked at."""
    descriptor = _peer_descriptor(connection, pid)
    try:
        status = _status(pid)
        ended, _, _ = select.select([descriptor], [], [], 0)
    finally:
        os.close(descriptor)
    if ended:
        # What was read may have been of a later process with its number.
        raise NotAllowedError(f"the process {pid} that asks has ended")
    if status.get("NoNewPrivs") != "0" or status.get("Seccomp") != "0":
        raise NotAllowedError(f"the process {pid} that asks is confined: it is no forced command")


def _peer_descriptor(connection: socket.socket, pid: int) -> int:
    """A descriptor of the process. Where the kernel cannot give that of the very one that
    connected, it is that of the one with its number now."""
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise NotAllowedError(f"the process {pid} that asks has ended") from error
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise NotAllowedError(f"the process {pid} that asks has ended") from error


def _status(pid: int) -> dict[str, str]:
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise NotAllowedError(f"the process {pid} that asks cannot be looked at") from error
    fields = (line.partition(":") for line in lines)
    return {name: value.strip() for name, _, value in fields}
