"""Who is at the other end: the key and address sshd tells of, and the socket it forwarded."""

from __future__ import annotations

import os
import stat

from borg_pull.errors import SocketError
from borg_pull.linux import process
from borg_pull.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    _Identity = tuple[int, int, int]

OURS = "ours"
FOREIGN = "foreign"
DESERTED = "deserted"

_MAX_DESERTED = 1000  # that one request removes
# Of this network namespace, which is sshd's (proc_pid_net(5), unix.c in the kernel's net/unix).
_SOCKET_TABLE = "/proc/self/net/unix"
_MAX_BLOCKS = 4096  # 16 MiB
MAX_USER_AUTH = 64 * 1024  # bytes
_MAX_PORT = 65535


class Caller(Record):
    """What sshd says of the peer; None where it says nothing."""

    key: str | None
    """Fingerprint of the key, ``SHA256:...`` as ssh-keygen -l prints it."""
    address: str | None
    port: int | None


class ForwardedSocket(Record):
    """A forwarded socket as it was found before the run."""

    path: str
    identity: _Identity
    """Device, inode and time of binding: a file system may use an inode's number again."""
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
        port=port if port is None or port <= _MAX_PORT else None,
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
        content = os.read(descriptor, MAX_USER_AUTH + 1)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if len(content) > MAX_USER_AUTH:
        # Half a key would have the fingerprint of another.
        return None
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
        identity=_identity_of(status),
        session_processes=processes,
        evidence=tuple(process.open_stat(pid) for pid, _ in processes),
    )


def _session_processes() -> tuple[tuple[int, int], ...]:
    return tuple(process.ancestors(os.getpid()))


def remove_socket(socket: ForwardedSocket) -> None:
    """Remove the socket's file if it is still the one that was found.

    sshd leaves it behind, and the next forwarding to the same name would fail.
    """
    _remove(os.fsencode(socket.path), socket.identity)


def remove_unless_foreign(path: str) -> None:
    """Remove the socket at ``path`` if this session's sshd listens on it, or nobody has it.

    For requests that were not served: ssh refuses to run the next one while the name is taken.
    Asking costs the peer's listener a connection without a byte.
    """
    place = os.fsencode(path)
    identity = _identity(place)
    if identity is not None and holder(place) != FOREIGN:
        _remove(place, identity)


def remove_deserted(directory: str) -> None:
    """Remove the sockets in ``directory`` that nobody has any more, whoever's they were.

    A session that ends leaves its own behind unless its forced command removed them, and each
    keeps a name, and an inode, from those who come next. The kernel's table tells which are in
    use: asking a listener would cost it a connection, which a run about to start may need.
    """
    above = os.fsencode(directory)
    try:
        names = os.listdir(above)
    except OSError:
        return
    used = _names_in_use(above) if names else None
    if used is None:
        return
    silent: list[tuple[bytes, _Identity]] = []
    for name in [name for name in names if name not in used][:_MAX_DESERTED]:
        identity = _identity(b"%b/%b" % (above, name))
        if identity is not None and _listener_at(b"%b/%b" % (above, name)) is None:
            silent.append((name, identity))
    # Read again: one bound in between refuses connections until its process listens.
    used = _names_in_use(above) if silent else None
    for name, identity in silent:
        if used is not None and name not in used:
            _remove(b"%b/%b" % (above, name), identity)


def holder(path: bytes) -> str:
    """Who has the socket at ``path``: OURS, FOREIGN or DESERTED.

    OURS: this session's sshd listens on it. FOREIGN: another process has it, or there is no
    telling. DESERTED: nobody listens, and nobody is about to.
    """
    found = _listener_at(path)
    if found is not None:
        return found
    # sshd binds a socket and then listens on it: in between it refuses connections as well.
    directory, name = os.path.split(path)
    used = _names_in_use(directory)
    return FOREIGN if used is None or name in used else DESERTED


def _listener_at(path: bytes) -> str | None:
    """OURS or FOREIGN, None when the socket at ``path`` refuses the connection."""
    import _socket

    from borg_pull.linux.sockets import listener_of

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    # A listener whose queue is full would hold a blocking connect for ever.
    connection.setblocking(False)
    try:
        connection.connect(path)
        is_ours = listener_of(connection).identity in _session_processes()
        return OURS if is_ours else FOREIGN
    except ConnectionRefusedError:
        return None
    except OSError:
        return FOREIGN
    finally:
        connection.close()


def _names_in_use(directory: bytes) -> set[bytes] | None:
    """The names in ``directory`` that processes have sockets bound to, however they spell its
    path; None when the kernel does not tell."""
    blocks: list[bytes] = []
    try:
        there = os.stat(directory)
        descriptor = os.open(_SOCKET_TABLE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while block := os.read(descriptor, 1 << 16):
                blocks.append(block)
                # The kernel gives a page at a time. So many sockets are somebody's attack.
                if len(blocks) > _MAX_BLOCKS:
                    return None
        finally:
            os.close(descriptor)
    except OSError:
        return None
    names: dict[bytes, set[bytes]] = {}
    for line in b"".join(blocks).split(b"\n"):
        # Num RefCount Protocol Flags Type St Inode Path
        path = line.split(maxsplit=7)[7:]
        above, slash, name = path[0].rpartition(b"/") if path else (b"", b"", b"")
        if slash:
            names.setdefault(above, set()).add(name)
    return {name for above in names if _is_at(b"/" + above, there) for name in names[above]}


def _is_at(path: bytes, directory: os.stat_result) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (directory.st_dev, directory.st_ino)


def _identity(path: bytes) -> _Identity | None:
    """What tells the socket at ``path`` from any other; None when there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return _identity_of(status) if stat.S_ISSOCK(status.st_mode) else None


def _identity_of(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _remove(path: bytes, identity: _Identity) -> None:
    """Remove the socket at ``path`` if it is the one of that ``identity``.

    Between a look at a name and its removal it can come to be another's. So what has the name is
    moved to one that nobody else knows, looked at there, and put back if it is not the one.
    """
    if _identity(path) != identity:
        return
    taken = b"%b/.%b" % (os.path.dirname(path), os.urandom(16).hex().encode())
    try:
        os.rename(path, taken)
    except OSError:
        # Gone already, or no room for another name, or the directory is not writable.
        taken = path
    try:
        if _identity(taken) == identity:
            os.unlink(taken)
        elif taken != path:
            try:
                # Unlike a renaming, this takes the name from nobody who has bound it meanwhile.
                os.link(taken, path)
            finally:
                os.unlink(taken)
    except OSError:
        # The next forwarding will tell.
        return
