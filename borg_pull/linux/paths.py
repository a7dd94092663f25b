"""Paths without symbolic links (openat2(2), Linux 5.6), and file systems that can be believed."""

from __future__ import annotations

import errno
import os

from borg_pull.errors import SystemRefusedError
from borg_pull.linux._kernel import lib

_AT_FDCWD = -100
_NO_LINKS = lib.BP_RESOLVE_NO_SYMLINKS | lib.BP_RESOLVE_NO_MAGICLINKS


def open_without_links(path: bytes, flags: int, directory: int = _AT_FDCWD) -> int:
    """A descriptor of ``path``; OSError with ELOOP when any component is a symbolic link.

    Raises SystemRefusedError on kernels that lack openat2.
    """
    result: int = lib.bp_openat2(directory, path, flags | os.O_CLOEXEC, _NO_LINKS)
    if result == -errno.ENOSYS:
        raise SystemRefusedError("the kernel lacks openat2", "use Linux 5.6 or newer")
    if result < 0:
        raise OSError(-result, os.strerror(-result), os.fsdecode(path))
    return result


def vouches_for_owners(descriptor: int) -> bool:
    """Whether the file system of ``descriptor`` can be believed when it says whose a file is.

    Not where it is mounted nosuid, as all is that accounts may mount (fuse, removable media): there
    the kernel itself gives no privilege for what the owner is said to be. Nor in /proc, where what
    root owns can hold words of a process's choosing.
    """
    result: int = lib.bp_vouches_for_owners(descriptor)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return bool(result)
