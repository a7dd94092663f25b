"""Locking a host down and lifting that, for the admin of the host and for an admin's key.

Locking comes before recording, and recording before unlocking: what cannot be recorded leaves the
host locked. A client lifts its own lockdown alone; that of the host's admin, or of another client,
is lifted on the host.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from borg_pull.errors import (
    AuditError,
    BorgPullError,
    BusyError,
    NotAllowedError,
    SystemRefusedError,
)
from borg_pull.lockdown import Lockdown, file_beside, read
from borg_pull.replacing import replace, sync_directory_of

if TYPE_CHECKING:
    from borg_pull.audit import JSONValue

Recorder = Callable[[str, Mapping[str, "JSONValue"]], None]
"""Writes a record of an event with these fields. Raises BorgPullError."""


def lock(
    config: str,
    *,
    by: str,
    client: str | None,
    reason: str | None,
    kill: bool,
    record: Recorder,
    faults: list[BorgPullError],
) -> bool:
    """Lock down, then record it; whether it was not so before. ``faults``: what went wrong then.

    ``client`` is who asks over ssh, None for the admin of the host. A lockdown in force is recorded
    once more. It keeps its beginning, and all that is known of it when there is no new reason; one
    of a client becomes the admin's when the admin locks down, never the other way round.
    Raises SystemRefusedError.
    """
    before = now = read(config)
    if now is None or (
        client is None and (now.since is None or reason is not None or now.client is not None)
    ):
        now = Lockdown(
            since=(None if now is None else now.since) or _now(),
            by=by,
            reason=reason if reason is not None or now is None else now.reason,
            client=client,
            fault=None,
        )
        write(file_beside(config), now)
    fields: dict[str, JSONValue] = {
        "by": by,
        "reason": now.reason,
        "since": now.since,
        "was_locked": before is not None,
        "kill": kill,
    }
    try:
        record("lockdown_on", fields)
    except BorgPullError as error:
        message = f"locked down, but that is not on record: {error.message}"
        faults.append(AuditError(message, error.hint))
    if read(config) is None:
        faults.append(BusyError("somebody else lifted the lockdown meanwhile", "see the audit log"))
    return before is None


def unlock(
    config: str, *, by: str, client: str | None, record: Recorder, faults: list[BorgPullError]
) -> bool:
    """Record the end of the lockdown, then lift it; whether it did. ``faults``: what went wrong.

    Raises NotAllowedError for one that is not ``client``'s to lift, SystemRefusedError when it
    could not be lifted anyway.
    """
    path = file_beside(config)
    identity = _identity(path)
    before = read(config)
    if before is None:
        return False
    if client is not None and before.client != client:
        raise NotAllowedError(
            "this lockdown is not this client's to lift", "its host's admin can: borg-pull-admin"
        )
    if not os.access(os.path.dirname(path), os.W_OK):
        raise SystemRefusedError(f"cannot remove {path}: permission denied", "run this as root")
    fields: dict[str, JSONValue] = {"by": by, "reason": before.reason, "since": before.since}
    try:
        record("lockdown_off", fields)
    except BorgPullError as error:
        message = f"still locked down, because the end is not on record: {error.message}"
        faults.append(AuditError(message, error.hint))
        return False
    try:
        _remove(path, identity)
    except BorgPullError as error:
        faults.append(error)
    now = read(config)
    if now is None:
        return True
    # The log's last word is to be what holds.
    still: dict[str, JSONValue] = {"by": by, "reason": now.reason, "since": now.since}
    try:
        record("lockdown_on", still | {"was_locked": True, "kill": False})
    except BorgPullError as error:
        faults.append(error)
    return False


def write(path: str, content: Lockdown) -> None:
    """Put the file in place, whole and on the disk. Raises SystemRefusedError."""
    lines = [f"since: {content.since}\n", f"by: {content.by}\n"]
    if content.client is not None:
        lines.append(f"client: {content.client}\n")
    if content.reason is not None:
        lines.append(f"reason: {content.reason}\n")
    try:
        replace(path, "".join(lines).encode("utf-8"))
    except OSError as error:
        hint = "any file of this name locks the host down"
        if isinstance(error, PermissionError):
            hint = "run this as root"
        raise SystemRefusedError(f"cannot write {path}: {error.strerror}", hint) from error


def _remove(path: str, identity: tuple[int, int] | None) -> None:
    """Take the file away that was there before. Raises BusyError, SystemRefusedError."""
    if _identity(path) != identity:
        raise BusyError("somebody else locked the host down anew", "see who and why with status")
    try:
        os.unlink(path)
        sync_directory_of(path)
    except OSError as error:
        raise SystemRefusedError(f"cannot remove {path}: {error.strerror}") from error


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
