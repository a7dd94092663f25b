"""The audit records of an action: `action_start` before anything happens, and its one end."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from borg_pull.accounts import acting_as, forced_command_account
from borg_pull.aio.texts import brief
from borg_pull.audit import AuditLog, Common, is_among
from borg_pull.errors import AuditError

if TYPE_CHECKING:
    from borg_pull.aio_policy import AioPolicy
    from borg_pull.audit import JSONValue

START = "action_start"
COMPLETE = "action_complete"
_HOUR = 60 * 60
_ATTEMPTS = 3
_MOST_BYTES = 1 << 30


class ActionTrail:
    """Writes them as the account of the log: one that root made would shut the account out."""

    def __init__(self, policy: AioPolicy) -> None:
        self._account = forced_command_account(policy.runtime, None)
        self._path = policy.audit.file
        self._log = AuditLog(policy.audit.file, sync=policy.audit.sync)

    def start(self, common: Mapping[str, Any], fields: Mapping[str, JSONValue]) -> None:
        """Raises AuditError; then nothing may happen."""
        with acting_as(self._account):
            self._log.append(START, _common(common), _brief(fields))

    def complete(self, common: Mapping[str, Any], fields: Mapping[str, JSONValue]) -> None:
        """Record the end. Raises AuditError."""
        with acting_as(self._account):
            self._log.append(COMPLETE, _common(common), _brief(fields))

    def has(self, event: str, common: Mapping[str, Any], since: float) -> bool:
        """Whether there is such a record, which is no older than ``since``: in the log, or in what
        was rotated away. Raises AuditError."""
        session = str(common["session"])
        with acting_as(self._account):
            # The log first: what is moved away meanwhile is met again among the others.
            return self._log.holds(event, session) or self._is_rotated(event, session, since)

    def _is_rotated(self, event: str, session: str, since: float) -> bool:
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError):  # it was renamed once more: look again
                return any(
                    _holds(path, event, session)
                    for path in _rotated(self._path)
                    # A clock that was set back a little must hide none.
                    if os.lstat(path).st_mtime >= since - _HOUR
                )
        return False


def _common(fields: Mapping[str, Any]) -> Common:
    return Common(**fields)


def _rotated(log: str) -> list[str]:
    """FILE.N and FILE.N.gz, as logrotate names them."""
    directory, name = os.path.split(log)
    found = []
    try:
        entries = os.listdir(directory)
    except OSError:
        return []  # as with what cannot be read
    for entry in entries:
        number = entry.removeprefix(f"{name}.").removesuffix(".gz")
        if entry.startswith(f"{name}.") and number.isdecimal():
            found.append(os.path.join(directory, entry))
    return found


def _holds(path: str, event: str, session: str) -> bool:
    """What cannot be read has no record; FileNotFoundError is raised all the same."""
    import gzip
    import zlib

    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return False
            if not path.endswith(".gz"):
                return is_among(_bounded(file.read, path), event, session)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return is_among(_bounded(unpacked.read, path), event, session)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, zlib.error):
        return False


def _bounded(read: Callable[[int], bytes], path: str) -> Callable[[int], bytes]:
    """``read`` that raises AuditError when there is more than anybody keeps in one log."""
    left = _MOST_BYTES

    def bounded(size: int) -> bytes:
        nonlocal left
        block = read(size)
        left -= len(block)
        if left < 0:
            raise AuditError(
                f"{path} is too large to look for a record in it", "move it out of the directory"
            )
        return block

    return bounded


def _brief(fields: Mapping[str, JSONValue]) -> dict[str, JSONValue]:
    """A text that is too long is recorded shortened rather than never."""
    return {
        name: brief(value) if isinstance(value, str) else value for name, value in fields.items()
    }
