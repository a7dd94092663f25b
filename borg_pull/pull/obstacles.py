"""What keeps this account from a repository: owners and modes, and locks that others hold."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Sequence
from pathlib import Path

from borg_pull.errors import FailedError, printable

_LOCK = "Failed to create/acquire the lock"
_TIMEOUT = "(timeout)"


class AccessError(FailedError):
    """This account may not use the repository as borg does."""


class LockedError(FailedError):
    """Somebody else holds the repository's lock."""


def access_fault(repository: Path) -> AccessError | None:
    """Whether owner and mode keep this account from the repository; None, too, without one.

    But a service of systemd's sees no more than its unit names: there it is a fault, too.
    """
    account = _account(os.geteuid())
    for path, mode in (
        (repository, os.R_OK | os.W_OK | os.X_OK),
        (repository / "config", os.R_OK),
        (repository / "data", os.R_OK | os.W_OK | os.X_OK),
    ):
        try:
            status = path.stat()
        except PermissionError:
            return AccessError(
                f"{path} is not within reach of this account, {account}",
                "open the directories above it to that account, or run borg-pull as another",
            )
        except OSError:
            if path == repository and "INVOCATION_ID" in os.environ:
                return AccessError(
                    f"{path} does not exist for this service",
                    "mount its disk; if it has moved, or its path is new, the service cannot see "
                    "it before you run borg-pull timers install again",
                )
            return None
        if not os.access(path, mode, effective_ids=True):
            what = "read" if mode == os.R_OK else "read and write"
            return AccessError(
                f"{path} belongs to {_account(status.st_uid)}, with mode "
                f"{status.st_mode & 0o7777:04o}: this account, {account}, may not {what} it, or "
                "its disk is read-only",
                f"if the repository is this account's: chown -R {account} {repository}",
            )
    return None


def lock_fault(repository: Path, said: Sequence[str]) -> LockedError | None:
    """Whether borg, which has ``said`` this, waited in vain for a lock of this very repository."""
    lines = [line for line in said if _LOCK in line and _TIMEOUT in line]
    found = holders(repository)
    if not lines or not (found or any(f"{repository}/lock." in line for line in lines)):
        return None
    by = f" by {printable(', '.join(found))}" if found else ""
    return LockedError(
        f"repository {repository} is locked{by}",
        f"if nothing uses it any more: borg break-lock {repository}",
    )


def holders(repository: Path) -> list[str]:
    """Who holds its lock, as borg names them: ``HOST.PID-THREAD`` (its locking.py)."""
    found: list[str] = []
    try:
        found += sorted(os.listdir(repository / "lock.exclusive"))
        return found
    except OSError:
        pass
    try:
        roster = json.loads((repository / "lock.roster").read_bytes())
        return [f"{host}.{pid}-{thread}" for host, pid, thread in roster.get("shared", ())]
    except (OSError, ValueError, TypeError, AttributeError):
        return found


def is_alive(holder: str) -> bool:
    """Whether there is a process on this host that has the holder's number."""
    pid = holder.rpartition("-")[0].rpartition(".")[2]
    return pid.isdigit() and os.path.exists(f"/proc/{pid}")


def _account(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
