"""What the companion has begun on this host, on the disk before it is done.

Whatever ends the companion, the next one finds here what it has to finish: an audit record that
lacks its end, and a target that is to be put back. One run at a time has the lock, and the journal
is its.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import struct
from collections.abc import Iterator
from typing import Any

from borg_pull.errors import ConfigurationError, SystemRefusedError
from borg_pull.replacing import replace, sync_directory_of
from borg_pull.trust import Trust, check_directories, check_own_directory

_VERSION = 1
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2), on 64-bit Linux


class Journal:
    """``state_dir``/journal.json, and the lock beside it. Writing raises SystemRefusedError."""

    def __init__(self, state_dir: str) -> None:
        self.directory = state_dir
        self._path = f"{state_dir}/journal.json"
        self._lock = f"{state_dir}/lock"

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """The lock of the one run at a time, for as long as this process lives; False when another
        has it."""
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, flock(fcntl.F_WRLCK))
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)

    def is_held(self) -> bool:
        """Whether a run is under way, be it one that only has to put a target back."""
        # Asked, not tried: a lock that is held to look would keep a run away that is to begin.
        try:
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, flock(fcntl.F_WRLCK))
        finally:
            os.close(descriptor)
        return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)

    def read(self) -> dict[str, Any] | None:
        """What has been begun and not finished; None when there is nothing."""
        try:
            with open(self._path, "rb") as file:
                entry = json.loads(file.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the journal {self._path} cannot be read: {error}",
                "look at AIO's target by hand, then remove the file",
            ) from error
        if not isinstance(entry, dict) or entry.get("version") != _VERSION:
            raise ConfigurationError(f"the journal {self._path} is of another version")
        return entry

    def write(self, entry: dict[str, Any]) -> None:
        """Have ``entry`` on the disk."""
        text = json.dumps({"version": _VERSION} | entry).encode("ascii")
        try:
            replace(self._path, text, mode=0o600)
        except OSError as error:
            raise SystemRefusedError.because(f"{self._path} cannot be written", error) from error

    def clear(self) -> None:
        """Note that all is finished."""
        try:
            os.unlink(self._path)
            sync_directory_of(self._path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise SystemRefusedError.because(f"{self._path} cannot be removed", error) from error


def flock(kind: int, start: int = 0, length: int = 0) -> bytes:
    """fcntl(2)'s struct flock for ``length`` bytes from ``start``; 0 reaches to the end."""
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


def prepare(state_dir: str) -> None:
    """Have the directory there, root's alone. Raises ConfigurationError, SystemRefusedError."""
    for path in (state_dir, f"{state_dir}/jobs"):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            hint = "run this as root" if error.errno in (errno.EACCES, errno.EPERM) else None
            message = f"{path} cannot be made: {error.strerror}"
            raise SystemRefusedError(message, hint) from error
        trust = Trust(enforced=True, uid=os.geteuid())
        check_directories(path, trust, own=True)
        check_own_directory(path, trust)
        os.chmod(path, 0o700)
