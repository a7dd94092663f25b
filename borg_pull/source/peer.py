"""Who is at the other end: the key and address sshd tells of, and the socket it forwarded."""

from __future__ import annotations

import os
import stat
import time

from borg_pull.errors import SocketError
from borg_pull.linux import process
from borg_pull.record import Record
from borg_pull.source.request import nonce_fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_STALE_AFTER = 3600.0  # seconds
_MAX_STALE = 1000
_MAX_USER_AUTH = 64 * 1024  # bytes


class Caller(Record):
    """What sshd says of the peer; None where it says nothing."""

    key: str | None
    """Fingerprint of the key, ``SHA256:...`` as ssh-keygen -l prints it."""
    address: str | None
    port: int | None


class ForwardedSocket(Record):
    """A forwarded socket as it was found before the run."""

    path: str
    identity: tuple[int, int]
    """Device and inode."""
    session_processes: tuple[tuple[int, int], ...]
    """(pid, start time) of the processes above us, of which sshd's session process is one."""
    evidence: tuple[int, ...]
    """Descriptors of their /proc/PID/stat, from which the wrap learns the start time. Held open
    because a confined wrap is allowed to read these very inodes, and proc makes new ones for
    entries nobody holds."""

    def session_text(self) -> str:
        """The processes as the socket wrap reads them."""
        return ",".join(f"{pid}:{start}" for pid, start in self.session_processes)


def caller(environment: Mapping[bytes, bytes]) -> Caller:
    """The peer of this session, by ``SSH_CONNECTION`` and, with ``ExposeAuthInfo yes`` in sshd's
    configuration, ``SSH_USER_AUTH`` (sshd_config(5))."""
    words = environment.get(b"SSH_CONNECTION", b"").decode("ascii", "replace").split(" ")
    address = words[0] if len(words) == 4 and words[0].isprintable() else None
    is_port = address and words[1].isascii() and words[1].isdigit() and len(words[1]) <= 5
    port = int(words[1]) if is_port else None
    return Caller(
        key=_fingerprint(environment.get(b"SSH_USER_AUTH")),
        address=address or None,
        port=port,
    )


def _fingerprint(path: bytes | None) -> str | None:
    if path is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        content = os.read(descriptor, _MAX_USER_AUTH)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    import binascii

    from borg_pull.digest import sha256

    for line in content.splitlines():
        words = line.split(b" ")
        if words[0] == b"publickey" and len(words) >= 3:
            try:
                digest = sha256(binascii.a2b_base64(words[2])).digest()
            except binascii.Error:
                return None
            return "SHA256:" + binascii.b2a_base64(digest).decode("ascii").rstrip("=\n")
    return None


def forwarded_socket(path: str) -> ForwardedSocket:
    """The socket at ``path``, found to be one of this account's.

    Whether this session's sshd listens on it is checked by the wrap, on the descriptor that is
    then used. Raises SocketError.
    """
    forward = f"forward one with ssh -R {path}:LOCAL_SOCKET"
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise SocketError(f"no forwarded socket at {path}", forward) from None
    except OSError as error:
        raise SocketError(f"cannot look at {path}: {error.strerror}", forward) from error
    if not stat.S_ISSOCK(status.st_mode):
        raise SocketError(f"{path} is not a socket", f"remove it, then {forward}")
    if status.st_uid != os.getuid():
        raise SocketError(f"{path} belongs to uid {status.st_uid}", f"remove it, then {forward}")
    processes = _session_processes()
    if not processes:
        raise SocketError(
            "cannot see the sshd process of this session",
            "mount /proc without hidepid, or with a gid= this account is in",
        )
    return ForwardedSocket(
        path=path,
        identity=(status.st_dev, status.st_ino),
        session_processes=processes,
        evidence=tuple(process.open_stat(pid) for pid, _ in processes),
    )


def _session_processes() -> tuple[tuple[int, int], ...]:
    return tuple(process.ancestors(os.getpid()))


def remove_socket(socket: ForwardedSocket) -> None:
    """Remove the socket's file if it is still the one that was found.

    sshd leaves it behind, and the next forwarding to the same name would fail.
    """
    _remove(socket.path, socket.identity)


def remove_unless_foreign(path: str) -> None:
    """Remove the socket at ``path`` if this session's sshd listens on it, or nobody.

    For requests that were not served: ssh refuses to run the next one while the name is taken.
    Asking costs the peer's listener a connection without a byte.
    """
    try:
        status = os.lstat(path)
    except OSError:
        return
    if stat.S_ISSOCK(status.st_mode) and not _is_foreign(path):
        _remove(path, (status.st_dev, status.st_ino))


def remove_stale(directory: str, client: str) -> None:
    """Remove the client's sockets of single runs that nobody has listened on for an hour.

    A forced command that was killed leaves its own behind. Younger ones are left alone: asking
    who listens costs the listener a connection, which a run that is about to start may need.
    """
    oldest = time.time() - _STALE_AFTER
    try:
        names = [name for name in os.listdir(directory) if _is_of_one_run(name, client)]
        for name in names[:_MAX_STALE]:
            path = f"{directory}/{name}"
            status = os.lstat(path)
            if stat.S_ISSOCK(status.st_mode) and status.st_mtime < oldest and _is_deserted(path):
                _remove(path, (status.st_dev, status.st_ino))
    except OSError:
        # Another run of this client removed one first, or will.
        return


def _is_of_one_run(name: str, client: str) -> bool:
    nonce = name.removeprefix(f"{client}.").removesuffix(".sock")
    return name == f"{client}.{nonce}.sock" and nonce_fault(nonce) is None


def _is_deserted(path: str) -> bool:
    import _socket

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    connection.setblocking(False)
    try:
        connection.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    finally:
        connection.close()
    return False


def _is_foreign(path: str) -> bool:
    import _socket

    from borg_pull.linux.sockets import listener_of

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    # A listener whose queue is full would hold a blocking connect for ever.
    connection.setblocking(False)
    try:
        connection.connect(path)
        return listener_of(connection).identity not in _session_processes()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    finally:
        connection.close()


def _remove(path: str, identity: tuple[int, int]) -> None:
    try:
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) == identity:
            os.unlink(path)
    except OSError:
        # Gone already, or the directory is not writable: the next forwarding will tell.
        return
