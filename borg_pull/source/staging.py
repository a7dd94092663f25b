"""Where `restore` unpacks: a new directory of its own below the one that the whitelist names.

Not on the path of other verbs.
"""

from __future__ import annotations

import errno
import os
import stat

from borg_pull.errors import ConfigurationError, SystemRefusedError
from borg_pull.linux import paths
from borg_pull.record import Record

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEY = "restore_to"


class Staging(Record):
    """A directory that was made for one run."""

    path: str
    descriptor: int
    above: int
    """Descriptor of the directory it stands in, by which it was made."""

    def remove_if_empty(self) -> bool:
        """Remove it if nothing came into it; whether that was so."""
        try:
            os.rmdir(os.path.basename(self.path), dir_fd=self.above)
        except OSError:
            return False
        return True


def make(directory: str, name: str) -> Staging:
    """A new, private directory ``name`` in ``directory``.

    No component of ``directory`` may be a symbolic link; it must be this account's, and writable by
    nobody else. Raises ConfigurationError, SystemRefusedError.
    """
    above = open_parent(directory)
    path = f"{directory.rstrip('/')}/{name}"
    try:
        os.mkdir(name, 0o700, dir_fd=above)
        descriptor = os.open(name, _OPEN, dir_fd=above)
    except OSError as error:
        raise SystemRefusedError.because(f"cannot make {path}", error) from error
    return Staging(path=path, descriptor=descriptor, above=above)


def open_parent(directory: str) -> int:
    """A descriptor of the directory that the whitelist names, checked.

    Raises ConfigurationError, SystemRefusedError.
    """
    try:
        descriptor = paths.open_without_links(os.fsencode(directory), _OPEN)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise ConfigurationError(
                f"{_KEY} {directory} is or leads through a symbolic link, or is no directory",
                "name a directory itself",
            ) from error
        raise ConfigurationError(
            f"{_KEY} {directory} cannot be used: {error.strerror}",
            "make it: owned by this account, mode 0700",
        ) from error
    status = os.fstat(descriptor)
    fault = None
    if status.st_uid != os.geteuid():
        fault = f"belongs to uid {status.st_uid}, not to this account"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        fault = "can be written by others"
    if fault is not None:
        os.close(descriptor)
        raise ConfigurationError(
            f"{_KEY} {directory} {fault}", "make it the account's own, mode 0700"
        )
    return descriptor
