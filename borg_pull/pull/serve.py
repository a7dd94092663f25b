"""``borg serve`` for one pull: one private socket, one connection, one repository.

The accepted descriptor itself becomes its standard input and output, so that no process stands
between borg on the source and the repository.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from borg_pull.pull import confined
from borg_pull.pull.config import Repository

END_SECONDS = 30.0
"""What ``borg serve`` gets to see its connection closed, write what it has and unlock."""
_TERM_SECONDS = 10.0


class Serving:
    """A private listener and the process that will become ``borg serve``.

    A context manager; on leaving it nothing of it is left: no process, no socket, no lock.
    """

    def __init__(
        self, repository: Repository, runtime_dir: Path, log: BinaryIO, *, append_only: bool
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="run-", dir=runtime_dir))
        self.path = self.directory / "s"
        self._repository = repository
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.listener.bind(str(self.path))
        self.listener.listen(4)
        self.listener.setblocking(False)
        self.is_connected = False
        self._door, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                confined.command(_order(repository, self.directory, append_only=append_only)),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def accept(self, ssh: int) -> bool:
        """Take the connection that waits, if it is the one of the process ``ssh``.

        Anything else that connects is turned away. Returns whether it was the awaited one; then
        there is no listener any more.
        """
        try:
            connection, _ = self.listener.accept()
        except (BlockingIOError, ConnectionError):
            return False
        with connection:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            (pid,) = struct.unpack_from("i", credentials)
            if pid != ssh:
                return False
            connection.setblocking(True)
            self._close_listener()
            confined.hand_over(self._door, connection)
        self.is_connected = True
        return True

    @property
    def pid(self) -> int:
        """Of what is, or becomes, ``borg serve``."""
        return self._process.pid

    def is_ended(self) -> bool:
        """Whether ``borg serve`` has ended."""
        return self._process.poll() is not None

    def _close_listener(self) -> None:
        self.listener.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """End it in order, by force if it must be, and leave nothing."""
        self._close_listener()
        self._door.close()
        # Its end of the connection is closed by whoever ended ssh: it ends by itself.
        if not self._ended_within(END_SECONDS):
            self._process.send_signal(signal.SIGTERM)
            if not self._ended_within(_TERM_SECONDS):
                self._process.kill()
                self._process.wait()
                _remove_lock_of(self._repository.path, self._process.pid)
        shutil.rmtree(self.directory, ignore_errors=True)

    def stop(self) -> None:
        """Ask it to end now, for a run that is given up."""
        if not self.is_ended():
            self._process.send_signal(signal.SIGTERM)

    def _ended_within(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def _order(repository: Repository, directory: Path, *, append_only: bool) -> confined.Order:
    path = str(repository.path)
    argv = [str(repository.borg), "serve", "--umask", repository.umask]
    argv += ["--restrict-to-repository", path]
    if append_only:
        argv.append("--append-only")
    if repository.quota is not None:
        argv += ["--storage-quota", str(int(repository.quota))]
    home = str(directory)
    return confined.Order(
        argv=argv,
        environment={
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": "/nonexistent",
            "PYTHONNOUSERSITE": "1",
            "TMPDIR": home,
            "BORG_BASE_DIR": home,
            "BORG_EXIT_CODES": "modern",
        },
        loaded=confined.places_of(repository.borg),
        writable=[path, home],
        umask=int(repository.umask, 8),
    )


def _remove_lock_of(repository: Path, pid: int) -> None:
    """Remove the lock that a ``borg serve`` killed by us has left, and nobody else's.

    borg names the holder ``HOST.PID-THREAD`` in the directory ``lock.exclusive`` (its
    locking.py); an empty directory is no lock.
    """
    lock = repository / "lock.exclusive"
    with contextlib.suppress(OSError):
        for holder in lock.iterdir():
            if holder.name.rpartition("-")[0].rpartition(".")[2] == str(pid):
                holder.unlink()
        os.rmdir(lock)
