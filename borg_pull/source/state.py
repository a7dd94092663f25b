"""A client's own directory on the source: borg's state, the lock, the reports of the wrap."""

from __future__ import annotations

import errno
import fcntl
import os

from borg_pull.digest import sha256
from borg_pull.errors import BusyError, ConfigurationError, SystemRefusedError
from borg_pull.record import Record
from borg_pull.trust import check_own_directory, is_at, open_past_socket, remove_planted_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from borg_pull.trust import Trust

MAX_LOCKS = 256
"""How many locks a client may leave behind before those that nobody holds are removed."""

_MAX_NOTE = 200  # bytes
_NAME_DIGITS = 32  # of a state directory's name, hexadecimal
_LOCK = ".lock"
_REPORT = ".report"


def prepare(directories: Sequence[str], trust: Trust) -> None:
    """Create what is missing of ``directories``, outer before inner, in a home that was checked.

    Raises ConfigurationError when what stands there cannot be trusted, SystemRefusedError when
    a directory cannot be made.
    """
    for directory in directories:
        try:
            _make_directory(directory)
        except FileExistsError:
            check_own_directory(directory, trust)
        except OSError as error:
            raise SystemRefusedError.because(f"cannot create {directory}", error) from error


def _make_directory(path: str) -> None:
    while True:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not remove_planted_socket(path):
                raise
        else:
            return


def own_directory(directory: str, trust: Trust) -> str:
    """The client's state directory in its own ``directory``, made when missing.

    Its name cannot be guessed. Any key that may forward can have sshd bind a socket wherever the
    account can create one, and borg fails on one among its keys, or in the place of its lock; but
    sshd lists nothing, and binds only where the path is known. Raises like `prepare`.
    """
    found = find_own_directory(directory)
    if found is None:
        try:
            found = _make_own_directory(directory, trust)
        except OSError as error:
            raise SystemRefusedError(f"cannot create {directory}: {error.strerror}") from error
    check_own_directory(found, trust)
    return found


def find_own_directory(directory: str) -> str | None:
    """The state directory in a client's ``directory``, None when there is none."""
    try:
        with os.scandir(directory) as entries:
            names = [
                entry.name
                for entry in entries
                # A planted socket can have such a name, but it is no directory.
                if len(entry.name) == _NAME_DIGITS and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return None
    return f"{directory}/{min(names)}" if names else None


def _make_own_directory(directory: str, trust: Trust) -> str:
    """Both at once: of two first requests the second finds what the first has made."""
    name = os.urandom(_NAME_DIGITS // 2).hex()
    new = f"{os.path.dirname(directory)}/.{name}"
    os.mkdir(new, 0o700)
    os.mkdir(f"{new}/{name}", 0o700)
    if not _renamed(new, directory):
        os.rmdir(f"{new}/{name}")
        os.rmdir(new)
        # There already: made by another request just now, or empty but for what was planted.
        found = find_own_directory(directory)
        if found is not None:
            return found
        check_own_directory(directory, trust)
        os.mkdir(f"{directory}/{name}", 0o700)
    return f"{directory}/{name}"


def _renamed(new: str, directory: str) -> bool:
    while True:
        try:
            os.rename(new, directory)
        except OSError as error:
            if error.errno != errno.ENOTDIR or not remove_planted_socket(directory):
                return False
        else:
            return True


class Claim(Record):
    """The lock of one client and repository, held."""

    descriptor: int
    report_path: str
    """Where the socket wrap of this run reports; the file exists and is empty."""
    interrupted: str | None
    """Note of a holder that ended without releasing, as after kill -9 or a power cut."""


def claim(directory: str, repository: str) -> Claim:
    """Take the lock of this client and repository.

    ``directory`` holds the client's locks and reports.

    The kernel gives the lock back when the process ends, however it ends; only `release` takes
    the note away. Raises BusyError telling the note of a living holder.
    """
    path, report_path = places(directory, repository)
    while True:
        descriptor = _open_lock(path)
        try:
            interrupted = _lock(descriptor)
            # Another request may have made room between the opening and the locking; whoever
            # comes next would then lock another file.
            if is_at(descriptor, path):
                _make_report(report_path)
                return Claim(
                    descriptor=descriptor, report_path=report_path, interrupted=interrupted
                )
        except OSError as error:
            os.close(descriptor)
            raise SystemRefusedError.because(f"cannot write to {directory}", error) from error
        except BusyError:
            os.close(descriptor)
            raise
        os.close(descriptor)


_LOCK_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _open_lock(path: str) -> int:
    try:
        try:
            return open_past_socket(path, _LOCK_FLAGS)
        except FileNotFoundError:
            _make_room(os.path.dirname(path))
            return open_past_socket(path, _LOCK_FLAGS | os.O_CREAT)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ConfigurationError(f"{path} is a symbolic link", "remove it") from error
        raise SystemRefusedError.because(f"cannot open {path}", error) from error


def _make_room(directory: str) -> None:
    """Remove the locks that nobody holds, once there are many: a client may think up as many
    repositories as it likes, and each leaves a file."""
    names = [name for name in os.listdir(directory) if name.endswith(_LOCK)]
    if len(names) >= MAX_LOCKS:
        for name in names:
            _remove_unless_held(f"{directory}/{name}")


def _remove_unless_held(path: str) -> None:
    """Remove a lock and its report, unless somebody holds it or its last holder's end is yet to
    be recorded."""
    try:
        descriptor = os.open(path, _LOCK_FLAGS)
    except OSError:
        # Gone already, or nothing of ours.
        remove_planted_socket(path)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _note(descriptor) is None and is_at(descriptor, path):
            report_path = path.removesuffix(_LOCK) + _REPORT
            if os.path.lexists(report_path):
                os.unlink(report_path)
            # Last, and still locked: who opened it before finds that it is not at its path.
            os.unlink(path)
    except OSError:
        # Held. If it cannot be removed, the request at hand needs no room to run.
        return
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> str | None:
    """Lock, and return the note that is there. Raises BusyError, OSError."""
    holder = _note(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(
            f"another run for this repository is under way ({holder or 'just starting'})",
            "try again later",
        ) from None
    return _note(descriptor)


def _note(descriptor: int) -> str | None:
    return os.pread(descriptor, _MAX_NOTE, 0).decode("ascii", "replace").partition("\n")[0] or None


def note(held: Claim, text: str) -> None:
    """Say in the lock who holds it.

    Not before the end of the run that left its note there is on record: with the note would go
    what is known of it. Raises SystemRefusedError.
    """
    try:
        _write_note(held.descriptor, text)
    except OSError as error:
        place = os.path.dirname(held.report_path)
        raise SystemRefusedError.because(f"cannot write to {place}", error) from error


def _write_note(descriptor: int, note: str) -> None:
    """Replace the note; on a full disk the old one stays, for whoever comes next to record.

    A note is the file's first line. What an older one left behind it is not cut off, because
    truncating a file costs ext4 1 to 2 ms.
    """
    content = f"{note}\n".encode("ascii")
    if os.pwrite(descriptor, content, 0) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def release(held: Claim, *, ended: bool) -> None:
    """Give the lock back; take the report, and the note of a run that has ``ended``, away."""
    try:
        if os.path.lexists(held.report_path):
            os.unlink(held.report_path)
        if ended:
            _write_note(held.descriptor, "")
    except OSError as error:
        raise SystemRefusedError.because(f"cannot clear {held.report_path}", error) from error
    finally:
        os.close(held.descriptor)


def places(directory: str, repository: str) -> tuple[str, str]:
    """Paths of the lock and of the wrap's report for one repository, in the client's directory."""
    digest = sha256(repository.rstrip("/").encode("utf-8")).hexdigest()[:16]
    return f"{directory}/{digest}{_LOCK}", f"{directory}/{digest}{_REPORT}"


def _make_report(path: str) -> None:
    # A new file each time: a wrap that outlived its run must not write into the next one's.
    while True:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            os.unlink(path)
        else:
            return
