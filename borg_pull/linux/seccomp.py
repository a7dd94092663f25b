"""A filter of system calls, for what Landlock leaves open (seccomp(2))."""

from __future__ import annotations

import os

from borg_pull.errors import SystemRefusedError
from borg_pull.linux._kernel import lib


def deny_system_calls() -> None:
    """Deny the calling process and all it starts what a backup has no use for, for good.

    Files by handle, other processes by number, signals to any, sockets but Unix ones, namespaces,
    file locks, kernel interfaces of wide reach: EPERM. Changes of mode, owner and extended
    attributes: done in appearance only, since borg insists on setting the mode its new files have
    anyway. The process must have no_new_privs. Raises SystemRefusedError.
    """
    result = lib.bp_deny_system_calls()
    if result < 0:
        raise SystemRefusedError(f"cannot filter system calls: {os.strerror(-result)}")
