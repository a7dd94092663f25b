"""Who is at the other end of the companion's socket.

A borg that has been taken over runs as the account of the forced command, which may connect. What
tells them apart the kernel says: every borg of ours has been denied new privileges for good
(no_new_privs, inherited and never taken back), the forced command itself has not. Nor has sshd's
process of a session, which connects for a client where ssh -L of a socket is let through: so what
asks must be the forced command's program, too. A process of the account that is not confined could
start that by itself; nothing of the account is to run but forced commands.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
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
    """The peer, if it may ask: a forced command of ``account`` that is not confined, or root.

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
        program = _identity(f"/proc/{pid}/exe")
        ended, _, _ = select.select([descriptor], [], [], 0)
    finally:
        os.close(descriptor)
    if ended:
        # What was read may have been of a later process with its number.
        raise NotAllowedError(f"the process {pid} that asks has ended")
    if status.get("NoNewPrivs") != "0" or status.get("Seccomp") != "0":
        raise NotAllowedError(f"the process {pid} that asks is confined: it is no forced command")
    if program is None or program != _identity(_forced_command()):
        raise NotAllowedError(
            f"the process {pid} that asks is no forced command",
            "the companion and borg-pull-source must be of one installation",
        )


def _forced_command() -> str:
    """The program of the forced command: that beside this one, or the interpreter of both."""
    if getattr(sys, "frozen", False):
        return os.path.join(os.path.dirname(sys.executable), "borg-pull-source")
    return sys.executable


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


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
