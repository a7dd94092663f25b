"""A client's own directory on the source: borg's state, the lock, the reports of the wrap."""

from __future__ import annotations

import errno
import fcntl
import os

from borg_pull.digest import sha256
from borg_pull.errors import BusyError, ConfigurationError, SystemRefusedError
from borg_pull.trust import check_own_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from borg_pull.trust import Trust


def prepare(home: str, state: str, trust: Trust) -> None:
    """Create what is missing below ``home`` for the state directory ``state``.

    Raises ConfigurationError when ``home`` or what stands there cannot be trusted,
    SystemRefusedError when a directory cannot be made.
    """
    check_own_directory(home, trust)
    for directory in (os.path.dirname(state), state, f"{state}/run", f"{state}/tmp"):
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            check_own_directory(directory, trust)
        except OSError as error:
            raise SystemRefusedError(
                f"cannot create {directory}: {error.strerror}"
            ) from error


def claim(state: str, repository: str, note: str) -> int:
    """Take the lock of this client and repository and write ``note`` into it.

    The descriptor returned holds the lock; the kernel gives it back when the process ends,
    however it ends. Raises BusyError telling the note of the holder.
    """
    digest = sha256(repository.rstrip("/").encode("utf-8")).hexdigest()[:16]
    path = f"{state}/{digest}.lock"
    try:
        descriptor = os.open(
            path,
            os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            0o600,
        )
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ConfigurationError(
                f"{path} is a symbolic link", "remove it"
            ) from error
        raise SystemRefusedError(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise BusyError(
            f"another run for this repository is under way ({holder or 'just starting'})",
            "try again later",
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, note.encode("ascii"), 0)
    return descriptor


def new_report(state: str, session: str) -> str:
    """Create the empty file that the wrap reports into and return its path.

    Raises SystemRefusedError.
    """
    path = f"{state}/run/{session}"
    try:
        os.close(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        )
    except OSError as error:
        raise SystemRefusedError(f"cannot create {path}: {error.strerror}") from error
    return path
