"""``borg serve`` for one pull: one private socket, one connection, one repository.

The accepted descriptor itself becomes its standard input and output, so that no process stands
between borg on the source and the repository.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from borg_pull.pull import confined
from borg_pull.pull.bounds import limited
from borg_pull.pull.config import Repository
from borg_pull.pull.log import foreign

END_SECONDS = 30.0
"""What ``borg serve`` gets to see its connection closed, write what it has and unlock."""
_TERM_SECONDS = 10.0
_LONGEST_LINE = 1 << 16
_PREFIX = "run-"


class _Log(Protocol):
    def write(self, line: bytes, /) -> object: ...


class Serving:
    """A private listener and the process that will become ``borg serve``.

    A context manager; on leaving it nothing of it is left: no process, no socket, no lock.
    """

    def __init__(
        self, repository: Repository, runtime_dir: Path, log: _Log, *, append_only: bool
    ) -> None:
        self._repository = repository
        self.is_connected = False
        self.killed_by: int | None = None
        """The signal that ended ``borg serve``, once closed, if it was none of ours."""
        self.config_fault: str | None = None
        """Once closed, if the source has changed the repository's key or settings, which no request
        of ours asks for."""
        self._config = _config_of(repository.path)
        with ExitStack() as undo:
            self.directory = _private_directory(runtime_dir, undo)
            self.path = self.directory / "s"
            self.listener = undo.enter_context(socket.socket(socket.AF_UNIX))
            self.listener.bind(str(self.path))
            self.listener.listen(4)
            self.listener.setblocking(False)
            self._door, theirs = socket.socketpair()
            undo.enter_context(self._door)
            with theirs:
                order = _order(repository, self.directory, append_only=append_only)
                self._process = subprocess.Popen(
                    limited(confined.command(order), repository),
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            assert self._process.stderr is not None
            self._hearing = threading.Thread(
                target=_keep, args=(self._process.stderr, log), daemon=True
            )
            self._hearing.start()
            self._undo = undo.pop_all()

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
            # A `borg serve` that has been killed takes nothing, and the source will see that.
            with contextlib.suppress(ConnectionError):
                confined.hand_over(self._door, connection)
        self.is_connected = True
        return True

    def moved(self) -> object:
        """What changes whenever ``borg serve`` has read or written anything."""
        return bytes_moved(self._process.pid)

    def _close_listener(self) -> None:
        self.listener.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """End it in order, by force if it must be, and leave nothing."""
        self._close_listener()
        self._door.close()
        # Its end of the connection is closed by whoever ended ssh: it ends by itself.
        if self._ended_within(END_SECONDS):
            if self._process.returncode < 0:
                self.killed_by = -self._process.returncode
        else:
            self._process.send_signal(signal.SIGTERM)
            if not self._ended_within(_TERM_SECONDS):
                self._process.kill()
                self._process.wait()
        # What it has started, if anything, ends with its connection; nobody waits for that.
        self._hearing.join(_TERM_SECONDS)
        if self._process.returncode < 0:
            _remove_lock_of(self._repository.path, self._process.pid)
        self._put_config_back()
        self._undo.close()

    def _put_config_back(self) -> None:
        before, self._config = self._config, None
        if before is None or _config_of(self._repository.path) == before:
            return
        fault = "the source changed the repository's config, which has its key"
        try:
            _replace(self._repository.path / "config", *before)
            self.config_fault = f"{fault}; it is as before again; find out who did that"
        except OSError as error:
            self.config_fault = f"{fault}, and it cannot be put back: {error.strerror}"

    def _ended_within(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def bytes_moved(pid: int) -> list[bytes]:
    """How much the process and those below it have read and written (proc_pid_io(5)).

    A borg of one file, as its project offers it, does its work in a child. Empty for what is gone.
    """
    try:
        counts = Path(f"/proc/{pid}/io").read_bytes().splitlines()[:2]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()
    except OSError:
        return []
    return counts + [count for child in children for count in bytes_moved(int(child))]


def _keep(said: IO[bytes], log: _Log) -> None:
    """Have the log take what ``borg serve`` says: as much as that has room for."""
    with said:
        while line := said.readline(_LONGEST_LINE):
            # A log that is closed meanwhile takes no more.
            with contextlib.suppress(ValueError):
                log.write(foreign(line))


def _private_directory(runtime_dir: Path, undo: ExitStack) -> Path:
    """A new one, locked for as long as this process has use for it, and removed by ``undo``."""
    with _opened(runtime_dir) as above:
        # Whoever removes what was abandoned has this for himself.
        fcntl.flock(above, fcntl.LOCK_SH)
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=runtime_dir))
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        fcntl.flock(undo.enter_context(_opened(directory)), fcntl.LOCK_EX)
    return directory


def remove_abandoned(runtime_dir: Path) -> None:
    """Remove the directories of runs whose process was killed. Raises OSError."""
    with _opened(runtime_dir) as above:
        fcntl.flock(above, fcntl.LOCK_EX)
        for directory in runtime_dir.glob(f"{_PREFIX}*"):
            # One that is in use, or that its owner has just removed, is none of ours.
            with contextlib.suppress(OSError), _opened(directory) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


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


def _config_of(repository: Path) -> tuple[bytes, int] | None:
    """Content and mode of the file that may have the key; None where there is none to read."""
    try:
        with (repository / "config").open("rb") as file:
            return file.read(), stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except OSError:
        return None


def _replace(path: Path, content: bytes, mode: int) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix="config.", delete=False) as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


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
