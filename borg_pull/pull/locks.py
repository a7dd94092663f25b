"""Locks among all processes of one state directory; the kernel gives them back however one ends."""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import ExitStack
from pathlib import Path


def take(held: ExitStack, directory: Path, name: str, *, shared: bool = False) -> bool:
    """Take the lock of this name until ``held`` is closed; False when somebody has it.

    Any number can have it ``shared``, while nobody has it alone.
    """
    descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    held.callback(os.close, descriptor)
    return True


def of_job(name: str) -> str:
    """The name of a job's lock."""
    return f"job-{name}"


def of_repository(path: Path) -> str:
    """The name of the lock of a repository, by whichever path it is reached."""
    return f"repository-{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}"
