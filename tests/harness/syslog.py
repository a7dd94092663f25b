"""A syslog that programs of one test alone write to: /dev/log in a mount namespace of their own."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Sequence
from pathlib import Path

_DEVICES = ("null", "zero", "full", "random", "urandom")
_MAX_MESSAGE = 65536


class Syslog:
    """Receives what is logged by commands started as ``command`` says; needs root."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._directory.mkdir()
        self._directory.chmod(0o755)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._path = directory / "log"
        self._socket.bind(str(self._path))
        self._path.chmod(0o666)

    def command(self, arguments: Sequence[str | Path], *, uid: int, gid: int) -> list[str]:
        """The command that runs ``arguments`` as this account, with this syslog."""
        devices = self._directory / "dev"
        devices.mkdir(exist_ok=True)
        lines = [
            "set -eu",
            f"mount -t tmpfs -o mode=0755 none {devices}",
            *(f"touch {devices}/{name}" for name in (*_DEVICES, "log")),
            *(f"mount --bind /dev/{name} {devices}/{name}" for name in _DEVICES),
            f"mount --bind {self._path} {devices}/log",
            f"ln -s /proc/self/fd {devices}/fd",
            f"mount --rbind {devices} /dev",
            f"exec setpriv --reuid {uid} --regid {gid} --clear-groups {_quoted(arguments)}",
        ]
        return ["unshare", "--mount", "sh", "-c", "\n".join(lines)]

    def messages(self) -> list[str]:
        """What has been logged since the last call."""
        found = []
        try:
            while True:
                found.append(self._socket.recv(_MAX_MESSAGE).decode(errors="backslashreplace"))
        except BlockingIOError:
            return found

    def close(self) -> None:
        """Receive no more."""
        self._socket.close()


def _quoted(arguments: Sequence[str | Path]) -> str:
    return " ".join(shlex.quote(str(argument)) for argument in arguments)
