"""A filter of system calls, for what Landlock leaves open (seccomp(2))."""

from __future__ import annotations

import os

from borg_pull.errors import SystemRefusedError
from borg_pull.linux._kernel import lib


def deny_system_calls(*, unpacks: bool) -> None:
    """Deny the calling process and all it starts what a backup has no use for, for good.

    Files by handle, other processes by number, signals to any, sockets but Unix ones, namespaces,
    file locks, kernel interfaces of wide reach: EPERM. Changes of mode, owner and extended
    attributes: done in appearance only, since borg insists on setting the mode its new files have
    anyway. One that ``unpacks`` an archive may set mode and times of files that it has open: what
    it can open is for Landlock to say. No set-user-ID, set-group-ID or sticky bit: a mode with one
    is set in appearance only. The process must have no_new_privs. Raises SystemRefusedError.
    """
    result = lib.bp_deny_system_calls(unpacks)
    if result < 0:
        raise SystemRefusedError(f"cannot filter system calls: {os.strerror(-result)}")
