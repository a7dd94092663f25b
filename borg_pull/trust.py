"""Opening files whose owner, mode and directories have been checked.

A program that runs with a capability its caller lacks must not take orders from a file its caller
could have written. Every directory above a trusted file, and the file, must belong to a trusted
account and be writable by nobody else.
"""

from __future__ import annotations

import errno
import os
import stat

from borg_pull.errors import SHORTAGES, BorgPullError, ConfigurationError, SystemRefusedError
from borg_pull.linux import paths
from borg_pull.record import Record

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_MAX_LINKS = 40  # like the kernel's own limit, MAXSYMLINKS


class Trust(Record):
    """Whose files are trusted."""

    enforced: bool
    """False when the process has no privilege its caller lacks; then only types are checked."""
    uid: int
    """The running account, trusted beside root where the caller says so."""


def read_file(path: str, trust: Trust, *, limit: int, own: bool, secret: bool) -> bytes:
    """The content of a trusted regular file of at most ``limit`` bytes.

    ``own`` trusts the running account's files beside root's, ``secret`` demands that others
    cannot read it. No component may be a symbolic link. What only root may give must also stand
    on a file system of root's own, because its path may be a caller's choice. Raises
    ConfigurationError, or SystemRefusedError when something has run out.
    """
    if trust.enforced:
        check_directories(path, trust, own=own)
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        if trust.enforced:
            descriptor = paths.open_without_links(os.fsencode(path), flags)
        else:
            descriptor = os.open(path, flags)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _unusable(path, "is not a regular file")
        if trust.enforced:
            _check_owner_and_mode(path, status, trust, own=own)
            if secret and status.st_mode & stat.S_IRWXO:
                raise _unusable(path, "can be read by others", f"run chmod o-rwx {path}")
            if not own and not paths.vouches_for_owners(descriptor):
                raise _unusable(
                    path,
                    "is on a file system that accounts may have made (/proc, or mounted nosuid)",
                    "keep it where set-user-ID programs may stand, as below /etc",
                )
        content = b""
        while len(content) <= limit:
            # os.read makes a buffer of the size asked for; the size seen is what it needs.
            block = os.read(descriptor, min(max(status.st_size, 4096), limit) + 1)
            if not block:
                return content
            content += block
        raise _unusable(path, f"is larger than {limit} bytes")
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)


def remove_planted_socket(path: str) -> bool:
    """Remove ``path`` if it is a socket, and tell whether it was.

    Any key that may forward can have sshd bind a socket wherever the account can create one, in
    place of a file that is yet to be made. No file of ours is a socket.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        os.unlink(path)
    except OSError:
        return False
    return True


def open_past_socket(path: str, flags: int) -> int:
    """Open a file of ours, mode 0600 if made, where a socket was planted too. Raises OSError.

    Whoever planted one may plant another, but sshd takes far longer for it than this takes.
    """
    while True:
        try:
            return os.open(path, flags, 0o600)
        except OSError as error:
            if error.errno != errno.ENXIO or not remove_planted_socket(path):
                raise


def is_at(descriptor: int, path: str) -> bool:
    """Whether the open file is still the one at ``path``: another may have been put there."""
    opened = os.fstat(descriptor)
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return False
    return (opened.st_dev, opened.st_ino) == (there.st_dev, there.st_ino)


def check_program(path: str, trust: Trust) -> None:
    """Check that ``path``, through any symbolic links, is an executable only root can change.

    Raises ConfigurationError.
    """
    resolved = _resolve(path, trust)
    try:
        status = os.stat(resolved)
    except OSError as error:
        raise _unusable(path, _reason(error)) from error
    if not stat.S_ISREG(status.st_mode) or not os.access(resolved, os.X_OK, effective_ids=True):
        raise _unusable(path, "is not an executable file")
    if trust.enforced:
        _check_owner_and_mode(resolved, status, trust, own=False)


def check_own_directory(path: str, trust: Trust) -> None:
    """Check that ``path`` is a directory of the running account that nobody else can write.

    Raises ConfigurationError.
    """
    if trust.enforced:
        check_directories(path, trust, own=True)
    try:
        status = os.lstat(path)
    except OSError as error:
        raise _unusable(path, _reason(error)) from error
    if not stat.S_ISDIR(status.st_mode):
        raise _unusable(path, "is not a directory")
    if trust.enforced and status.st_uid != trust.uid:
        hint = f"if it is the one that is meant, run chown {_name_of(trust.uid)} {path}"
        raise _unusable(path, "does not belong to this account", hint)
    if trust.enforced and status.st_mode & _WRITABLE_BY_OTHERS:
        raise _unusable(path, "can be written by others", f"run chmod go-w {path}")


def _name_of(uid: int) -> str:
    import pwd  # not on the way of a request that is in order

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def check_directories(path: str, trust: Trust, *, own: bool) -> None:
    """Check every directory above ``path``. Raises ConfigurationError."""
    directory = os.path.dirname(path.rstrip("/"))
    parts = [part for part in directory.split("/") if part]
    for count in range(len(parts) + 1):
        prefix = "/" + "/".join(parts[:count])
        try:
            status = os.lstat(prefix)
        except OSError as error:
            raise _unusable(prefix, _reason(error)) from error
        if not stat.S_ISDIR(status.st_mode):
            raise _unusable(prefix, "is not a directory (links are not followed)")
        _check_owner_and_mode(prefix, status, trust, own=own)


def _resolve(path: str, trust: Trust) -> str:
    """``path`` with links resolved one at a time, each checked like the directory it stands in."""
    remaining = [part for part in path.split("/") if part]
    resolved = ""
    links = 0
    while remaining:
        part = remaining.pop(0)
        if part == "..":
            resolved = resolved.rpartition("/")[0]
            continue
        current = f"{resolved}/{part}"
        try:
            status = os.lstat(current)
            target = os.readlink(current) if stat.S_ISLNK(status.st_mode) else None
        except OSError as error:
            raise _unusable(current, _reason(error)) from error
        if target is not None:
            links += 1
            if links > _MAX_LINKS:
                raise _unusable(path, "has too many symbolic links")
            if trust.enforced and status.st_uid != 0:
                raise _unusable(current, "is a link that does not belong to root")
            if target.startswith("/"):
                resolved = ""
            remaining[:0] = [piece for piece in target.split("/") if piece not in ("", ".")]
            continue
        if remaining and trust.enforced:
            _check_owner_and_mode(current, status, trust, own=False)
        resolved = current
    return resolved or "/"


def _check_owner_and_mode(path: str, status: os.stat_result, trust: Trust, *, own: bool) -> None:
    if status.st_uid != 0 and not (own and status.st_uid == trust.uid):
        owner = "root or this account" if own else "root"
        hint = None if own else f"if you trust what is in it, run chown root {path}"
        raise _unusable(path, f"belongs to uid {status.st_uid}, not to {owner}", hint)
    if status.st_mode & _WRITABLE_BY_OTHERS:
        hint = f"run chmod go-w {path}"
        if status.st_mode & stat.S_ISVTX:
            hint = "keep what must be trusted elsewhere"
        raise _unusable(path, "can be written by others", hint)


def _unreadable(path: str, error: OSError) -> BorgPullError:
    """It is no fault of the file's when there is no descriptor to open it by."""
    if error.errno in SHORTAGES:
        return SystemRefusedError.because(f"{path} cannot be read", error)
    return _unusable(path, _reason(error))


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a symbolic link"
    return f"cannot be used: {error.strerror}"


def _unusable(path: str, reason: str, hint: str | None = None) -> ConfigurationError:
    return ConfigurationError(f"{path} {reason}", hint)
