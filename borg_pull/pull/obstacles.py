"""What keeps this account from a repository: owners and modes, and locks that others hold."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Sequence
from pathlib import Path

from borg_pull.errors import FailedError, printable
from borg_pull.pull.config import Repository

_LOCK = "Failed to create/acquire the lock"
_TIMEOUT = "(timeout)"
_WRONG_PASSPHRASE = ("assphrase supplied in", "the passphrase is wrong")
"""borg's words, and those of a source of ours."""
_NO_SPACE = "No space left on device"


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


def space_fault(repository: Path, error: str, said: Sequence[str]) -> FailedError | None:
    """Whose disk is full, if that is what ``error`` says of a pull in which borg ``said`` this.

    borg at the source passes on the traceback of ``borg serve``, which runs here.
    """
    if _NO_SPACE not in error:
        return None
    if any("remote.py" in line and "in serve" in line for line in said):
        return FailedError(
            f"the disk of repository {repository} on this host is full",
            f"free some space there; see df {repository}, and borg-pull doctor",
        )
    return FailedError(
        f"a disk of the source is full: {error}",
        "free some space there: borg needs it below home of its whitelist",
    )


def passphrase_fault(repository: Repository, error: str, *, is_sent: bool) -> FailedError | None:
    """Where the passphrase comes from, if ``error`` says that it is wrong.

    ``is_sent``: it is this host's, not the source's own.
    """
    if not any(words in error for words in _WRONG_PASSPHRASE):
        return None
    path = repository.path
    if not is_sent:
        return FailedError(
            f"the passphrase of {path} is wrong, which the source has",
            "look at what its whitelist says of the passphrase, on the source",
        )
    if repository.passphrase_file is not None:
        origin = f"in {repository.passphrase_file} on this host"
    elif repository.passphrase_command is not None:
        origin = f"which {repository.passphrase_command[0]} prints on this host"
    elif repository.passphrase_credential is not None:
        origin = f"in the credential {repository.passphrase_credential} on this host"
    else:
        return FailedError(
            f"{path} has a passphrase, and the configuration of this host names none",
            "give its repository passphrase_file, passphrase_command or passphrase_credential",
        )
    return FailedError(
        f"the passphrase of {path} is wrong, the one {origin}",
        "take the one that the repository was made with, or was given by borg key "
        "change-passphrase",
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
