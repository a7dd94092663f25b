"""What becomes a confined borg: waits for its connection, if any, confines itself, and executes.

A process of its own, started by ``borg-pull`` with `MARK` as first argument. ``borg serve``'s is
started before the connection is there, so that its own start costs the pull nothing. It runs no
thread, which is what makes it safe to confine itself between fork and exec.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from borg_pull.errors import BorgPullError, SystemRefusedError
from borg_pull.linux import landlock, mounts, process
from borg_pull.pull import preload

MARK = "--confined"

# Programs and what they load, as on the source.
_LOADED = (
    "/bin",
    "/lib",
    "/lib64",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/bin",
    "/usr/local/lib",
)
_LOOKED_UP = (
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/resolv.conf",
    "/etc/ssl/openssl.cnf",
    "/dev/random",
    "/dev/urandom",
    "/dev/zero",
    "/usr/share/locale",
    "/usr/share/zoneinfo",
    *(f"/etc/python3.{minor}" for minor in range(9, 16)),
)


@dataclass(frozen=True)
class Order:
    """What to become."""

    argv: list[str]
    environment: dict[str, str]
    loaded: list[str]
    """Paths that may be read and executed, beside the system's programs."""
    writable: list[str]
    """Paths below which everything is allowed."""
    umask: int
    readable: Sequence[str] = ()
    """Paths that may be read, and below."""
    is_sealed: bool = False
    """Whether modes, owners and attributes, too, are to stay as they are but below ``writable``,
    directories then; where the system has no such thing, that is left to whoever gives the order.
    """
    directory: str = "/"
    """Where it is started."""
    is_connected: bool = True
    """Whether a connection is awaited, to be its input and output."""

    def encode(self) -> str:
        """As one argument."""
        return json.dumps(asdict(self))


def command(order: Order) -> list[str]:
    """The argv of a process that carries ``order`` out."""
    if getattr(sys, "frozen", False):
        return [sys.executable, MARK, order.encode()]
    return [sys.executable, "-m", "borg_pull.pull", MARK, order.encode()]


def places_of(program: Path) -> list[str]:
    """What must be readable for ``program`` to load, beside the system's own directories."""
    found = [str(program)]
    for path in (program, program.resolve()):
        prefix = path.parent.parent
        if (prefix / "pyvenv.cfg").exists():
            found.append(str(prefix))
        elif (path.parent / "_internal").is_dir():
            found.append(str(path.parent))
    return found


def main(argument: str) -> int:
    """Carry the order out; standard input is the socket its connection arrives on."""
    order = Order(**json.loads(argument))
    # Ends with the thread that started this, however that ends.
    process.set_parent_death_signal(signal.SIGTERM)
    try:
        loading = None
        if order.is_connected:
            loading = preload.command(order.argv, preload.AT_A_CONNECTION)
        connection = None
        if order.is_connected and loading is None:
            connection = _awaited_connection()
            if connection is None:
                return 0
        _confine(order)
        if connection is not None:
            os.dup2(connection, 0)
            os.dup2(connection, 1)
        if order.is_connected:
            os.closerange(3, 4096)
        os.umask(order.umask)
        os.chdir(order.directory)
        if loading is None:
            os.execve(order.argv[0], order.argv, order.environment)
        # What it opens as its output must be a socket like what that will be.
        os.dup2(0, 1)
        os.execve(loading[0], loading, order.environment)
    except BorgPullError as error:
        _say(error.line())
        return error.exit_code
    except OSError as error:
        _say(f"cannot become {order.argv[0]}: {error.strerror}")
        return SystemRefusedError.exit_code


def _say(line: str) -> None:
    sys.stderr.write(f"borg-pull: {line}\n")
    sys.stderr.flush()


def _awaited_connection() -> int | None:
    """The descriptor that is sent, None when the sender closes first: nobody connected."""
    with socket.socket(fileno=os.dup(0)) as door:
        descriptors = array.array("i")
        _, ancillary, _, _ = door.recvmsg(1, socket.CMSG_LEN(descriptors.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: descriptors.itemsize])
            return descriptors[0]
    return None


def _confine(order: Order) -> None:
    process.set_no_new_privileges()
    if order.is_sealed:
        mounts.keep_writable(order.writable)
        # The kernel forgets the signal when credentials change.
        process.set_parent_death_signal(signal.SIGTERM)
    level = landlock.abi()
    if level is None:
        _say(f"this kernel has no Landlock: {order.argv[0]} is not confined to its repository")
        return
    rules = landlock.Ruleset(level)
    for path in (*_LOADED, *order.loaded):
        rules.allow_path(path, landlock.READ_AND_EXECUTE)
    for path in (*_LOOKED_UP, *order.readable):
        rules.allow_path(path, landlock.READ)
    rules.allow_path("/dev/null", landlock.READ_AND_WRITE_FILE)
    for path in order.writable:
        rules.allow_path(path, landlock.EVERYTHING)
    rules.enforce()


def hand_over(door: socket.socket, connection: socket.socket) -> None:
    """Send ``connection`` to the process that waits at the other end of ``door``."""
    descriptors: Sequence[int] = [connection.fileno()]
    door.sendmsg(
        [b"\0"],
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())],
    )
