"""Landlock: a process gives up, for itself and all it starts, what no rule allows.

Constants and levels are those of include/uapi/linux/landlock.h and landlock(7).
"""

from __future__ import annotations

import os
import stat

from borg_pull.errors import SystemRefusedError
from borg_pull.linux._kernel import lib

_EXECUTE = 1 << 0
_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_REMOVE_DIR = 1 << 4
_REMOVE_FILE = 1 << 5
_MAKE_DIR = 1 << 7
_MAKE_REG = 1 << 8
_MAKE_FIFO = 1 << 10
_MAKE_SYM = 1 << 12
_REFER = 1 << 13
_TRUNCATE = 1 << 14
_IOCTL_DEV = 1 << 15

_FS_LEVELS = (
    # Level 1: execute, write, read, list, remove and make of every kind.
    (1, (1 << 13) - 1),
    (2, _REFER),
    (3, _TRUNCATE),
    (5, _IOCTL_DEV),
)
_NET_LEVEL = 4
_BIND_TCP = 1 << 0
_CONNECT_TCP = 1 << 1
_SCOPE_LEVEL = 6
_SCOPE_ABSTRACT_UNIX_SOCKET = 1 << 0
_SCOPE_SIGNAL = 1 << 1

LIST = _READ_DIR
READ = _READ_FILE | _READ_DIR
READ_AND_EXECUTE = READ | _EXECUTE
READ_AND_WRITE_FILE = _READ_FILE | _WRITE_FILE
# To make directories, files, links and FIFOs, to read, write and remove them, and move them about:
# what unpacking takes. Not to execute, nor to make sockets and devices; nor to open a directory,
# whose mode could then be changed.
UNPACK = (
    _READ_FILE
    | _WRITE_FILE
    | _TRUNCATE
    | _REFER
    | _REMOVE_DIR
    | _REMOVE_FILE
    | _MAKE_DIR
    | _MAKE_REG
    | _MAKE_FIFO
    | _MAKE_SYM
)
EVERYTHING = (1 << 16) - 1

# What a rule for something that is not a directory may hold.
_FILE_ACCESS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV


def abi() -> int | None:
    """The kernel's level, None where it has no Landlock or has it switched off."""
    level = lib.bp_landlock_abi()
    return level if level > 0 else None


class Ruleset:
    """A ruleset in the making, of everything that the kernel's level can deny."""

    def __init__(self, level: int) -> None:
        self._handled = 0
        for since, access in _FS_LEVELS:
            if level >= since:
                self._handled |= access
        net = _BIND_TCP | _CONNECT_TCP if level >= _NET_LEVEL else 0
        scoped = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if level >= _SCOPE_LEVEL else 0
        self.descriptor = _checked(
            lib.bp_landlock_create(self._handled, net, scoped), "create a Landlock ruleset"
        )

    def allow(self, descriptor: int, access: int) -> None:
        """Allow ``access`` to what ``descriptor`` (``O_PATH`` is enough) leads to and all below."""
        access &= self._handled
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= _FILE_ACCESS
        _checked(lib.bp_landlock_allow(self.descriptor, access, descriptor), "add a Landlock rule")

    def allow_path(self, path: str, access: int) -> None:
        """The same by name, following links; what does not exist needs no rule."""
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            raise SystemRefusedError.because(f"cannot open {path}", error) from error
        try:
            self.allow(descriptor, access)
        finally:
            os.close(descriptor)

    def enforce(self) -> None:
        """Deny the calling process the rest, for good; it must have no_new_privs."""
        _checked(lib.bp_landlock_restrict(self.descriptor), "enforce the Landlock ruleset")
        os.close(self.descriptor)


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise SystemRefusedError(f"cannot {what}: {os.strerror(-result)}")
    return result
