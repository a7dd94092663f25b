"""Mounts of a process's own, on which it can change nothing but where it may (mount_namespaces(7)).

What Landlock does not cover is covered by these: modes, owners and attributes of files.
"""

from __future__ import annotations

import errno
import os

from borg_pull.errors import SystemRefusedError
from borg_pull.linux._kernel import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def keep_writable(paths: Sequence[str]) -> bool:
    """Let the calling process, and all it starts, change nothing but below ``paths``, directories.

    It must run no thread. An ordinary user gets a user namespace for it, with himself in it alone.
    False where the system lets this process have no mounts of its own, or cannot make them
    read-only (before Linux 5.12). Raises SystemRefusedError for what else fails.
    """
    if not _have_own() or lib.bp_make_mounts_private() != 0:
        return False
    encoded = [os.fsencode(path) for path in paths]
    for path in encoded:
        _check(lib.bp_mount_on_itself(path), path)
    result = lib.bp_set_read_only(b"/", 1, 1)
    if result == -errno.ENOSYS:
        return False
    _check(result, b"/")
    for path in encoded:
        _check(lib.bp_set_read_only(path, 0, 0), path)
    return True


def _have_own() -> bool:
    user, group = os.geteuid(), os.getegid()
    if lib.bp_unshare_mounts(0) == 0:
        return True
    # Root without the capability could give no file to anybody in a namespace with itself alone.
    if user == 0 or lib.bp_unshare_mounts(1) != 0:
        return False
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        try:
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        except OSError as error:
            raise SystemRefusedError.because(f"cannot write /proc/self/{name}", error) from error
    return True


def _check(result: int, path: bytes) -> None:
    if result < 0:
        raise SystemRefusedError(
            f"cannot mount {os.fsdecode(path)} for one process: {os.strerror(-result)}"
        )
